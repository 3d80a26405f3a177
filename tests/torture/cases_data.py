"""D1 to D10: what can be wrong with data is found against the index, named, counted, and fatal past a share."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from child import Fault
from harness import HERE, Bench, Run, case
from numpy.typing import NDArray

TYPED = 2


@case("D1", "shard cut at every 512-byte offset, and a thousand other mutations")
def d1(bench: Bench) -> str:
    """Each is found by the full check; reading by the index never delivers a byte that was not written."""
    from scaleearth_pl.core.errors import ShardError
    from scaleearth_pl.data.shards import ShardIndex

    root = _one_shard(bench.root / "d1", n_images=20)
    index = ShardIndex.load(root)
    path, original = root / index.shards[0].file, _delivered(index)
    whole = path.read_bytes()
    mutations = [*_cuts(whole), *_others(whole, 1000 if bench.full else 40)]
    undetected = silent = foreign = 0
    for kind, data in mutations if bench.full else mutations[::7]:
        path.write_bytes(data)
        with contextlib.suppress(ShardError):
            index.verify()
            undetected += 1
        silent += any(original[row] != got for row, got in _delivered(index).items())
        foreign += kind == "cut" and not _index_refuses(path)
    path.write_bytes(whole)
    n_cuts = len([*_cuts(whole)])
    assert not undetected and not silent and not foreign, (undetected, silent, foreign)
    baseline = _silent_in_webdataset(path, whole) if bench.full else None
    bench.figures["silent_faults"] = {
        "injected": len(mutations), "cuts": n_cuts, "undetected": 0, "webdataset_silent_cuts": baseline
    }  # fmt: skip
    missed = "" if baseline is None else f"; plain webdataset misses {baseline} cuts"
    return f"{len(mutations)} mutations ({n_cuts} cuts): 0 undetected, 0 altered samples delivered{missed}"


def _one_shard(root: Path, n_images: int) -> Path:
    from fakes.corpus import fake_sample, random_image

    from scaleearth_pl.prepare.write import ShardWriter

    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(0)
    with ShardWriter(root, corpus="d1", samples_per_shard=n_images) as writer:
        for number in range(n_images):
            writer.write(fake_sample(number), random_image(rng, 64, 64), "png")
    return root


def _cuts(whole: bytes) -> Any:
    return (("cut", whole[:at]) for at in range(0, len(whole), 512))


def _others(whole: bytes, n: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(1)
    found = []
    for number in range(n):
        data = bytearray(whole)
        a, b = sorted(rng.integers(0, len(whole) - 512, 2).tolist())
        kind = ("flip", "zeros", "swap", "insert", "delete", "garbage")[number % 6]
        if kind == "flip":
            data[a] ^= 1 << int(rng.integers(8))
        elif kind == "zeros":  # a file system that lost its tail: right size, no content
            data[a : a + 512] = b"\xa5" * 512 if not any(data[a : a + 512]) else bytes(512)
        elif kind == "swap":
            data[a : a + 64], data[b : b + 64] = data[b : b + 64], data[a : a + 64]
            if bytes(data) == whole:
                data[a] ^= 1
        elif kind == "insert":
            data[a:a] = data[b : b + 512]
        elif kind == "delete":
            del data[a : a + 512]
        else:
            data += rng.bytes(512)
        found.append((kind, bytes(data)))
    return found


def _delivered(index: Any) -> dict[int, tuple[str, bytes]]:
    """Whatever the reader hands out; rows that it refuses are absent."""
    from scaleearth_pl.core.errors import GsdError, SampleError, ShardError
    from scaleearth_pl.data.shards import ShardReader

    reader, found = ShardReader(index), {}
    for row in range(len(index)):
        with contextlib.suppress(SampleError, GsdError, ShardError):
            sample, data = reader.read(row)
            found[row] = (sample.to_json(), data)
    reader.close()
    return found


def _index_refuses(path: Path) -> bool:
    """A cut shard given to `scaleearth index` as a foreign one: no index comes of it."""
    from scaleearth_pl.core.errors import ShardError
    from scaleearth_pl.core.gsd import TierBoundaries
    from scaleearth_pl.prepare.index import Scan, scan_shard

    try:
        scan_shard(path, path.parent, Scan(), boundaries=TierBoundaries())
    except ShardError:
        return True
    # A cut inside the padding behind the end mark lost nothing.
    return not path.read_bytes()[-1024:].strip(b"\0")


def _silent_in_webdataset(path: Path, whole: bytes) -> int:
    """The same cuts through plain webdataset: how many lose samples without an error."""
    import warnings

    import webdataset

    silent = 0
    for _, data in _cuts(whole):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                count = sum("json" in s and "png" in s for s in webdataset.WebDataset(str(path), shardshuffle=False))
                silent += count < 20
            except Exception:
                continue
    path.write_bytes(whole)
    return silent


@case("D2", "error in shard A; shard B starts with the same key")
def d2(bench: Bench) -> str:
    """Image and JSON of a sample always come from one shard."""
    from scaleearth_pl.data.shards import ShardIndex, ShardReader
    from scaleearth_pl.prepare.index import index_foreign

    root = _fresh(bench, "d2")
    (first, image_a), (second, image_b), (third, image_c) = (_sample(n) for n in range(3))
    _tar(root / "a.tar", [("0.json", third), ("0.png", image_c), ("7.png", image_a)])  # 7 has lost its JSON ...
    _tar(root / "b.tar", [("7.json", second), ("8.json", first), ("8.png", image_a)])  # ... and here its image
    scan = index_foreign(root, max_bad_share=0.9)
    assert sorted(r.key for r in scan.rejected) == ["7", "7"], scan.rejected
    _tar(root / "b.tar", [("7.json", second), ("7.png", image_b)])
    index_foreign(root, max_bad_share=0.9)
    index = ShardIndex.load(root)
    read = [ShardReader(index).read(row) for row in range(len(index))]
    assert [(s.image_id, data) for s, data in read] == [("train-00002", image_c), ("train-00001", image_b)]
    return "the halves are rejected, never joined"


@case("D3", "JPEG truncated; bytes changed mid-file")
def d3(bench: Bench) -> str:
    """Caught by the decoder and by the checksum; the run goes on with counted holes and says which."""
    from fakes.corpus import make_fake_corpus

    run, root = _prepared(bench, "d3", lambda r: make_fake_corpus(r, n_images=12, ext="jpg"))
    _flip_in_image(root, row=3)
    (process,) = run.start(extra=("--data.max_bad_share", "0.2"))
    assert process.wait() == 0, run.tail()
    assert "quarantined" in process.text and "image member is cut or altered" in process.text, run.tail()
    cut = _fresh(bench, "d3-cut")
    sample, image = _sample(0, ext="jpg")
    _tar(cut / "a.tar", [("0.json", sample), ("0.jpg", image[: len(image) // 2])])
    reason = _one_bad(cut)
    assert "decode" in reason or "truncated" in reason, reason
    return "quarantined by checksum, and by the decoder where the index was made of a cut file"


@case("D4", "missing JSON, duplicate key, empty shard, zero-byte member")
def d4(bench: Bench) -> str:
    """Each is a record in the index's list of rejections, with its reason."""
    from scaleearth_pl.prepare.index import index_foreign

    root = _fresh(bench, "d4")
    members = [m for n in range(8) for m in _members(n)]
    members += [("90.png", _sample(90)[1]), *_members(3), ("91.json", b""), ("91.png", _sample(91)[1])]
    _tar(root / "a.tar", members)
    _tar(root / "empty.tar", [])
    scan = index_foreign(root, max_bad_share=0.9)
    reasons = " | ".join(r.reason for r in scan.rejected)
    for expected in ("one .json and one image", "duplicate key", "0 bytes"):
        assert expected in reasons, reasons
    assert scan.n_samples == 8
    rows = json.loads((root / "index.json").read_text())["rejected"]
    assert len(rows) == len(scan.rejected)
    return f"{len(rows)} records with reasons; the empty shard adds nothing"


