"""R1 to R7: a run that was killed and went on is the run that never was, to the bit; anything else is refused by name."""

import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fault import Fault
from harness import Bench, case
from legs import EPOCH, Run

Reading = dict[int, list[Any]]


@case("R1", "kill -9 at a random moment, workers 0-2, dropout, accumulation")
def r1(bench: Bench) -> str:
    """Random runs with up to five kills at random moments each, one in eight of stage 1."""
    wanted = 100 if bench.full else 2
    rng = random.Random(0)
    for stage in ("stage2", "stage1") if bench.full else ("stage2",):
        bench.reference(stage=stage)
    done: list[tuple[int, float]] = []
    with ThreadPoolExecutor(2) as pool:
        while (kills := sum(k for k, _ in done)) < wanted:
            seeds = [rng.randrange(1 << 30) for _ in range(2 if bench.full else 1)]
            done += pool.map(lambda job: _random_run(bench, *job), [*enumerate(seeds, start=len(done))])
    worst = max(dw for _, dw in done)
    bench.figures["exact_resumes"] = {"kills": kills, "runs": len(done), "max_abs_dw": worst, "same_stream": True}
    return f"{kills} kills in {len(done)} runs: max |dw| = {worst}; optimizer, schedule, callbacks, stream equal to the bit"


def _random_run(bench: Bench, number: int, seed: int) -> tuple[int, float]:
    """(kills, max |dw|) of one run; fails where anything is not equal to the bit."""
    rng = random.Random(seed)
    stage = "stage1" if bench.full and rng.random() < 0.125 else "stage2"
    workers = rng.choice([0, 1, 2]) if bench.full else 0
    run = bench.run(f"r1-{number}", stage=stage, workers=workers, every=rng.choice([1, 2]))
    kills = 0
    for _ in range(rng.randint(1, 5) if bench.full else 2):
        (process,) = run.start(Fault(out=str(run.out), pause_s=0.04))
        _wait_for_training(run, process)
        process.over.wait(rng.uniform(0.0, 2.0))
        if process.status is None:
            process.send(signal.SIGKILL)
        if process.wait() == 0:
            break
        assert process.status == -signal.SIGKILL, run.tail()
        kills += 1
    if not (run.out / "final-0.pt").exists():
        run.finish()
    run.assert_same_as(bench.reference(stage=stage))
    worst = run.max_abs_dw(bench.reference(stage=stage))
    shutil.rmtree(run.out)
    return kills, worst


def _wait_for_training(run: Run, process: Any) -> None:
    until = time.time() + 300
    while process.status is None and time.time() < until:
        if any(row["pid"] == process.pid for row in run.rows("pids-0")):
            return
        time.sleep(0.01)


@case("R2", "two, then five kills in one epoch")
def r2(bench: Bench) -> str:
    """At the beginning of a step and between two micro-batches, in the second epoch."""
    points = [(EPOCH, "kill"), (EPOCH + 1, "kill_in_accumulation")]
    more = [(EPOCH, "kill"), (EPOCH, "kill_in_accumulation"), (EPOCH + 1, "kill")]
    more += [(EPOCH + 1, "kill_in_accumulation"), (EPOCH + 2, "kill_in_accumulation")]
    for name, kills in (("two", points), ("five", more)) if bench.full else (("two", points),):
        run = bench.run(f"r2-{name}")
        for step, kind in kills:
            _killed(run, Fault(out=str(run.out), kind=kind, step=step))
        run.finish()
        run.assert_same_as(bench.reference())
    return "equal to the bit"


@case("R3", "kill inside gradient accumulation")
def r3(bench: Bench) -> str:
    """Before the second micro-batch's backward: the step is taken again, from its beginning."""
    run = bench.run("r3")
    _killed(run, Fault(out=str(run.out), kind="kill_in_accumulation", step=4, micro=1))
    run.finish()
    run.assert_same_as(bench.reference())
    taken = [row["step"] for row in run.rows("stream-0")]
    assert taken == [*range(5), *range(4, run.steps)], taken
    return "resumed at the last optimizer step, which alone was repeated"


@case("R4", "kill during validation")
def r4(bench: Bench) -> str:
    """Validation runs once in full after the resume; the train stream does not move."""
    extra = ("--data.val_splits", "[val,test]", "--data.micro_token_budget", "330")
    reference = bench.reference(extra=extra)
    whole = [(row["step"], row["batch"]) for row in reference.rows("validation-0")]
    batches = sum(step == 6 for step, _ in whole)
    assert batches > 1, "the case needs a validation of several batches"
    run = bench.run("r4", extra=extra)
    _killed(run, Fault(out=str(run.out), kind="kill_in_validation", step=6, micro=1))
    run.finish()
    run.assert_same_as(reference)
    rows = run.rows("validation-0")
    last = [(row["step"], row["batch"]) for row in rows if row["pid"] == rows[-1]["pid"]]
    assert last == [entry for entry in whole if entry[0] >= 6], last
    return f"all {batches} batches once, by the resumed process"


