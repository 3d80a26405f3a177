"""C1 to C5: at every moment there is a valid checkpoint, and the newest valid one is what a run goes on from."""

import os
import random
import shutil
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fault import Fault
from harness import Bench, case
from legs import Run

POINTS = ("bytes", "bytes", "bytes", "bytes", "before_fsync", "after_fsync", "before_replace", "after_replace")
POINTS += ("before_flush_folder", "after_flush_folder", "before_prune", "after_prune")
OTHER_FILESYSTEM = Path("/dev/shm")


@case("C1", "kill -9 inside a save, temporary files on this and another file system")
def c1(bench: Bench) -> str:
    """Random bytes and named points of the second save of each process; then the run is finished and compared."""
    wanted, elsewhere = 50 if bench.full else 3, Path(tempfile.mkdtemp(dir=OTHER_FILESYSTEM))
    assert elsewhere.stat().st_dev != Path("/tmp").stat().st_dev, "the case needs two file systems"
    places = {"one file system": (bench.root, str(bench.root)), "two file systems": (elsewhere, "/tmp")}
    bench.reference()
    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = {name: pool.submit(_kills_in_saves, bench, *place, n=wanted) for name, place in places.items()}
            kills = {name: job.result() for name, job in jobs.items()}
    finally:
        shutil.rmtree(elsewhere)
    bench.figures["crash_window"] = {n: {"kills": k, "without_valid_checkpoint": 0} for n, k in kills.items()}
    return f"{kills} kills inside a save, 0 without a valid checkpoint; resumed to the bit"


