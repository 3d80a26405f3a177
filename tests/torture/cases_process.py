"""P1 to P5: whatever happens to one rank, all leave within 20 s with a status that tells and a checkpoint that holds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from child import Fault, environment
from harness import HERE, LIMIT_S, Bench, Process, Run, case, wait_all

PAUSE_S = 0.2


@case("P1", "SIGTERM to rank 0, to rank 1, to all")
def p1(bench: Bench) -> str:
    """Status 143 everywhere, a checkpoint of the very last step, an exact resume; also during start-up and validation."""
    reference, seconds = bench.reference(world=2), []
    for who in ([0], [1], [0, 1]) if bench.full else ([1],):
        run = bench.run(f"p1-{''.join(map(str, who))}", world=2, every=100)
        processes = run.start(Fault(out=str(run.out), pause_s=PAUSE_S))
        run.wait_for_step(4, rank=1)
        seconds.append(_signal(bench, processes, who, signal.SIGTERM, [143, 143], run))
        assert newest_step(run) == len(run.losses()), "the checkpoint is not of the last step"
        run.finish()
        run.assert_same_as(reference)
    if bench.full:
        seconds += [_while_starting(bench), _launched_by_lightning(bench, "term", 143), *_slurm(bench)]
    return f"all gone with 143 in at most {max(seconds):.1f} s; resumed to the bit"


def _signal(
    bench: Bench, processes: Sequence[Process], who: Sequence[int], number: int, expected: list[int], run: Run
) -> float:
    since = time.time()
    for rank in who:
        processes[rank].send(number)
    return stopped(bench, processes, since, expected, run)


def stopped(bench: Bench, processes: Sequence[Process], since: float, expected: list[int], run: Run) -> float:
    """Waits; asserts statuses and time, and files the time under `clean_stops`; returns seconds."""
    statuses, seconds = wait_all(processes, since)
    assert statuses == expected, f"{statuses} instead of {expected}\n{run.tail()}"
    assert seconds < LIMIT_S, f"{seconds:.1f} s\n{run.tail()}"
    if run.checkpoints.exists():
        newest_step(run)
    bench.figures.setdefault("clean_stops", []).append(round(seconds, 2))
    return seconds


def newest_step(run: Run) -> int:
    """Step of the newest valid checkpoint; fails where there is none."""
    from scaleearth_pl.training.checkpoint_io import newest_valid
    from scaleearth_pl.training.seal import read_seal

    return read_seal(newest_valid(run.checkpoints)).step


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


def _launched_by_lightning(bench: Bench, kind: str, expected: int) -> float:
    """One command that launches its second rank itself; the other rank is gone with it."""
    run = bench.run(f"p-launcher-{kind}", every=2)
    fault = Fault(out=str(run.out), pause_s=PAUSE_S, **({} if kind == "term" else {"kind": kind, "rank": 1, "step": 4}))
    argv = run.argv(resume=False, world=2)
    env = os.environ | environment(fault) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SCALEEARTH_VERSION": "v0"}
    log = (run.out / "leg1-rank0.log").open("wb")
    main = subprocess.Popen([sys.executable, str(HERE / "child.py"), *argv], env=env, stdout=log, stderr=log)
    row = run.wait_for_step(4, rank=1, timeout=600)
    other = run.rows("pids-1")[-1]["pid"]
    since = time.time() if kind == "term" else row["time"]
    if kind == "term":
        os.kill(main.pid, signal.SIGTERM)
    status = main.wait(60)
    while Path(f"/proc/{other}").exists() and time.time() < since + 40:
        time.sleep(0.05)
    seconds = time.time() - since
    assert status == expected, f"{status} instead of {expected}\n{run.tail()}"
    assert seconds < LIMIT_S, f"{seconds:.1f} s\n{run.tail()}"
    bench.figures.setdefault("clean_stops", []).append(round(seconds, 2))
    newest_step(run)
    return seconds


def _slurm(bench: Bench) -> list[float]:
    """SIGUSR1 before the time limit: saved, requeued by `scontrol`, and the same command goes on to the same end."""
    run = bench.run("p1-slurm", world=2, every=100)
    tools = run.out / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {run.out}/scontrol.log\n')
    (tools / "scontrol").chmod(0o755)
    run.folder = run.folder.with_name("slurm-4711")
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
    slurm |= {"PATH": f"{tools}:{os.environ['PATH']}", "SCALEEARTH_VERSION": "", "SLURM_NNODES": "1"}
    processes = _srun(bench, run, slurm)
    run.wait_for_step(4, rank=1)
    seconds = _signal(bench, processes, [0, 1], signal.SIGUSR1, [75, 75], run)
    assert (run.out / "scontrol.log").read_text() == "requeue 4711\n"
    again = _srun(bench, run, slurm | {"SLURM_RESTART_COUNT": "1"})
    assert [p.wait() for p in again] == [0, 0], run.tail()
    run.assert_same_as(bench.reference(world=2))
    return [seconds]


def _srun(bench: Bench, run: Run, slurm: dict[str, str]) -> list[Process]:
    """What srun does: one process a task, told by SLURM_PROCID; never `--resume`."""
    run.legs += 1
    argv = run.argv(resume=False, world=2)
    port = str(20000 + os.getpid() % 10000 + run.legs)
    shared = environment(Fault(out=str(run.out), pause_s=PAUSE_S)) | slurm | {"MASTER_PORT": port}
    ranks = [shared | {"SLURM_PROCID": str(r), "SLURM_LOCALID": str(r), "SLURM_NODEID": "0"} for r in range(2)]
    return [bench.zygote.fork(argv, env, run._log(r), r) for r, env in enumerate(ranks)]


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
        seconds.append(_signal(bench, processes, [0], signal.SIGTERM, [143, 143], hung))
        seconds.append(_launched_by_lightning(bench, "exception", 1))
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
        seconds.append(_launched_by_lightning(bench, "kill", 75))
    return f"the other rank gone in at most {max(seconds):.1f} s; restart exact"


@case("P4", "NaN or infinity on one rank")
def p4(bench: Bench) -> str:
    """All stop at the same step, the ids are in a file, no checkpoint holds the step."""
    detail = []
    for kind, world in (("nan", 2), ("inf", 1)) if bench.full else (("nan", 1),):
        run = bench.run(f"p4-{kind}", world=world)
        processes = run.start(Fault(out=str(run.out), kind=kind, rank=world - 1, step=4, micro=1))
        since = run.wait_for_step(4, rank=world - 1)["time"]
        stopped(bench, processes, since, [2] * world, run)
        assert all("NonFiniteError" in p.text for p in processes), run.tail()
        assert newest_step(run) == 4, "the poisoned step was saved"
        row = json.loads((run.folder / f"nonfinite/step=00000005-rank={world - 1}.json").read_text())
        flags = [micro["loss_is_finite"] for micro in row["micro_batches"]]
        assert flags.index(False) == 1 and flags.count(False) == 1, flags
        read = run.stream(world - 1)[4][1]["trees"]
        named = [[image["image_id"], *image["qa_ids"]] for image in row["micro_batches"][1]["images"]]
        assert named == read, "the dump names other samples than were read"
        run.finish()
        run.assert_same_as(bench.reference(world=world))
        detail.append(f"{kind}: stopped at step 5 on {world} ranks, micro-batch named")
    return "; ".join(detail)


@case("P5", "out of memory on one rank")
def p5(bench: Bench) -> str:
    """A typed stop with the remedy, before the optimizer's half of the step."""
    world = 2 if bench.full else 1
    run = bench.run("p5", world=world)
    processes = run.start(Fault(out=str(run.out), kind="out_of_memory", rank=world - 1, step=4, micro=1))
    since = run.wait_for_step(4, rank=world - 1)["time"]
    seconds = stopped(bench, processes, since, [2] * world, run)
    assert "MemoryExhaustedError" in processes[-1].text and "micro_token_budget" in processes[-1].text, run.tail()
    assert newest_step(run) == 4
    run.finish()
    run.assert_same_as(bench.reference(world=world))
    return f"all gone in {seconds:.1f} s with the remedy; the resumed run is exact"
