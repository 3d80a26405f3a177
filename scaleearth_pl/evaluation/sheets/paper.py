"""A white page on which things are put in inches from the top left, and the small words of both PNG and HTML.

Text decides how high a row is, which no grid of axes knows beforehand; hence a page with a `y` instead of subplots. Right
and wrong differ by symbol (tick, cross), by colour (blue, vermilion: Okabe and Ito's, apart for colour-blind eyes) and by
weight, so that a grey print still tells them apart.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from scaleearth_pl.core.curves import interval_half_width
from scaleearth_pl.core.figures import BLACK, BLUE, VERMILION, to_rgb
from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.evaluation.sheets.answers import Picture, Said
from scaleearth_pl.evaluation.sheets.words import Words

DPI = 110
MARGIN = 0.3
LINE = 0.155
"""Height of a line of text, inches."""

AXIS_M = (0.03, 300.0)
Z90 = interval_half_width(0.9)
"""Half width of a 90 % interval, in sigmas."""

MARKS = {True: ("\N{CHECK MARK}", BLUE, "bold"), False: ("\N{BALLOT X}", VERMILION, "normal")}


def nice_bar_m(extent_m: float) -> float:
    """Length of the scale bar: the largest 1, 2 or 5 times a power of ten within 40 % of the image's width."""
    power = 10.0 ** math.floor(math.log10(0.4 * extent_m))
    return next(k * power for k in (5, 2, 1) if k * power <= 0.4 * extent_m * (1 + 1e-9))


def metres(value_m: float) -> str:
    """5 cm, 20 m, 3 km."""
    if value_m >= 1000:
        return f"{value_m / 1000:g} km"
    return f"{value_m:g} m" if value_m >= 1 else f"{100 * value_m:g} cm"


def reading_text(reading: SseuReading) -> str:
    """SSE-U's word and its sigma; and where nothing in the image tells its scale, that."""
    cue = " \N{MIDDLE DOT} no scale cue" if reading.has_scale_cue is False else ""
    return f"SSE-U: {10**reading.mu:.2g} m, \N{GREEK SMALL LETTER SIGMA} {reading.sigma:.2f} decades{cue}"


def gsd_text(gsd_m: float | None) -> str:
    """As it is written beside an image."""
    return "GSD not stated" if gsd_m is None else f"{gsd_m:.3g} m per pixel"


