"""Answerers that see the question, sometimes the GSD, and never an image: what floors are made of.

`LookUp` gives the commonest answer of train in a cell of question and GSD bin. `PowerLaw` is for answers that are
quantities: it fits log10(answer) = a + b log10(GSD) per question (b = 1 is an extent, b = 2 an area, b = -1 a length in
pixels) and says the nearest answer that train or the options hold. Without it an answer that follows smoothly from the
GSD would look unguessable to a table merely because each value is rare.
"""

import bisect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np

from scaleearth_pl.evaluation.question_tables import QuestionRow

Key = tuple[Hashable, ...]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(?:\s*(cm|km2|km|m2|m|ha)\b)?")
_UNITS = {"cm": 0.01, "m": 1.0, "km": 1e3, "m2": 1.0, "ha": 1e4, "km2": 1e6}
"""In metres and square metres: "50 cm" is half of "1 m", not fifty times as much."""


class Answerer(Protocol):
    """Answers one question from at least `support` train questions like it; None where it cannot."""

    name: str

    def answer(self, row: QuestionRow, support: int) -> str | None:
        """The answer text."""
        ...


class LookUp:
    """Counts of train's answers in cells of question and GSD bin of `bin_width` decades (None: blind to the GSD).

    It backs off from the exact text to the text without its numbers to the type, each inside the bin before without.
    """

    def __init__(self, train: Sequence[QuestionRow], bin_width: float | None) -> None:
        self.bin_width = bin_width
        self.name = "commonest answer" if bin_width is None else f"commonest answer in bins of {bin_width:g} decades"
        self.cells: dict[Key, Counter[str]] = defaultdict(Counter)
        for row in train:
            for key in self._keys(row):
                self.cells[key][row.answer] += 1

    def answer(self, row: QuestionRow, support: int) -> str | None:
        """The commonest answer of the finest cell with `support` questions; None if train never saw the type.

        Where a question has options only they are allowed; without any knowledge of them the first is taken.
        """
        for key in self._keys(row):
            counts = self.cells.get(key)
            if counts is None or counts.total() < support:
                continue
            allowed = counts if row.options is None else {o: counts[o] for o in row.options if o in counts}
            if allowed:
                return min(allowed, key=lambda a: (-allowed[a], a))
        return row.options[0] if row.options else None

    def _keys(self, row: QuestionRow) -> list[Key]:
        levels: list[Key] = [(row.type, row.question, row.options), (row.type, row.question), _template(row)]
        levels.append((row.type,))
        if self.bin_width is None or row.log10_gsd is None:
            return levels
        binned = math.floor(row.log10_gsd / self.bin_width)
        return [key for level in levels for key in ((binned, level), level)]


class PowerLaw:
    """log10(answer) = a + b log10(GSD), least squares per question template; b = 0 where `use_gsd` is False."""

    def __init__(self, train: Sequence[QuestionRow], *, use_gsd: bool) -> None:
        self.use_gsd = use_gsd
        self.name = "power law of the GSD" if use_gsd else "mean of log answer"
        points: dict[Key, list[tuple[float, float]]] = defaultdict(list)
        texts: dict[Key, dict[float, str]] = defaultdict(dict)
        for row in train:
            size = _log10_number(row.answer)
            if size is not None and row.log10_gsd is not None:
                points[_template(row)].append((row.log10_gsd, size))
                texts[_template(row)].setdefault(size, row.answer)
        self.counts = {key: len(rows) for key, rows in points.items()}
        self.laws = {key: _fit(np.array(rows), use_gsd) for key, rows in points.items()}
        self.texts = {key: sorted(seen.items()) for key, seen in texts.items()}

    def answer(self, row: QuestionRow, support: int) -> str | None:
        """The answer nearest to the law in log space, of the options or else of train's; None without a law."""
        key = _template(row)
        if row.log10_gsd is None or self.counts.get(key, 0) < max(support, 2):
            return None
        intercept, slope = self.laws[key]
        size = intercept + slope * row.log10_gsd
        if row.options is None:
            known = self.texts[key]
            at = bisect.bisect(known, (size, ""))
            return min(known[max(0, at - 1) : at + 1], key=lambda item: abs(item[0] - size))[1]
        sizes = {option: number for option in row.options if (number := _log10_number(option)) is not None}
        return min(sizes, key=lambda option: abs(sizes[option] - size)) if sizes else None


def _template(row: QuestionRow) -> Key:
    return row.type, "#", _NUMBER.sub("#", row.question)


def _log10_number(text: str) -> float | None:
    match = _QUANTITY.search(text)
    return math.log10(float(match[1]) * _UNITS.get(match[2], 1.0)) if match and float(match[1]) > 0 else None


def _fit(points: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", use_gsd: bool) -> tuple[float, float]:
    x, y = points[:, 0], points[:, 1]
    spread = float(((x - x.mean()) ** 2).sum())
    if not use_gsd or spread == 0:
        return float(y.mean()), 0.0
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    return float(y.mean() - slope * x.mean()), slope
