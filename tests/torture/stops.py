"""What every stop has to be: in time, with the status that tells, a valid checkpoint, and nobody left behind."""

import time
from collections.abc import Sequence

from harness import Bench
from legs import Run
from processes import LIMIT_S, Process, survivors, wait_all


def stopped(bench: Bench, processes: Sequence[Process], since: float, expected: list[int], run: Run) -> float:
    """Waits; asserts statuses and time, and files the time under `clean_stops`; returns seconds."""
    statuses, seconds = wait_all(processes, since)
    assert statuses == expected, f"{statuses} instead of {expected}\n{run.tail()}"
    assert seconds < LIMIT_S, f"{seconds:.1f} s\n{run.tail()}"
    until = time.time() + 2
    while (left := [pid for p in processes for pid in survivors(p)]) and time.time() < until:
        time.sleep(0.1)  # a killed worker needs a moment to go
    assert not left, f"processes {left} were left behind\n{run.tail()}"
    if run.checkpoints.exists():
        newest_step(run)
    bench.figures.setdefault("clean_stops", []).append(round(seconds, 2))
    return seconds


def signalled(
    bench: Bench, processes: Sequence[Process], who: Sequence[int], number: int, expected: list[int], run: Run
) -> float:
    since = time.time()
    for rank in who:
        processes[rank].send(number)
    return stopped(bench, processes, since, expected, run)


def newest_step(run: Run) -> int:
    """Step of the newest valid checkpoint; fails where there is none."""
    from scaleearth_pl.training.checkpoint_io import newest_valid
    from scaleearth_pl.training.seal import read_seal

    return read_seal(newest_valid(run.checkpoints)).step
