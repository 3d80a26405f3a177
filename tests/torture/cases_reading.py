"""D8, D9: the plan decides who reads what, and a worker that dies or stands still is found."""

import signal

from accounting import compare, delivered, delivered_by, planned
from corpora import one_shard, prepared_run
from fault import Fault
from harness import Bench, case
from legs import Run
from stops import stopped


@case("D8", "shards fewer than ranks x workers; uneven shards; every sample accounted for")
def d8(bench: Bench) -> str:
    """Equal steps on all ranks; what is delivered is what is planned, per epoch, resumed or not, at any world size."""
    expected, rows = planned(bench.corpus), {}
    for world in (1, 2, 4, 8):
        for resumed in (False, True):
            name = f"{world} planned{', resumed' if resumed else ''}"
            rows[name] = compare(expected, delivered(bench.corpus, world, resumed=resumed, workers=world % 3))
    for run, resumed in _real_runs(bench):
        name = f"{run.world} real, {run.workers} workers{', resumed' if resumed else ''}"
        rows[name] = compare(expected, delivered_by(run))
    bench.figures["accounting"] = {"epochs": 2, "planned": expected.total(), "worlds": rows}
    wrong = {name: row for name, row in rows.items() if row["lost"] or row["duplicated"]}
    assert not wrong, wrong
    one = _one_shard_for_all(bench)
    return f"{len(rows)} ways of reading {expected.total()} questions: lost 0, duplicated 0; {one}"


def _real_runs(bench: Bench) -> list[tuple[Run, bool]]:
    """One and two ranks, undisturbed and after two kills of which the second lies in the next epoch."""
    found = []
    for world, workers in ((1, 1), (2, 2)) if bench.full else ((1, 1),):
        found.append((bench.reference(world=world), False))
        run = bench.run(f"d8-resumed-{world}", world=world, workers=workers)
        for step in (1, 4):
            first, *others = run.start(Fault(out=str(run.out), kind="kill", step=step))
            assert first.wait() == -signal.SIGKILL and all(p.wait() == 75 for p in others), run.tail()
        run.finish()
        found.append((run, True))
    return found


def _one_shard_for_all(bench: Bench) -> str:
    """One shard, two ranks of two workers each: the steps are equal by plan."""
    run, _ = prepared_run(bench, "d8", lambda root: one_shard(root, 12), world=2 if bench.full else 1)
    run.workers = 2
    run.finish(extra=("--data.val_splits", "[]"))
    lengths = {len(run.stream(rank)) for rank in range(run.world)}
    assert lengths == {run.steps}, lengths
    return f"one shard feeds {run.world} x 2 workers"


@case("D9", "worker killed, worker stopped")
def d9(bench: Bench) -> str:
    """A typed stop with status 75; the loader's timeout finds the one that only stands still; no worker is left behind."""
    from scaleearth_pl.data.datamodule import GeoScaleDataModule

    seconds = {}
    for kind, timeout in (("worker_killed", 300), ("worker_stopped", 4)):
        run = bench.run(f"d9-{kind}", workers=1, extra=("--data.loader_timeout_s", str(timeout)))
        (process,) = run.start(Fault(out=str(run.out), kind=kind, step=4))
        since = run.wait_for_step(2)["time"]
        seconds[kind] = stopped(bench, [process], since, [75], run)
        assert "WorkerError" in process.text, run.tail()
        run.finish()
        assert run.losses() == bench.reference().losses()
    assert GeoScaleDataModule(root=".").loader_timeout_s > 0
    return f"status 75 after {seconds['worker_killed']:.1f} s and {seconds['worker_stopped']:.1f} s (timeout 4 s)"
