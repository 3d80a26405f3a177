"""A process that ends when it should: SIGTERM before training has a status, and nothing lingers after an error.

Before the first step there is nothing to save, so SIGTERM simply ends the process (143, as everywhere). After an error
Python still joins loader workers at exit, which waits for ever on one that is stopped; a timer ends that.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType


def as_process(run: Callable[[], int], *, linger_s: float = 8.0) -> int:
    """Runs `run` as the whole of this process and returns its status; a failing one ends within `linger_s`."""
    signal.signal(signal.SIGTERM, _terminate)
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


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)
