"""A process that ends when it should: nothing lingers after an error.

After an error Python still joins loader workers at exit, which waits for ever on one that is stopped; a timer ends that.
Before training, SIGTERM keeps its default, immediate effect (143 in a shell): there is nothing to save yet, and a Python
handler would wait for a main thread that may be in a rendezvous.
"""

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
    return status


def end_within(seconds: float, status: int) -> None:
    """Ends this process with `status` unless it has ended by itself by then."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
