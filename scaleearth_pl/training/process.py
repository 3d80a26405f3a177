"""A process that ends when it should, with the status that it should: nothing lingers or speaks up after an error.

After an error Python still terminates and joins loader workers at exit. One that is stopped (a debugger, a frozen
cgroup, a hung file system) hears no SIGTERM: the join would wait for ever, and the worker would outlive the run. They
hold nothing that is worth an orderly end, so they are killed; a timer ends whatever else lingers. Python's own exit
functions run, C++ destructors do not: that of a process group whose peer is gone finds its thread still alive and aborts
the process (seen with gloo: SIGABRT in the place of 75, which asks to be resumed).

A success ends the same way, once its threads are through: Python would take the modules apart first, 2.6 s for ours.
Before training, SIGTERM keeps its default, immediate effect (143 in a shell): there is nothing to save yet, and a Python
handler would wait for a main thread that may be in a rendezvous.
"""

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

_writing = 0
"""How many results of this process are being written."""


def as_process(run: Callable[[], int], *, linger_s: float = 8.0) -> NoReturn:
    """Runs `run` as the whole of this process, and ends it; with a failure's status within `linger_s`."""
    try:
        status = run()
    except BaseException as error:
        from scaleearth_pl.training.faults import exit_status

        status = exit_status(error)
        show(error)
    if status:
        end_within(linger_s, status)
    else:
        threading._shutdown()  # type: ignore[attr-defined]  # joins what is no daemon, as Python's own end
    kill_workers()
    atexit._run_exitfuncs()
    flush_and_exit(status)


@contextmanager
def writing() -> Iterator[None]:
    """A checkpoint or a result is on its way to the disk: a request to stop waits for it, as long as it takes."""
    global _writing
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1


def is_writing() -> bool:
    """True inside `writing`, seen from any thread and from signal handlers."""
    return _writing > 0


def show(error: BaseException) -> None:
    """What Python prints of an error that nobody caught; of `sys.exit`, its message."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(error.code, str):
        sys.stderr.write(f"{error.code}\n")


def kill_workers() -> None:
    """Kills the processes that this one started through `multiprocessing`: the loaders' workers."""
    for worker in multiprocessing.active_children():
        worker.kill()


def end_within(seconds: float, status: int) -> None:
    """Ends this process with `status` unless it has ended by itself by then."""
    timer = threading.Timer(seconds, flush_and_exit, args=[status])
    timer.daemon = True
    timer.start()


def flush_and_exit(status: int) -> NoReturn:
    """Leaves at once, with all that was printed; a success whose output went nowhere is none (120, as Python's own)."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        status = status or 120
    finally:
        os._exit(status)
