"""Processes that end with the one that started them, and pools that say when a worker was killed.

A process killed with -9 leaves its children behind, and its end tells them nothing: the manager that datatrove's local
executor forks waits for ever (190 MB, mostly shared), and a worker goes on writing the very part that the resumed build
is writing anew. Linux sends a signal when a parent ends (prctl(2), PR_SET_PDEATHSIG):

    command --fork--> datatrove's manager     armed in the fork (`children_die_with_us`)
            --exec--> worker of a pool        armed by its initializer (`die_with_parent`)
                         --fork--> its own manager, armed in the fork

Price: Linux only; elsewhere such processes must be ended by hand. The signal follows the *thread* that started the
child, so guard and pool belong into the main thread.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from scaleearth_pl.core.errors import WorkerError

_PR_SET_PDEATHSIG = 1
_KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Read by glibc when a process starts: up to a GiB of what it freed stays with it (mallopt(3))."""
_guarded: list[int] = []
"""Process whose forks are armed now; empty outside the guard, so that no other fork is touched."""


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when process `parent`, which started it, ends; without such a call, nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes that end with this one. What has not begun when the block is left is dropped, what has is awaited.

    Not `multiprocessing.Pool`: it puts a new worker in the place of one that was killed, and waits for ever for the task
    that died with it.

    Raises:
        WorkerError: a worker was killed while somebody waited for its result.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed",
            remedy="run the same command again, with fewer workers if memory was short (the kernel's log tells): what "
            "was finished is kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def children_keep_memory() -> Iterator[None]:
    """Programs started inside keep the memory that they free, unless the environment says otherwise already.

    Left to itself glibc gives an array of a megabyte back to the kernel after each use and takes it anew, page by page:
    31 of the 178 CPU seconds in which the procedural corpus is drawn, 1 with this; 3 % of a short training. Linux with
    glibc only.
    """
    added = {name: value for name, value in _KEEP.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def children_die_with_us() -> Iterator[None]:
    """Every process forked inside dies with this one."""
    _guarded.append(os.getpid())
    try:
        yield
    finally:
        _guarded.pop()


def _in_child() -> None:
    if _guarded:
        die_with_parent(_guarded[-1])
        _guarded.clear()


os.register_at_fork(after_in_child=_in_child)
