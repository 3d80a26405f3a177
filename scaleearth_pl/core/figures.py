"""One style for all figures: labelled axes, GSD on a logarithmic axis in metres, colours that colour-blind eyes part.

Figures are made with matplotlib's object interface on an Agg canvas: no pyplot, so no global list of open figures, no
display, no leak over ten thousand steps. Colours are Okabe and Ito's (2008); lines differ in dash as well, so that a
grey print is still readable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

BLACK, GREY = "#000000", "#7A7A7A"
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"

SEQUENTIAL = "cividis"
"""Colour map of magnitudes: even in lightness, the same to red-green-blind eyes."""


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """Colour and dash of one series."""

    colour: str
    dash: str | tuple[int, tuple[int, ...]]


VARIANT_STYLES = {
    "ours": LineStyle(colour=BLUE, dash="-"),
    "gsd_text": LineStyle(colour=ORANGE, dash="--"),
    "bucketed": LineStyle(colour=GREEN, dash="-."),
    "plain_lora": LineStyle(colour=PURPLE, dash=":"),
}
"""Series of ours and its twins, the same in every figure."""

SERIES_STYLES = (
    *VARIANT_STYLES.values(),
    LineStyle(colour=VERMILION, dash=(0, (5, 1, 1, 1, 1, 1))),
    LineStyle(colour=SKY, dash="--"),
)
"""Series that have no colour of their own, in this order."""

RANK_TIER_STYLES = {
    "object": LineStyle(colour=VERMILION, dash="-"),
    "structure": LineStyle(colour=GREEN, dash="--"),
    "semantic": LineStyle(colour=BLUE, dash="-."),
}
"""Series of rank tiers, the same in every figure."""

CUE_STYLES = {
    "scale cue": LineStyle(colour=BLUE, dash="o"),
    "no scale cue": LineStyle(colour=VERMILION, dash="^"),
    "cue unknown": LineStyle(colour=GREY, dash="s"),
}
"""Markers of images by whether their scale can be read from them."""


def styles_of(names: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each series: a variant's own, or the next that none of them has."""
    own = {name: VARIANT_STYLES[name] for name in names if name in VARIANT_STYLES}
    free = cycle(style for style in SERIES_STYLES if style not in own.values())
    return {name: own.get(name) or next(free) for name in names}


def new_figure(
    columns: int = 1, rows: int = 1, *, panel_size: tuple[float, float] = (4.4, 3.5)
) -> tuple[Figure, list[Any]]:
    """A figure of panels and its axes, row by row; sizes in inches at 110 dots."""
    width, height = panel_size
    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def gsd_axis(ax: Any, which: str, *, label: str, limits_m: tuple[float, float]) -> None:
    """Makes axis `which` ("x" or "y") logarithmic in metres per pixel, ticks at powers of ten: 0.1, 1, 10."""
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(*limits_m)
    getattr(ax, f"set_{which}label")(f"{label} (m per pixel, log scale)")
    axis.set_major_locator(LogLocator(base=10))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value_m, _: f"{value_m:g}"))


def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """Draws the figure once, frees its artists, and returns [height, width, 3] bytes."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()
    figure.clear()
    return pixels
