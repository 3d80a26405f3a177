"""Bubbles of sources on an axis, and the list beside it: colour and marker by source, area by questions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from scaleearth_pl.core.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from scaleearth_pl.prepare.report.stats import Cell, CorpusStats

SOURCE_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
SOURCE_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LARGEST_BUBBLE = 900.0
"""Area of the largest bubble in square points."""

_SMALLEST_BUBBLE, _RIM_FROM, _LARGEST_IN_LEGEND = 9.0, 40.0, 350.0


class Bubbles:
    """Bubbles of all sources on one axis: the largest source first, and of each its largest cells first.

    Cells of a source too small to be seen are drawn at `_SMALLEST_BUBBLE`; above that, area is proportional to questions.
    """

    def __init__(
        self,
        ax: Any,
        stats: CorpusStats,
        cells: dict[tuple[str, int, int], Cell],
        *,
        largest: float = _LARGEST_BUBBLE,
    ) -> None:
        self.ax, self.cells = ax, cells
        present = {source for source, _, _ in cells}
        self.style = {
            source: (
                SOURCE_COLOURS[k % len(SOURCE_COLOURS)],
                SOURCE_MARKERS[(k + k // len(SOURCE_COLOURS)) % len(SOURCE_MARKERS)],
            )
            for k, source in enumerate(stats.by_source())
            if source in present
        }
        self.scale = largest / max(cell.questions for cell in cells.values())

    def draw(self, place: Callable[[Cell], tuple[float, float]]) -> None:
        """Draws every cell at `place(cell)`, in data coordinates."""
        for source, (colour, marker) in self.style.items():
            cells = sorted((c for (s, _, _), c in self.cells.items() if s == source), key=lambda c: -c.questions)
            x, y = np.array([place(cell) for cell in cells]).T
            areas = [max(_SMALLEST_BUBBLE, cell.questions * self.scale) for cell in cells]
            rims = [0.7 if area > _RIM_FROM else 0.0 for area in areas]
            self.ax.scatter(x, y, s=areas, c=colour, marker=marker, alpha=0.65, edgecolors="white", linewidths=rims)

    def legend(self) -> None:
        """Lists sources with their questions, and two sizes, to the right of the axis."""
        questions = {
            source: sum(c.questions for (s, _, _), c in self.cells.items() if s == source) for source in self.style
        }
        handles = [self.ax.scatter([], [], s=45, c=colour, marker=marker) for colour, marker in self.style.values()]
        labels = [f"{source}  {short_number(n, None)}" for source, n in questions.items()]
        for n in _legend_sizes(_LARGEST_IN_LEGEND / self.scale):
            handles.append(self.ax.scatter([], [], s=n * self.scale, facecolors="none", edgecolors=GREY))
            labels.append(f"{short_number(n, None)} questions")
        self.ax.legend(
            handles,
            labels,
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=8,
            labelspacing=1.3,
            handletextpad=1.2,
        )


def legend_height(cells: dict[tuple[str, int, int], Cell]) -> float:
    """Inches that the list of sources and the two sizes need."""
    return 0.6 + 0.27 * (len({source for source, _, _ in cells}) + 2)


def _legend_sizes(largest: float) -> list[int]:
    """Two round numbers of questions: the power of ten below `largest`, and a tenth of it."""
    top = 10 ** int(np.log10(max(1.0, largest)))
    return [top, top // 10] if top >= 10 else [top]


def short_number(value: float, _: Any) -> str:
    """1,500,000 as "1.5 M"; the second argument is matplotlib's tick number."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