class Page:
    """A white page in inches, y downwards; `y` is where the next block starts."""

    def __init__(self, width: float, words: Words, body: float) -> None:
        rule, counts = (wrapped(text, width - 2 * MARGIN, size=7.5, lines=20) for text in (words.rule, words.counts))
        head = MARGIN + 0.35 + LINE * (len(rule) + len(counts)) + 0.25
        self.width, self.height = width, head + body + 0.1
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.text(MARGIN, MARGIN - 0.08, words.title, size=13, weight="bold")
        self.text(MARGIN, MARGIN + 0.27, "\n".join(rule), size=7.5, colour="#444444")
        self.text(MARGIN, MARGIN + 0.32 + LINE * len(rule), "\n".join(counts), size=7.5)
        self.y = head

    def text(self, x: float, y: float, text: str, *, size: float, colour: str = BLACK, weight: str = "normal") -> None:
        """Lines on common baselines, so that a "yes" beside a "no" does not hang lower; `y` is the top of the first."""
        for k, line in enumerate(text.split("\n")):
            place = (x / self.width, 1 - (y + 0.0135 * size + k * LINE) / self.height)
            self.figure.text(
                *place, line, fontsize=size, color=colour, fontweight=weight, va="baseline", parse_math=False
            )

    def rule(self, y: float) -> None:
        """A thin line from margin to margin."""
        ends = [MARGIN / self.width, 1 - MARGIN / self.width]
        self.figure.add_artist(Line2D(ends, [1 - y / self.height] * 2, color="#D5D5D5", linewidth=0.8))

    def mark(self, x: float, y: float, said: Said, *, width: float, size: float, lines: int = 1) -> None:
        """An answer behind its tick or cross, cut to `width` inches and so many lines."""
        symbol, colour, weight = MARKS[said.right]
        answer = " ".join(said.text.split()) or "(nothing)"
        letters = int((width - 0.02 * size) / (0.0078 * size))
        text = shortened(answer, letters) if lines == 1 else "\n".join(textwrap.wrap(answer, letters, max_lines=lines))
        self.text(x, y, symbol, size=size, colour=colour, weight="bold")
        self.text(x + 0.0165 * size, y, text, size=size, colour=colour, weight=weight)

    def picture(self, x: float, y: float, picture: Picture, side_px: int) -> None:
        """The image with its scale bar. Colours are rounded to 64 levels: no eye sees it, and the file is a third smaller."""
        image = _fitted(picture.image, side_px)
        levels = (np.asarray(image) & 0xFC) + 2
        left, top = round(x * DPI), round((self.height - y) * DPI)
        self.figure.figimage(levels, xo=left, yo=top - image.height)
        if picture.extent_m is None:
            return
        bar_m = nice_bar_m(picture.extent_m)
        length = bar_m / picture.extent_m * image.width / DPI
        bottom = y + image.height / DPI
        self._box(x + 0.06, bottom - 0.27, max(length, 0.42) + 0.1, 0.22, "#FFFFFFD9")
        self._box(x + 0.11, bottom - 0.1, length, 0.03, BLACK)
        self.text(x + 0.11, bottom - 0.26, metres(bar_m), size=7)

    def strip(self, x: float, y: float, gsd_m: float | None, reading: SseuReading, width: float) -> None:
        """SSE-U's 90 % interval on a log axis; the black stroke is the truth."""
        place = (x / self.width, 1 - (y + 0.13) / self.height, width / self.width, 0.13 / self.height)
        ax: Any = self.figure.add_axes(place)
        ax.set_xscale("log")
        ax.set_xlim(*AXIS_M)
        ax.set_ylim(-1, 1)
        low_m, high_m = (10 ** (reading.mu + k * Z90 * reading.sigma) for k in (-1, 1))
        ax.plot([low_m, high_m], [0, 0], color=BLUE, linewidth=3, alpha=0.45, solid_capstyle="butt")
        ax.plot([10**reading.mu], [0], "o", color=BLUE, markersize=4.5)
        if gsd_m is not None:
            ax.axvline(gsd_m, color=BLACK, linewidth=1.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.yaxis.set_major_locator(NullLocator())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value_m, _: f"{value_m:g} m"))
        ax.tick_params(labelsize=6, length=2, pad=1, colors="#444444")

    def _box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        patch = Rectangle(corner, width / self.width, height / self.height, facecolor=colour, linewidth=0, zorder=3)
        self.figure.add_artist(patch)

    def save(self, path: Path) -> None:
        """Writes the PNG without its alpha channel, packed as small as it gets."""
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_rgb(self.figure)).save(path, optimize=True)


def _fitted(image: Image.Image, side_px: int) -> Image.Image:
    """The image within a square: small ones by whole multiples, so that a pixel stays a pixel; large ones reduced."""
    longest = max(image.size)
    if longest > side_px:
        scale = side_px / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = side_px // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def wrapped(text: str, inches: float, *, size: float = 8.5, lines: int = 4) -> list[str]:
    """Lines of about `inches`; DejaVu's letters are 0.0074 inches a point wide, on average."""
    width = int(inches / (0.0074 * size))
    wrapped = [line for part in text.splitlines() for line in (textwrap.wrap(part, width) or [""])]
    return (
        wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], f"{shortened(wrapped[lines - 1], width - 2)} ..."]
    )


def shortened(text: str, letters: int) -> str:
    """At most so many letters, the last an ellipsis where some are gone."""
    return text if len(text) <= letters else text[: max(1, letters - 1)] + "\N{HORIZONTAL ELLIPSIS}"