@case("R5", "resume with another number of ranks or workers")
def r5(bench: Bench) -> str:
    """1 -> 2 and 2 -> 1 ranks, 0 -> 2 workers: the same global batches in the same order."""
    expected = global_batches(bench.reference())
    for before, after, workers in ((1, 2, 0), (2, 1, 0), (1, 1, 2)) if bench.full else ((1, 1, 2),):
        run = bench.run(f"r5-{before}-{after}-{workers}", world=before)
        statuses = [p.wait() for p in run.start(Fault(out=str(run.out), kind="kill", step=4))]
        assert statuses[0] == -signal.SIGKILL and statuses[1:] == [75] * (before - 1), (statuses, run.tail())
        run.workers = workers
        run.finish(world=after)
        run.world = max(before, after)
        assert global_batches(run) == expected, f"{before} -> {after}"
    return "same global batches at every step"


def global_batches(run: Run) -> Reading:
    """Trees of each step over all ranks, whatever rank and micro-batch they were in."""
    found: Reading = {}
    for rank in range(run.world):
        for row in run.rows(f"stream-{rank}"):
            trees = [tree for micro in row["read"] if not micro["filler"] for tree in micro["trees"]]
            found.setdefault(row["step"], []).append((row["time"], trees))
    return {step: sorted(tree for _, trees in _latest(rows) for tree in trees) for step, rows in sorted(found.items())}


def _latest(rows: list[Any]) -> list[Any]:
    """The rows of a step that were written together last (ranks begin a step within a second of each other)."""
    newest = max(when for when, _ in rows)
    return [row for row in rows if row[0] > newest - 1.0]


@case("R6", "resume with changed data, weights or seed")
def r6(bench: Bench) -> str:
    """Each is refused with the field's name, before a step is taken."""
    from fakes.corpus import make_fake_corpus

    run = bench.run("r6")
    _killed(run, Fault(out=str(run.out), kind="kill", step=2))
    other = make_fake_corpus(run.out / "other", seed=1)
    changes = {
        "seed": ("--data.seed", "2"),
        "tier_weights": ("--data.tier_weights", "{high: 2.0}"),
        "index_hash": ("--data.root", str(other)),
        "global_batch_tokens": ("--data.global_batch_tokens", "700"),
        "seed_everything": ("--seed_everything", "2"),
        "trained parameters": ("--model.init_args.head", "null"),
    }
    before = len(run.rows("stream-0"))
    for field, extra in changes.items():
        (process,) = run.start(extra=extra)
        assert process.wait() == 2, (field, run.tail())
        assert "CheckpointError" in process.text and field in process.text, (field, process.text[-800:])
    assert len(run.rows("stream-0")) == before
    run.finish()
    run.assert_same_as(bench.reference())
    return f"{len(changes)} changes refused by name ({', '.join(changes)})"


@case("R7", "hand-over from stage 1 to stage 2, killed in between")
def r7(bench: Bench) -> str:
    """No half-written `hf/` is ever there; stage 2 starts from the folder that stage 1 ends in, once."""
    from scaleearth_pl.model.adapter_files import base_hash
    from scaleearth_pl.model.adapter_io import load_adapter

    first, whole = bench.run("r7", stage="stage1", steps=3), bench.run("r7-whole", stage="stage1", steps=3)
    product = first.folder / "hf"
    _killed(first, Fault(out=str(first.out), kind="kill_in_product"))
    assert not product.exists(), "a half-written folder"
    (early,) = bench.run("r7-early", extra=("--model.init_args.init_from", str(product))).start()
    assert early.wait() == 2 and "run stage 1 first" in early.text, early.text[-800:]
    first.finish()
    whole.finish()
    assert base_hash(str(product)) == base_hash(str(whole.folder / "hf")), "stage 1 ended in other weights"
    second = bench.run("r7-second", extra=("--model.init_args.init_from", str(product)))
    _killed(second, Fault(out=str(second.out), kind="kill", step=1))
    second.finish()
    adapter = load_adapter(second.folder / "adapter", base_hash=base_hash(str(product)))
    assert adapter.meta.base_path == str(product)
    assert [row["step"] for row in second.rows("stream-0")] == [0, 1, *range(1, second.steps)]
    return "stage 2 started from the complete folder, whose hash is in the adapter"


def _killed(run: Run, fault: Fault) -> None:
    for process in run.start(fault):
        assert process.wait() == -signal.SIGKILL, run.tail()
