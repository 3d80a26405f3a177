"""The three panels of the paper's Figure 2, for any corpus: landscape, composition, coverage.

Colours are Okabe and Ito's; a source also has its own marker, a tier its own hatching, so that neither needs colour.
Areas of bubbles are proportional to questions: twice the questions, twice the ink.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

from scaleearth_pl.core.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    gsd_axis,
    new_figure,
)
from scaleearth_pl.core.gsd import Tier, TierBoundaries
from scaleearth_pl.prepare.report.bubbles import Bubbles, legend_height, short_number
from scaleearth_pl.prepare.report.stats import Cell, CorpusStats

TIER_STYLES = {"high": (VERMILION, ""), "mid": (ORANGE, "//"), "low": (BLUE, ".."), "unknown": (GREY, "xx")}
FAMILY_COLOURS = {
    "identification": SKY,
    "scale_specific": VERMILION,
    "discriminative": GREEN,
    "other": GREY,
}


def landscape(stats: CorpusStats, boundaries: TierBoundaries) -> Figure:
    """Sources on the plane of native GSD and image side, one bubble a cell of 0.1 x 0.1 decades, area = questions."""
    figure, (ax,) = new_figure(panel_size=(8.4, max(4.8, legend_height(stats.landscape))))
    positions = np.array([cell.position for cell in stats.landscape.values()]).reshape(-1, 2)
    if not len(positions):
        return _empty(figure, ax, "no image of this corpus has a known GSD")
    scatter = Bubbles(ax, stats, stats.landscape)
    scatter.draw(lambda cell: (10 ** cell.position[0], 10 ** cell.position[1]))
    low, high = 10 ** (positions[:, 0].min() - 0.35), 10 ** (positions[:, 0].max() + 0.35)
    low, high = min(low, boundaries.high_below_m / 2), max(high, boundaries.mid_below_m * 2)
    gsd_axis(ax, "x", label="native GSD", limits_m=(low, high))
    _side_axis(ax, 10 ** positions[:, 1])
    _tier_lines(ax, boundaries, (low, high))
    unknown = sum(stats.unknown_gsd.values())
    note = f"; {unknown:,} of unknown GSD are not shown" if unknown else ""
    ax.set_title(f"{stats.n_questions - unknown:,} questions by source{note}", loc="left", fontsize=10, pad=18)
    scatter.legend()
    return figure


def composition(stats: CorpusStats) -> Figure:
    """Left: questions by source, split into tiers. Right: each tier's mix of question families."""
    sources = stats.by_source()
    height = max(3.2, 1.6 + 0.34 * len(sources))
    figure, (left, right) = new_figure(2, panel_size=(5.2, height))
    tiers = [t for t in map(str, Tier) if stats.total(stats.questions, tier=t)]
    table = [[stats.total(stats.questions, source=s, tier=t) for s in sources] for t in tiers]
    colours = [TIER_STYLES[tier] for tier in tiers]
    _stacked(left, sources, table, colours)
    _label_ends(left, np.sum(table, axis=0))
    left.set_xlabel("questions")
    left.xaxis.set_major_formatter(FuncFormatter(short_number))
    _legend_above(left, tiers, "tier of the native GSD")
    families = [f for f in FAMILY_COLOURS if any(stats.families[t, f] for t in tiers)]
    families += sorted({f for _, f in stats.families} - set(families))
    sums = [max(1, stats.total(stats.questions, tier=t)) for t in tiers]
    shares = [[100 * stats.families[t, f] / n for t, n in zip(tiers, sums, strict=True)] for f in families]
    _stacked(right, tiers, shares, [(FAMILY_COLOURS.get(f, PURPLE), "") for f in families], text="{:.0f} %")
    right.set_xlabel("per cent of the tier's questions")
    right.set_xlim(0, 100)
    _legend_above(right, [f.replace("_", "-") for f in families], "question family")
    return figure


