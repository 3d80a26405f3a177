"""How processes end: no rank outlives another, no worker its run, and the status is the one that was meant."""

import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scaleearth_pl.training.peer_watch import PeerWatch
from scaleearth_pl.training.process import as_process


def watched(rank: int, port: int, act: str, both: Any) -> None:
    """One of two ranks, in a process of its own."""
    watch = PeerWatch(rank=rank, world_size=2, address=("127.0.0.1", port), silence_s=3, grace_s=2)
    watch.start()
    # Not through the store: rank 0 hosts it, and a main thread in one of its calls raises when rank 0 is killed.
    both.wait(30)
    if rank == 1 and act == "fail":
        watch.fail(42, "a reason")
    if act == "part":
        time.sleep(0.5 * rank)
        watch.stop()
        os._exit(0)
    if rank == 1 and act == "deadline":
        watch.leave_within(143, "SIGTERM", 0.1)
    if act == f"kill{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and act == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


ENDS = {
    "fail": [42, 42],
    "deadline": [143, 143],
    "part": [0, 0],
    "kill1": [75, -9],
    "kill0": [-9, 75],
    "stop": [75, None],
}
"""Exit statuses of two ranks by what happens to one of them; None has not ended."""


@pytest.fixture(scope="module")
def ended() -> dict[str, list[int | None]]:
    """What became of a pair of ranks for each act, all pairs at once: they wait, and compute nothing."""
    context = mp.get_context("fork")
    pairs = {}
    for act, port in zip(ENDS, free_ports(len(ENDS)), strict=True):
        both = context.Barrier(2)
        pairs[act] = [context.Process(target=watched, args=(rank, port, act, both)) for rank in range(2)]
    every = [rank for pair in pairs.values() for rank in pair]
    try:
        for rank in every:
            rank.start()
        for act, pair in pairs.items():
            for rank, status in zip(pair, ENDS[act], strict=True):
                rank.join(30 if status is not None else 0)
        return {act: [rank.exitcode for rank in pair] for act, pair in pairs.items()}
    finally:
        for rank in every:
            rank.kill()


def free_ports(n: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.mark.slow
@pytest.mark.parametrize("act", ENDS)
def test_no_rank_outlives_the_other(ended: dict[str, list[int | None]], act: str) -> None:
    assert ended[act] == ENDS[act]


def with_a_stopped_worker(pids: Any) -> None:
    """A process that fails while a worker of its loader stands still."""

    def fail() -> int:
        worker = mp.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        pids.put(worker.pid)
        raise ValueError("bug")

    as_process(fail, linger_s=20)


def test_a_worker_that_stands_still_does_not_outlive_an_error() -> None:
    context = mp.get_context("fork")
    pids = context.SimpleQueue()
    process = context.Process(target=with_a_stopped_worker, args=(pids,))
    process.start()
    worker = pids.get()
    process.join(15)
    assert process.exitcode == 1
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


ABORTS_AT_EXIT = """
import ctypes, sys
from scaleearth_pl.core.errors import PeerLostError
from scaleearth_pl.training.process import as_process
libc = ctypes.CDLL(None)
destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: libc.abort())
getattr(libc, "__cxa_atexit")(destructor, None, None)  # as a process group's own aborts where its peer is gone
def fail(): raise PeerLostError("gone")
sys.exit(as_process(fail if sys.argv[1] == "error" else lambda: 75))
"""


@pytest.mark.parametrize("way", ["error", "status"])
def test_a_destructor_that_aborts_does_not_change_the_status(way: str) -> None:
    done = subprocess.run([sys.executable, "-c", ABORTS_AT_EXIT, way], capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    assert ("PeerLostError: gone" in done.stderr) == (way == "error")


ENDS_WELL = """
import atexit, sys, threading, time
from scaleearth_pl.training.process import as_process
class Slow:
    def __del__(self): time.sleep(60)  # what Python would do with the modules before it ends
keep = Slow()
def later(): time.sleep(0.3); print("thread")
atexit.register(print, "exit function")
def run(): threading.Thread(target=later).start(); print("run"); return 0
as_process(run)
"""


def test_a_success_waits_for_threads_and_exit_functions_and_for_nothing_else() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ENDS_WELL], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["run", "thread", "exit function", ""])
    assert 0.3 < time.monotonic() - started < 40


def test_a_success_that_could_not_be_printed_is_none() -> None:
    with Path("/dev/full").open("w") as full:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run([sys.executable, "-c", ENDS_WELL], stdout=full, check=False, timeout=50, env=buffered)
    assert done.returncode == 120
