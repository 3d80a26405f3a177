"""A process that ends when it should: nothing lingers after an error.

After an error Python still terminates and joins loader workers at exit. One that is stopped (a debugger, a frozen
cgroup, a hung file system) hears no SIGTERM: the join would wait for ever, and the worker would outlive the run. They
hold nothing that is worth an orderly end, so they are killed; a timer ends whatever else lingers.
Before training, SIGTERM keeps its default, immediate effect (143 in a shell): there is nothing to save yet, and a Python
handler would wait for a main thread that may be in a rendezvous.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable


def as_process(run: Callable[[], int], *, linger_s: float = 8.0) -> int:
    """Runs `run` as the whole of this process and returns its status; a failing one ends within `linger_s`."""
    status = 0
    try:
        status = run()
    except BaseException as error:
        from scaleearth_pl.training.faults import exit_status

        status = exit_status(error)
        raise
    finally:
        if status:
            end_within(linger_s, status)
            kill_workers()
    return status


def kill_workers() -> None:
    """Kills the processes that this one started through `multiprocessing`: the loaders' workers."""
    for worker in multiprocessing.active_children():
        worker.kill()


def end_within(seconds: float, status: int) -> None:
    """Ends this process with `status` unless it has ended by itself by then."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
