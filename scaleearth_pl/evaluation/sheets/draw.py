"""Sheets as PNG: places (a block a place, a column a GSD) and types (a row a type of question)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scaleearth_pl.core.figures import GREY
from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.evaluation.sheets.answers import Shown
from scaleearth_pl.evaluation.sheets.choose import Drawn
from scaleearth_pl.evaluation.sheets.paper import DPI, LINE, MARGIN, Page, gsd_text, reading_text, shortened, wrapped
from scaleearth_pl.evaluation.sheets.words import TypeCount, Words
from scaleearth_pl.evaluation.tables import percent

COLUMN, IMAGE_PX = 2.95, 256
TYPE_IMAGE_PX, LARGE_IMAGE_PX, TYPE_TEXT, TYPE_ANSWER = 128, 208, 3.6, 1.25
"""Widths in inches but for images: a place's column; a type's question and each of its answers. Where some image is larger
than the smaller size all are shown at the larger one."""


def save_places(
    path: Path,
    places: Sequence[Sequence[Drawn]],
    shown: Shown,
    *,
    readings: Mapping[str, SseuReading],
    words: Words,
) -> None:
    """One block a place, one column a GSD: image, SSE-U's reading, questions with truth and answers."""
    step = max(COLUMN, 0.72 * len(shown.said) + 0.1)
    width = MARGIN * 2 + step * max(max(len(place) for place in places), 3)
    heights = [_place_height(place) for place in places]
    page = Page(width, words, sum(heights))
    for place, height in zip(places, heights, strict=True):
        page.text(MARGIN, page.y, f"Place {place[0].place_id}", size=9.5, weight="bold")
        for column, drawn in enumerate(place):
            at = (MARGIN + column * step, page.y + 0.22)
            _place_column(page, *at, drawn, shown, reading=readings.get(drawn.image_id), width=step - 0.12)
        page.y += height
    page.save(path)


def save_types(
    path: Path,
    drawn: Sequence[Drawn],
    shown: Shown,
    *,
    types: Mapping[str, TypeCount],
    words: Words,
) -> None:
    """One row a type of question: image, question with truth, a column of answers a variant; below, all of that type."""
    small = all(max(shown.pictures[some.image_id].image.size) <= TYPE_IMAGE_PX for some in drawn)
    side_px = TYPE_IMAGE_PX if small else LARGE_IMAGE_PX
    image, x = side_px / DPI, MARGIN + side_px / DPI + 0.2
    texts = [wrapped(some.rows[0].question, TYPE_TEXT - 0.2, lines=12) for some in drawn]
    heights = [max(image, LINE * (len(lines) + 4)) + 0.2 for lines in texts]
    page = Page(x + TYPE_TEXT + TYPE_ANSWER * len(shown.said) + MARGIN, words, sum(heights) + 0.25)
    for k, name in enumerate(shown.said):
        page.text(x + TYPE_TEXT + k * TYPE_ANSWER, page.y, name, size=8.5, weight="bold")
    page.y += 0.3
    for some, lines, height in zip(drawn, texts, heights, strict=True):
        row = some.rows[0]
        page.rule(page.y - 0.1)
        page.picture(MARGIN, page.y, shown.pictures[some.image_id], side_px)
        words_of_row = [row.type.replace("_", " "), row.family.replace("_", "-")]
        kind = " \N{MIDDLE DOT} ".join([*words_of_row, *([] if some.gsd_m is None else [gsd_text(some.gsd_m)])])
        page.text(x, page.y, shortened(kind, 66), size=7.5, colour=GREY)
        page.text(x, page.y + 1.2 * LINE, "\n".join(lines), size=8.5)
        truth = shortened(row.answer, int(TYPE_TEXT / 0.075))
        page.text(x, page.y + LINE * (len(lines) + 1.4), f"truth: {truth}", size=8.5, weight="bold")
        count, below = types[row.type], page.y + LINE * (len(lines) + 2.9)
        page.text(x, below, count.text, size=7.5, colour=GREY)
        for k, (name, said) in enumerate(shown.said.items()):
            at = x + TYPE_TEXT + k * TYPE_ANSWER
            page.text(at, below, f"{percent(count.accuracy[name])} %", size=7.5, colour=GREY)
            page.mark(at, page.y + 1.2 * LINE, said[row.key], width=TYPE_ANSWER, size=8.5, lines=len(lines) + 1)
        page.y += height
    page.save(path)


def _place_column(
    page: Page,
    x: float,
    y: float,
    drawn: Drawn,
    shown: Shown,
    *,
    reading: SseuReading | None,
    width: float,
) -> None:
    """One image, `width` inches of text below it."""
    image, cell = IMAGE_PX / DPI, width / len(shown.said)
    page.text(x, y, gsd_text(drawn.gsd_m), size=9)
    page.picture(x, y + 0.2, shown.pictures[drawn.image_id], IMAGE_PX)
    y += 0.2 + image + 0.06
    if reading is not None:
        page.text(x, y, reading_text(reading), size=7.5, colour="#444444")
        page.strip(x, y + 0.17, drawn.gsd_m, reading, image)
    y += 0.55
    for row in drawn.rows:
        lines = wrapped(row.question, image, size=8)
        page.text(x, y, "\n".join(lines), size=8)
        y += LINE * len(lines)
        page.text(x, y, f"truth: {shortened(row.answer, 30)}", size=8, weight="bold")
        y += LINE + 0.02
        for k, (name, said) in enumerate(shown.said.items()):
            page.text(x + k * cell, y, shortened(name, int(cell / 0.047)), size=6.5, colour=GREY)
            page.mark(x + k * cell, y + 0.115, said[row.key], width=cell, size=7)
        y += 0.38


def _place_height(place: Sequence[Drawn]) -> float:
    text = max(
        sum(LINE * (len(wrapped(row.question, IMAGE_PX / DPI, size=8)) + 1) + 0.4 for row in drawn.rows)
        for drawn in place
    )
    return 0.22 + 0.2 + IMAGE_PX / DPI + 0.06 + 0.55 + text + 0.15