def _kills_in_saves(bench: Bench, root: Path, temporary: str, *, n: int) -> int:
    """Kills one run after the other; a moment without a valid checkpoint fails in `_newest`."""
    rng, done = random.Random(str(root == bench.root)), 0
    while done < n:
        run = bench.run(f"c1-{root.name}-{done}", runs=root / f"c1-runs-{done}")
        for _ in range(min(n - done, run.steps // 2 - 1)):
            _kill_in_save(run, rng, temporary)
            done += 1
        run.finish(TMPDIR=temporary)
        run.assert_same_as(bench.reference())
        assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(".")], "debris"
        shutil.rmtree(run.folder)
    return done


def _kill_in_save(run: Run, rng: random.Random, temporary: str) -> None:
    from scaleearth_pl.training.checkpoint_io import newest_valid

    before = _newest(run)
    whole = newest_valid(run.bench.reference().checkpoints).stat().st_size
    point, n_bytes = rng.choice(POINTS), rng.randrange(whole)
    fault = Fault(out=str(run.out), kind="save", step=2, point=point, n_bytes=n_bytes)
    (process,) = run.start(fault, TMPDIR=temporary)
    assert process.wait() == -signal.SIGKILL, (point, run.tail())
    after = _newest(run)
    assert after in (before + 1, before + 2), f"{point}: step {before} before, {after} after the kill"


def _newest(run: Run) -> int:
    from scaleearth_pl.training.checkpoint_io import newest_valid
    from scaleearth_pl.training.seal import read_seal

    if not run.checkpoints.exists():
        return 0
    return read_seal(newest_valid(run.checkpoints)).step


@case("C2", "disk full; read-only folder")
def c2(bench: Bench) -> str:
    """A typed error, the old checkpoint intact, no debris; with room again the run is exact."""
    found, quiet = [], ("--trainer.logger", "false")  # TensorBoard's file would hit the limit first
    for kind, error in (("disk_full", "DiskSpaceError"), ("read_only", "CheckpointError")):
        run = bench.run(f"c2-{kind}", extra=quiet)
        (process,) = run.start(Fault(out=str(run.out), kind=kind, step=4))
        assert process.wait() == 2 and error in process.text, run.tail()
        run.checkpoints.chmod(0o755)
        files = sorted(p.name for p in run.checkpoints.iterdir())
        assert files == ["step=00000003.ckpt", "step=00000004.ckpt"], files
        assert _newest(run) == 4
        run.finish()
        run.assert_same_as(bench.reference(extra=quiet))
        found.append(error)
    return f"{' and '.join(found)}, status 2; the old checkpoint stands, nothing else is there"


@case("C3", "newest checkpoint corrupt")
def c3(bench: Bench) -> str:
    """A flipped byte, a cut, nothing left: refused by checksum, named, and the one before is taken."""
    for kind in ("flip", "cut", "empty"):
        run = bench.run(f"c3-{kind}")
        (process,) = run.start(Fault(out=str(run.out), kind="kill", step=5))
        assert process.wait() == -signal.SIGKILL
        newest = run.checkpoints / "step=00000005.ckpt"
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes({"flip": data, "cut": data[:-1000], "empty": b""}[kind])
        run.finish()
        text = run.tail()
        assert "checkpoint passed over" in text and newest.name in text, text
        assert [row["step"] for row in run.rows("pids-0")] == [0, 4], "resumed from another step"
        run.assert_same_as(bench.reference())
    none = bench.run("c3-none")
    (process,) = none.start(Fault(out=str(none.out), kind="kill", step=3))
    process.wait()
    for path in none.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    (process,) = none.start()
    assert process.wait() == 2 and "CheckpointError" in process.text, none.tail()
    return "flipped, cut and empty ones passed over with a warning; all corrupt: status 2"


@case("C4", "clock set back, file times shuffled")
def c4(bench: Bench) -> str:
    """The recorded step decides: the newest has the oldest file time, an older one lies in the future."""
    run = bench.run("c4")
    (process,) = run.start(Fault(out=str(run.out), kind="kill", step=5))
    assert process.wait() == -signal.SIGKILL
    os.utime(run.checkpoints / "step=00000005.ckpt", (1, 1))
    os.utime(run.checkpoints / "step=00000004.ckpt", (4e9, 4e9))
    run.finish()
    assert [row["step"] for row in run.rows("pids-0")] == [0, 5], "resumed from another step"
    run.assert_same_as(bench.reference())
    return "resumed from step 5"


FSDP2 = ("--trainer.strategy", "scaleearth_pl.training.durable_fsdp.DurableModelParallelStrategy")
GATHERED = (*FSDP2, "--trainer.strategy.save_distributed_checkpoint", "false")
SHARDED = (*FSDP2, "--trainer.strategy.save_distributed_checkpoint", "true")


@case("C5", "adapter-only resume under DDP and FSDP2; renamed key; sharded checkpoints")
def c5(bench: Bench) -> str:
    """A checkpoint holds what trains and nothing else; a renamed key is an error under both strategies."""
    world = 2 if bench.full else 1
    variants: dict[str, tuple[str, ...]] = {"ddp": ()}
    if bench.full:
        plain = ("--model.init_args.backbone.quantise", "none")
        variants |= {"fsdp2": (*GATHERED, *plain), "fsdp2 with a 4-bit base": GATHERED}
    found = [f"{name} exact ({_adapter_only(bench, name, world, extra)} tensors)" for name, extra in variants.items()]
    if bench.full:
        _sharded(bench)
        found.append("stage 1 in sharded folders exact")
    return "; ".join(found) + "; the renamed key refused by name"


def _adapter_only(bench: Bench, name: str, world: int, extra: tuple[str, ...]) -> int:
    import torch

    from scaleearth_pl.training.checkpoint_io import newest_valid, write_sealed

    run = bench.run(f"c5-{name.replace(' ', '-')}", world=world, extra=extra)
    processes = run.start(Fault(out=str(run.out), kind="kill", step=4))
    assert processes[0].wait() == -signal.SIGKILL and all(p.wait() == 75 for p in processes[1:]), run.tail()
    newest = newest_valid(run.checkpoints)
    content = torch.load(newest, weights_only=True)
    names = set(content["state_dict"])
    assert names and not any(".base." in n for n in names), "frozen weights in the checkpoint"
    good, first = newest.read_bytes(), min(names)
    content["state_dict"][first + "_renamed"] = content["state_dict"].pop(first)
    write_sealed(newest, content, step=content["global_step"])
    processes = run.start()
    assert [p.wait() for p in processes] == [2] * world and "_renamed" in processes[0].text, run.tail()
    newest.write_bytes(good)
    run.finish()
    run.assert_same_as(bench.reference(world=world, extra=extra))
    return len(names)


def _sharded(bench: Bench) -> None:
    """Stage 1 under FSDP2, every rank its own shards: killed, the newest folder damaged, resumed from the one before."""
    run = bench.run("c5-sharded", world=2, stage="stage1", extra=SHARDED)
    processes = run.start(Fault(out=str(run.out), kind="kill", rank=1, step=5))
    assert [p.wait() for p in processes] == [75, -signal.SIGKILL], run.tail()
    newest = run.checkpoints / "step=00000005.ckpt"
    shard = next(newest.glob("__1_*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run.finish()
    assert [row["step"] for row in run.rows("pids-0")] == [0, 4], "resumed from another step"
    run.assert_same_as(bench.reference(world=2, stage="stage1", extra=SHARDED))