@case("D5", "GSD missing, NaN, not positive, or outside its tier")
def d5(bench: Bench) -> str:
    """Refused when a sample is read, in the index and in a batch; a training run never sees it."""
    from scaleearth_pl.core.errors import GsdError, SampleError
    from scaleearth_pl.core.sample import Sample

    good, _ = _sample(0)
    for forged in ("null", "NaN", "0.0", "-0.3", "Infinity", '"0.3"', "true"):
        text = good.replace(b'"gsd_m_native":0.3', b'"gsd_m_native":' + forged.encode())
        assert text != good
        try:
            Sample.from_json(text)
        except (SampleError, GsdError):
            continue
        raise AssertionError(f"gsd_m_native = {forged} was accepted")
    run, root = _prepared(bench, "d5")
    _forge_json(root, row=0, old=b'"gsd_m_native":0.3', new=b'"gsd_m_native":-.3')
    (process,) = run.start()
    assert process.wait() == TYPED and "QuarantineLimitError" in process.text, run.tail()
    (process,) = run.start(extra=("--data.max_bad_share", "0.2"))
    assert process.wait() == 0, run.tail()
    read = {tree[0] for row in run.rows("stream-0") for micro in row["read"] for tree in micro["trees"]}
    assert len(read) == 11, read
    return "seven forgeries refused; in a run the image is not planned, and too many stop it"


