"""Fair clocks on a noisy machine: contenders take turns, medians decide, ratios are taken within a round.

A host that others share slows everybody by a factor that changes over minutes. Interleaving puts each contender next to
every other in time, so the *ratio* of two medians holds even where neither absolute figure does. With one thread the
clock is the processor's time for this process, which does not run while others do; on an idle machine it is the wall
clock. With more threads it is the wall clock, since waiting threads spin; on a GPU the wall clock after synchronising.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch


def now() -> float:
    """Seconds by the fair clock; see the module's docstring."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def clock_name() -> str:
    """What `now` reads, for the record."""
    return "wall" if torch.cuda.is_available() or torch.get_num_threads() > 1 else "cpu time of one thread"


def that_fit(work: dict[str, Callable[[], int]]) -> dict[str, Callable[[], int]]:
    """Removes what runs out of memory in a first turn, and says so: one contender must not cost the others' figures."""
    for name, turn in [*work.items()]:
        try:
            turn()
        except torch.OutOfMemoryError as error:
            del work[name]
            sys.stderr.write(f"{name} left out: {str(error).splitlines()[0]}\n")
            torch.cuda.empty_cache()
    return work


def interleave(work: Mapping[str, Callable[[], int]], *, rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Runs every contender once a round, in turn; the order is reversed in every second round.

    Args:
        work: by name, a function that does some work and returns how many questions it answered.
        rounds: repetitions.
        warm_up: one uncounted run of each before.

    Returns:
        Seconds per question of every round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for name in work if warm_up else ():
        work[name]()
    for turn in range(rounds):
        names = list(work) if turn % 2 == 0 else list(work)[::-1]
        for name in names:
            gc.collect()
            start = now()
            count = work[name]()
            seconds[name].append((now() - start) / count)
    return seconds


def rates(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Questions per second by the median round."""
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """How many times `base`'s time `name` needs: the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def spread(values: list[float]) -> float:
    """Half the interquartile range over the median: how far to trust a figure."""
    if len(values) < 3:
        return float("nan")
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)


class Laps:
    """Time between marks."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """A lap ends here, and the next begins."""
        self._marks.append(now())

    def clear(self) -> None:
        """Forgets all laps."""
        self._marks.clear()

    def median(self) -> float:
        """Median seconds between marks; the time before the first mark (start-up) is not counted."""
        laps = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return statistics.median(laps)
