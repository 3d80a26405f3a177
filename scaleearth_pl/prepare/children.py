"""Children that die with their parent, so that a build killed with -9 leaves nobody behind who writes on.

datatrove's local executor forks a manager, and the engine starts workers. The end of the process that started them tells
them nothing: the manager waits for ever (190 MB, mostly shared), and a worker goes on writing the very part that the
resumed build is writing anew. Linux sends a signal when a parent ends (prctl(2), PR_SET_PDEATHSIG):

    build --fork--> manager          armed in the fork (`children_die_with_us`)
          --exec--> worker           armed by its initializer (`die_with_parent`)
                       --fork--> its own manager, armed in the fork

Price: Linux only; elsewhere such processes must be ended by hand. The signal follows the *thread* that forked, so the
guard belongs around a call of the main thread.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_guarded: list[int] = []
"""Process whose forks are armed now; empty outside the guard, so that no other fork is touched."""


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when process `parent`, which started it, ends; without such a call, nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)


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
