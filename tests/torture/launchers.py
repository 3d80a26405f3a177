"""Runs whose ranks are started by somebody else: Lightning, torchrun, SLURM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault import Fault, environment
from harness import HERE, Bench
from legs import Run
from processes import LIMIT_S, Process
from stops import newest_step, signalled

PAUSE_S = 0.2


def launched_by_lightning(bench: Bench, kind: str, expected: int) -> float:
    """One command that launches its second rank itself; the other rank is gone with it."""
    run = bench.run(f"p-launcher-{kind}", every=2)
    fault = Fault(out=str(run.out), pause_s=PAUSE_S, **({} if kind == "term" else {"kind": kind, "rank": 1, "step": 4}))
    argv = run.argv(resume=False, world=2)
    env = os.environ | environment(fault) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SCALEEARTH_VERSION": "v0"}
    log = (run.out / "leg1-rank0.log").open("wb")
    main = subprocess.Popen([sys.executable, str(HERE / "child.py"), *argv], env=env, stdout=log, stderr=log)
    with ended(main):
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


def slurm(bench: Bench) -> float:
    """SIGUSR1 before the time limit: saved, requeued by `scontrol`, and the same command goes on to the same end."""
    run = bench.run("p1-slurm", world=2, every=100)
    tools = run.out / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {run.out}/scontrol.log\n')
    (tools / "scontrol").chmod(0o755)
    run.folder = run.folder.with_name("slurm-4711")
    job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
    job |= {"PATH": f"{tools}:{os.environ['PATH']}", "SCALEEARTH_VERSION": "", "SLURM_NNODES": "1"}
    processes = _srun(bench, run, job)
    run.wait_for_step(4, rank=1)
    seconds = signalled(bench, processes, [0, 1], signal.SIGUSR1, [75, 75], run)
    assert (run.out / "scontrol.log").read_text() == "requeue 4711\n"
    again = _srun(bench, run, job | {"SLURM_RESTART_COUNT": "1"})
    assert [p.wait() for p in again] == [0, 0], run.tail()
    run.assert_same_as(bench.reference(world=2))
    return seconds


def _srun(bench: Bench, run: Run, job: dict[str, str]) -> list[Process]:
    """What srun does: one process a task, told by SLURM_PROCID; never `--resume`."""
    run.legs += 1
    argv = run.argv(resume=False, world=2)
    port = str(20000 + os.getpid() % 10000 + run.legs)
    shared = environment(Fault(out=str(run.out), pause_s=PAUSE_S)) | job | {"MASTER_PORT": port}
    ranks = [shared | {"SLURM_PROCID": str(r), "SLURM_LOCALID": str(r), "SLURM_NODEID": "0"} for r in range(2)]
    return [bench.zygote.fork(argv, env, run._log(r), r) for r, env in enumerate(ranks)]


def launched_by_torchrun(bench: Bench) -> None:
    """A rank is killed; torchrun starts all again, and the run goes on in the folder that its id names, to the bit.

    Restarted ranks must not meet the addresses of the dead ones: with torch 2.13's default they share one store and gloo
    waits for ever (seen here; docs/clusters.md).
    """
    run = bench.run("p3-torchrun", world=2)
    run.folder = run.folder.with_name("torchrun-torture-1")
    words = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "1"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "torture-1"]
    env = os.environ | environment(Fault(out=str(run.out), pause_s=PAUSE_S))
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    env.pop("SCALEEARTH_VERSION", None)
    log = (run.out / "leg1-rank0.log").open("wb")
    command = [sys.executable, *words, str(HERE / "child.py"), *run.argv(resume=False, world=2)]
    agent = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    with ended(agent):
        run.wait_for_step(4, rank=1, timeout=600)
        os.kill(run.rows("pids-1")[-1]["pid"], signal.SIGKILL)
        assert agent.wait(300) == 0, run.tail()
    starts = [row["step"] for row in run.rows("pids-0")]
    assert len(starts) == 2 and starts[1] >= 3, f"started at {starts}"
    run.assert_same_as(bench.reference(world=2))


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Ends a launcher, and with it what it launched, where the case fails before it ended by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