@case("D6", "images of 100 MP, 200 MP, 1 x N")
def d6(bench: Bench) -> str:
    """Refused from the header, with the remedy (tile when preparing); memory stays bounded; 49 MP still decode."""
    program = HERE / "big_images.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert all("tile" in found[name]["error"] for name in ("100 MP", "200 MP", "1 x N")), found
    refused = max(found[name]["grown_mb"] for name in ("100 MP", "200 MP", "1 x N"))
    assert refused < 20, found
    assert found["49 MP"]["error"] == "" and found["49 MP"]["grown_mb"] < 450, found
    return f"refused with {refused:.0f} MB more at most; 49 MP take {found['49 MP']['grown_mb']:.0f} MB"


@case("D7", "over 1 % bad samples, or 100 in a row")
def d7(bench: Bench) -> str:
    """A typed stop of a real run, in the worker too; and the row of failures alone."""
    from scaleearth_pl.core.errors import QuarantineLimitError, SampleError
    from scaleearth_pl.data.quarantine import Quarantine

    for workers in (0, 1):
        run, root = _prepared(bench, f"d7-{workers}")
        run.workers = workers
        _flip_in_image(root, row=0)
        (process,) = run.start()
        assert process.wait() == TYPED and "QuarantineLimitError" in process.text, run.tail()
    books = Quarantine(n_rows=10**5, n_images=10**5, max_bad_share=1.0)
    for row in range(99):
        books.bad(row, "x", SampleError("bad"))
    try:
        books.bad(99, "x", SampleError("bad"))
    except QuarantineLimitError:
        return "status 2 with and without workers; the hundredth failure in a row is fatal"
    raise AssertionError("100 failures in a row were tolerated")


@case("D8", "shards fewer than ranks x workers; uneven shards")
def d8(bench: Bench) -> str:
    """Equal steps and micro-batches on all ranks by plan; what is delivered is what is planned, per epoch."""
    counts = {world: _accounting(bench.corpus, world) for world in (1, 2, 4, 8)}
    assert len({tuple(sorted(found.items())) for found, _ in counts.values()}) == 1, "world sizes read differently"
    padded = {world: fillers for world, (_, fillers) in counts.items()}
    run, _ = _prepared(bench, "d8", lambda r: _one_shard(r, 12), world=2 if bench.full else 1)
    run.workers = 2
    run.finish(extra=("--data.val_splits", "[]"))
    lengths = {len(run.stream(rank)) for rank in range(run.world)}
    assert lengths == {run.steps}, lengths
    delivered = _real_accounting(bench.reference(world=run.world))
    assert delivered == counts[1][0], "a real run delivered something else"
    bench.figures["accounting"] = {"lost": 0, "duplicated": 0, "epochs": 2, "worlds": [*counts], "fillers": padded}
    return (
        f"world sizes 1, 2, 4, 8: lost 0, duplicated 0; padding micro-batches {padded}; one shard feeds 2 x 2 workers"
    )


def _accounting(corpus: Path, world: int, epochs: int = 2) -> tuple[dict[Any, int], int]:
    """((epoch, image, question) -> times delivered over all ranks, weightless micro-batches)."""
    from fakes.runs import make_data

    found: dict[Any, int] = {}
    fillers = 0
    for rank in range(world):
        data = make_data(corpus, rank=rank, world_size=world)
        for step in range(epochs * data.steps_per_epoch):
            batch = data.step_batch(step)
            assert batch.step == step
            for micro in batch.micro:
                fillers += micro.is_filler
                for branch in () if micro.is_filler else micro.branches:
                    key = (batch.epoch, micro.trees[branch.tree].image_id, branch.qa_id)
                    found[key] = found.get(key, 0) + 1
    assert set(found.values()) == {1}, "a question was delivered twice in an epoch"
    return found, fillers


