"""P1 to P5: whatever happens to one rank, all leave within 20 s with a status that tells and a checkpoint that holds."""

import json
import signal
import time

from fault import Fault
from harness import Bench, case
from launchers import PAUSE_S, launched_by_lightning, launched_by_torchrun, slurm
from processes import LIMIT_S, wait_all
from stops import newest_step, signalled, stopped

TWO_MICRO_BATCHES = {1: 4, 2: 7}
"""By world size, a step in which the last rank has two micro-batches; without a second one its fault would not strike."""


@case("P1", "SIGTERM to rank 0, to rank 1, to all, to workers as well")
def p1(bench: Bench) -> str:
    """Status 143 everywhere, a checkpoint of the very last step, an exact resume; also during start-up and validation."""
    reference, seconds = bench.reference(world=2), []
    for who in ([0], [1], [0, 1]) if bench.full else ([1],):
        run = bench.run(f"p1-{''.join(map(str, who))}", world=2, every=100)
        processes = run.start(Fault(out=str(run.out), pause_s=PAUSE_S))
        run.wait_for_step(4, rank=1)
        seconds.append(signalled(bench, processes, who, signal.SIGTERM, [143, 143], run))
        assert newest_step(run) == len(run.losses()), "the checkpoint is not of the last step"
        run.finish()
        run.assert_same_as(reference)
    if bench.full:
        seconds.append(_with_workers(bench))
        seconds += [_while_starting(bench), launched_by_lightning(bench, "term", 143), slurm(bench)]
    return f"all gone with 143 in at most {max(seconds):.1f} s; resumed to the bit"


def _with_workers(bench: Bench) -> float:
    """The signal of `timeout` and systemd, which reaches the loaders' workers, too."""
    run = bench.run("p1-workers", world=2, every=100, workers=1)
    processes = run.start(Fault(out=str(run.out), pause_s=PAUSE_S))
    run.wait_for_step(4, rank=1)
    since = time.time()
    workers = [process.send_to_family(signal.SIGTERM) for process in processes]
    assert min(workers) > 0, "no worker was there"
    seconds = stopped(bench, processes, since, [143, 143], run)
    assert newest_step(run) == len(run.losses()), "the checkpoint is not of the last step"
    return seconds


def _while_starting(bench: Bench) -> float:
    run = bench.run("p1-start", world=2)
    processes = run.start()
    while not (run.folder / "config.yaml").exists() and not processes[0].over.is_set():
        time.sleep(0.01)  # from here on ranks watch one another; before, that is the launcher's business
    since = time.time()
    processes[1].send(signal.SIGTERM)
    statuses, seconds = wait_all(processes, since)
    # Either side of the moment at which rank 1 takes the signal over: -15 is 143 in a shell, 75 says that it is gone.
    assert statuses in ([143, 143], [75, -signal.SIGTERM], [143, -signal.SIGTERM]), (statuses, run.tail())
    assert seconds < LIMIT_S, f"{seconds:.1f} s"
    return seconds


@case("P2", "exception on one rank")
def p2(bench: Bench) -> str:
    """The other rank does not wait in a barrier; both say why."""
    run = bench.run("p2", world=2)
    processes = run.start(Fault(out=str(run.out), kind="exception", rank=1, step=4))
    since = run.wait_for_step(4, rank=1)["time"]
    seconds = [stopped(bench, processes, since, [1, 1], run)]
    assert "a bug on one rank" in processes[1].text and "rank 1: ValueError" in processes[0].text, run.tail()
    if bench.full:
        hung = bench.run("p2-hang", world=2)
        processes = hung.start(Fault(out=str(hung.out), kind="hang", rank=1, step=4))
        hung.wait_for_step(4, rank=1)
        seconds.append(signalled(bench, processes, [0], signal.SIGTERM, [143, 143], hung))
        seconds.append(launched_by_lightning(bench, "exception", 1))
    return f"all gone in at most {max(seconds):.1f} s"


@case("P3", "kill -9 of one rank")
def p3(bench: Bench) -> str:
    """The other rank leaves with 75 (try again); the restart is exact."""
    reference, seconds = bench.reference(world=2), []
    for rank in (0, 1) if bench.full else (1,):
        run = bench.run(f"p3-{rank}", world=2)
        processes = run.start(Fault(out=str(run.out), kind="kill", rank=rank, step=4))
        since = run.wait_for_step(4, rank=rank)["time"]
        expected = [75, 75]
        expected[rank] = -signal.SIGKILL
        seconds.append(stopped(bench, processes, since, expected, run))
        run.finish()
        run.assert_same_as(reference)
    if bench.full:
        stopped_run = bench.run("p3-stopped", world=2)
        processes = stopped_run.start(Fault(out=str(stopped_run.out), pause_s=PAUSE_S))
        stopped_run.wait_for_step(4, rank=1)
        since = time.time()
        processes[1].send(signal.SIGSTOP)
        assert processes[0].wait(40) == 75, stopped_run.tail()
        seconds.append(time.time() - since)
        processes[1].send(signal.SIGKILL)
        assert seconds[-1] < LIMIT_S, seconds
        seconds.append(launched_by_lightning(bench, "kill", 75))
        launched_by_torchrun(bench)
    return f"the other rank gone in at most {max(seconds):.1f} s; restart exact, torchrun's own too"


@case("P4", "NaN or infinity on one rank")
def p4(bench: Bench) -> str:
    """All stop at the same step, the ids are in a file, no checkpoint holds the step."""
    detail = []
    for kind, world in (("nan", 2), ("inf", 1)) if bench.full else (("nan", 1),):
        run, step = bench.run(f"p4-{kind}", world=world), TWO_MICRO_BATCHES[world]
        processes = run.start(Fault(out=str(run.out), kind=kind, rank=world - 1, step=step, micro=1))
        since = run.wait_for_step(step, rank=world - 1)["time"]
        stopped(bench, processes, since, [2] * world, run)
        assert all("NonFiniteError" in p.text for p in processes), run.tail()
        assert newest_step(run) == step, "the poisoned step was saved"
        row = json.loads((run.folder / f"nonfinite/step={step + 1:08d}-rank={world - 1}.json").read_text())
        flags = [micro["loss_is_finite"] for micro in row["micro_batches"]]
        assert flags.index(False) == 1 and flags.count(False) == 1, flags
        read = run.stream(world - 1)[step][1]["trees"]
        named = [[image["image_id"], *image["qa_ids"]] for image in row["micro_batches"][1]["images"]]
        assert named == read, "the dump names other samples than were read"
        run.finish()
        run.assert_same_as(bench.reference(world=world))
        detail.append(f"{kind}: stopped at step {step + 1} on {world} ranks, micro-batch named")
    return "; ".join(detail)


@case("P5", "out of memory on one rank")
def p5(bench: Bench) -> str:
    """A typed stop with the remedy, before the optimizer's half of the step."""
    world = 2 if bench.full else 1
    run, step = bench.run("p5", world=world), TWO_MICRO_BATCHES[world]
    processes = run.start(Fault(out=str(run.out), kind="out_of_memory", rank=world - 1, step=step, micro=1))
    since = run.wait_for_step(step, rank=world - 1)["time"]
    seconds = stopped(bench, processes, since, [2] * world, run)
    assert "MemoryExhaustedError" in processes[-1].text and "micro_token_budget" in processes[-1].text, run.tail()
    assert newest_step(run) == step
    run.finish()
    run.assert_same_as(bench.reference(world=world))
    return f"all gone in {seconds:.1f} s with the remedy; the resumed run is exact"