def coverage(stats: CorpusStats) -> Figure:
    """Questions on the globe (plate carree, cells of two degrees); a sentence instead where no image has coordinates.

    The map is cut to where the images are. It has no coastlines, since no map data is shipped.
    """
    if not stats.coverage:
        figure, (ax,) = new_figure(panel_size=(8.4, 2.4))
        return _empty(figure, ax, "no image of this corpus states its coordinates")
    (west, east), (south, north) = _extent(stats.coverage, 0, 180.0), _extent(stats.coverage, 1, 90.0)
    width = 6.0
    height = min(6.5, max(2.0, width * (north - south) / (east - west)))
    figure, (ax,) = new_figure(panel_size=(width + 2.6, max(height + 1.1, legend_height(stats.coverage))))
    scatter = Bubbles(ax, stats, stats.coverage, largest=400.0)
    scatter.draw(lambda cell: cell.position)
    ax.set(xlim=(west, east), ylim=(south, north), aspect="equal", xlabel="longitude", ylabel="latitude")
    for axis, span, signs in ((ax.xaxis, east - west, "EW"), (ax.yaxis, north - south, "NS")):
        axis.set_major_locator(MultipleLocator(next(step for step in (1, 2, 5, 10, 20, 30, 60) if span / step <= 9)))
        axis.set_major_formatter(FuncFormatter(_degrees(signs)))
    missing = stats.n_images - stats.located_images
    note = f"; {missing:,} images ({missing / stats.n_images:.0%}) state none" if missing else ""
    ax.set_title(f"{stats.located_images:,} images with coordinates{note}", loc="left", fontsize=10)
    scatter.legend()
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG without time stamps or versions, so that equal corpora give equal files."""
    figure.savefig(path, metadata={"Software": None})
    figure.clear()
    return path


def _extent(cells: dict[tuple[str, int, int], Cell], axis: int, limit: float) -> tuple[float, float]:
    """Degrees from the first to the last image with a margin of an eighth, at least 4 degrees."""
    found = [cell.position[axis] for cell in cells.values()]
    margin = max(4.0, (max(found) - min(found)) / 8)
    return max(-limit, min(found) - margin), min(limit, max(found) + margin)


def _degrees(signs: str) -> Callable[[float, Any], str]:
    return lambda value, _: f"{abs(value):g}°" + (signs[0] if value > 0 else signs[1] if value < 0 else "")


def _side_axis(ax: Any, sides_px: Any) -> None:
    ax.set_yscale("log")
    ax.set_ylabel("image side, sqrt(width x height) (pixels, log scale)")
    low, high = sides_px.min() / 2.2, sides_px.max() * 2.2
    ax.set_ylim(low, high)
    ticks = [t for t in 2 ** np.arange(4, 18) if low <= t <= high]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.yaxis.set_minor_locator(NullLocator())


def _tier_lines(ax: Any, boundaries: TierBoundaries, limits_m: tuple[float, float]) -> None:
    edges = [limits_m[0], boundaries.high_below_m, boundaries.mid_below_m, limits_m[1]]
    for edge_m in edges[1:-1]:
        ax.axvline(edge_m, color=GREY, linestyle="--", linewidth=1)
    for tier, low, high in zip(("high", "mid", "low"), edges, edges[1:]):
        middle = float(np.sqrt(low * high))
        ax.annotate(
            f"tier {tier}", (middle, 1.01), xycoords=("data", "axes fraction"), ha="center", color=GREY, fontsize=9
        )


def _stacked(
    ax: Any, rows: Sequence[str], table: Sequence[Sequence[float]], styles: Sequence[tuple[str, str]], *, text: str = ""
) -> None:
    left = np.zeros(len(rows))
    for values, (colour, hatch) in zip(table, styles, strict=True):
        width = np.asarray(values, dtype=float)
        bars = ax.barh(range(len(rows)), width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        if text:
            ax.bar_label(bars, [text.format(v) if v >= 6 else "" for v in width], label_type="center", fontsize=8)
        left += width
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def _label_ends(ax: Any, totals: Any) -> None:
    for row, total in enumerate(totals):
        ax.annotate(f"{int(total):,}", (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xlim(0, max(totals) * 1.22)


def _legend_above(ax: Any, labels: Sequence[str], title: str) -> None:
    ax.legend(
        ax.containers,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(4, len(labels)),
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=9,
        alignment="left",
    )


def _empty(figure: Figure, ax: Any, sentence: str) -> Figure:
    ax.set_axis_off()
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)
    return figure
