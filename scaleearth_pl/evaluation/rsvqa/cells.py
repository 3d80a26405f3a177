"""CSV and TSV to rows, so that no quote swallows the rows behind it.

A quote opens a cell only where another closes it: the next one that is not doubled must end the cell. A quote that does not
is part of the text, and the row keeps its bounds.

The trouble is that `"yes` in one row and `yes"` in a later one enclose all rows between them, which is well-formed CSV.
So a cell over several lines is believed only where none of its further lines is a row by itself: one of as many cells as
the header, with an answer or a type of RSVQA's in each column in which the whole row has one. A table without such a
column believes in tabs (no answer holds so many by chance) and else in the quotes. Either way it is counted.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from scaleearth_pl.evaluation.rsvqa.types import OFFICIAL, type_of_target

REST = "(more cells than the header has)"

_LINE_END = re.compile(r"\r\n|\r|\n")


def read_cells(text: str) -> tuple[list[dict[str, Any]], Counter[str]]:
    """(the rows of a table by its header; what was counted), ([], nothing) for a text without a header that can be cut.

    A row that is too short has None in its last columns, the further cells of one too long are in `REST`. Counted are
    `stray_quotes`, rows with a quote that encloses no cell, and `lines_inside_cells`, lines that are no rows for that.
    """
    text = text.lstrip("\r\n")
    header = _LINE_END.split(text, maxsplit=1)[0]
    cut = max("\t;,", key=header.count)
    if cut not in header:
        return [], Counter()
    cutter = _Cutter(cut)
    names, *rows = cutter.rows(text)
    return [_named(names, cells) for cells in rows], cutter.notes


def _named(names: list[str], cells: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(names) | dict(zip(names, cells, strict=False))
    return row | {REST: cells[len(names) :]} if len(cells) > len(names) else row


class _Cutter:
    """Cuts at one character; `notes` counts what the module's text says."""

    def __init__(self, cut: str) -> None:
        ends, plain = rf"(?=[{cut}\r\n]|\Z)", rf"([^{cut}\r\n]*+)"
        self.cut, self.notes = cut, Counter[str]()
        self._in_line = re.compile(rf'"((?:[^"\r\n]++|"")*+)"{ends}|{plain}')
        self._over_lines = re.compile(rf'"((?:[^"]++|"")*+)"{ends}|{plain}')

    def rows(self, text: str) -> Iterator[list[str]]:
        """The cells of every row, the header's first; blank lines are none."""
        at, n = 0, 0
        while at < len(text):
            cells, at = self._row(text, at, n)
            if cells != [""]:
                n = n or len(cells)
                yield cells
            end = _LINE_END.match(text, at)
            at = end.end() if end else at

    def _row(self, text: str, at: int, n: int) -> tuple[list[str], int]:
        """(cells, end) of the row at a place, n being the header's number of cells (0 for the header itself)."""
        line_end = _LINE_END.search(text, at)
        line = text[at : line_end.start() if line_end else len(text)]
        if '"' not in line:
            return line.split(self.cut), at + len(line)
        alone, stray, _ = self._cells(self._in_line, line, 0)
        cells, _, end = self._cells(self._over_lines, text, at) if stray and n else (alone, stray, at)
        further = _LINE_END.split(text[at:end])[1:]
        if further and self._is_one(cells, further, n):
            self.notes["lines_inside_cells"] += len(further)
            return cells, end
        self.notes["stray_quotes"] += stray
        return (alone if len(alone) == n else self._as_csv(line, n) or alone), at + len(line)

    def _cells(self, cell: re.Pattern[str], text: str, at: int) -> tuple[list[str], bool, int]:
        """(cells, whether one begins with a quote that closes nowhere, the end) of a row."""
        cells, stray = list[str](), False
        while match := cell.match(text, at):
            quoted, plain, at = match[1], match[2], match.end()
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            stray |= quoted is None and plain.startswith('"')
            if not text.startswith(self.cut, at):
                break
            at += 1
        return cells, stray, at

    def _is_one(self, cells: list[str], further: list[str], n: int) -> bool:
        """Whether cells that were read over several lines are one row; `further` are its lines but the first."""
        told = [i for i, cell in enumerate(cells) if _is_rsvqa(cell)]
        if len(cells) != n or not (told or self.cut == "\t"):
            return len(cells) == n
        lines = (self._cells(self._in_line, line, 0)[0] for line in further)
        return not any(len(line) == n and all(_is_rsvqa(line[i]) for i in told) for line in lines)

    def _as_csv(self, line: str, n: int) -> list[str] | None:
        """The n cells that Python's lenient reader finds (it takes `"yes, it is" indeed` for one cell); None for others."""
        try:
            cells = next(csv.reader([line], delimiter=self.cut))
        except csv.Error:
            return None
        return cells if len(cells) == n else None


def _is_rsvqa(cell: str) -> bool:
    """Whether a cell is an answer of RSVQA's, or one of its types."""
    plain = cell.strip().lower()
    return plain in OFFICIAL or type_of_target(plain.removesuffix(".0")) is not None