def _real_accounting(run: Run, epochs: int = 2) -> dict[Any, int]:
    from harness import EPOCH

    found: dict[Any, int] = {}
    for rank in range(run.world):
        for step, micros in run.stream(rank).items():
            for tree in (t for micro in micros if not micro["filler"] for t in micro["trees"]):
                for qa_id in tree[1:] if step < epochs * EPOCH else ():
                    key = (step // EPOCH, tree[0], qa_id)
                    found[key] = found.get(key, 0) + 1
    return found


@case("D9", "worker killed, worker stopped")
def d9(bench: Bench) -> str:
    """A typed stop with status 75; the loader's timeout finds the one that only stands still."""
    from scaleearth_pl.data.datamodule import GeoScaleDataModule

    seconds = {}
    for kind, timeout in (("worker_killed", 300), ("worker_stopped", 4)):
        run = bench.run(f"d9-{kind}", workers=1, extra=("--data.loader_timeout_s", str(timeout)))
        (process,) = run.start(Fault(out=str(run.out), kind=kind, step=4))
        since = run.wait_for_step(2)["time"]
        assert process.wait() == 75 and "WorkerError" in process.text, run.tail()
        seconds[kind] = process.ended - since
        run.finish()
        assert run.losses() == bench.reference().losses()
    assert seconds["worker_killed"] < 20 and seconds["worker_stopped"] < 24, seconds
    assert GeoScaleDataModule(root=".").loader_timeout_s > 0
    return f"status 75 after {seconds['worker_killed']:.1f} s and {seconds['worker_stopped']:.1f} s (timeout 4 s)"


@case("D10", "answer out of the token window; nothing supervised")
def d10(bench: Bench) -> str:
    """Long questions are dropped whole and counted; a step without any is finite; nothing left at all is an error."""
    from fakes.runs import make_data

    short = make_data(bench.corpus, max_branch_tokens=30)
    report = short.plan_report()
    assert report["dropped_questions"] > 0, report
    steps = [short.step_batch(step) for step in range(short.steps_per_epoch)]
    assert all(int(m.supervised_T.sum()) > 0 for s in steps for m in s.micro if not m.is_filler)
    run = bench.run("d10", extra=("--data.max_branch_tokens", "30"))
    run.finish()
    assert all(np.isfinite(float.fromhex(loss)) for loss in run.losses().values())
    (process,) = bench.run("d10-none", extra=("--data.max_branch_tokens", "1")).start()
    assert process.wait() == TYPED and "ConfigError" in process.text, process.text[-800:]
    idle = make_data(bench.corpus, rank=7, world_size=8, global_batch_tokens=200, micro_token_budget=280)
    empty = [s for s in map(idle.step_batch, range(idle.steps_per_epoch)) if s.n_supervised == 0]
    assert empty, "the case needs a rank without work"
    return (
        f"{report['dropped_questions']} questions dropped and counted; losses finite; {len(empty)} idle steps planned"
    )


# -- making and breaking corpora -----------------------------------------------------------------------------------


def _fresh(bench: Bench, name: str) -> Path:
    root = bench.root / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    return root


def _prepared(bench: Bench, name: str, make: Any = None, **settings: Any) -> tuple[Run, Path]:
    """A run on a corpus of its own, which may be broken."""
    root = _fresh(bench, name) / "corpus"
    if make is None:
        shutil.copytree(bench.corpus, root, ignore=shutil.ignore_patterns(".cache"))
    else:
        make(root)
    return bench.run(name, corpus=root, **settings), root


def _sample(number: int, ext: str = "png") -> tuple[bytes, bytes]:
    from fakes.corpus import fake_sample, random_image

    rng: np.random.Generator = np.random.default_rng(number)
    return fake_sample(number).to_json().encode(), random_image(rng, 64, 64, ext)  # type: ignore[arg-type]


def _members(number: int) -> list[tuple[str, bytes]]:
    sample, image = _sample(number)
    return [(f"{number}.json", sample), (f"{number}.png", image)]


def _tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _train_rows(root: Path) -> tuple[Any, NDArray[np.int64]]:
    from scaleearth_pl.data.shards import ShardIndex

    index = ShardIndex.load(root)
    return index, index.rows(("train",))


def _flip_in_image(root: Path, *, row: int) -> None:
    index, rows = _train_rows(root)
    number = int(rows[row])
    path = root / index.shards[index.shard_of_row[number]].file
    data = bytearray(path.read_bytes())
    data[int(index.number["image_offset"][number]) + int(index.number["image_size"][number]) // 2] ^= 1
    path.write_bytes(data)


def _forge_json(root: Path, *, row: int, old: bytes, new: bytes) -> None:
    """A forgery that fits the index: checksum and size are made to agree."""
    import zlib

    document = json.loads((root / "index.json").read_text())
    entry = next(e for e in document["shards"] if e["file"] == "train/high/00000.tar")
    data = bytearray((root / entry["file"]).read_bytes())
    start, size = entry["samples"]["json_offset"][row], entry["samples"]["json_size"][row]
    text = bytes(data[start : start + size]).replace(old, new)
    assert len(text) == size and text != data[start : start + size]
    data[start : start + size] = text
    entry["samples"]["json_crc32"][row] = zlib.crc32(text)
    (root / entry["file"]).write_bytes(data)
    (root / "index.json").write_text(json.dumps(document))


def _one_bad(root: Path) -> str:
    """Why the only sample of a foreign corpus cannot be read."""
    from scaleearth_pl.core.errors import SampleError
    from scaleearth_pl.data.images import decode_rgb
    from scaleearth_pl.data.shards import ShardIndex, ShardReader
    from scaleearth_pl.prepare.index import index_foreign

    index_foreign(root)
    index = ShardIndex.load(root)
    sample, data = ShardReader(index).read(0)
    try:
        decode_rgb(data, index.text["ext"][0], size=(sample.width, sample.height), where="x")
    except SampleError as error:
        return str(error)
    return ""
