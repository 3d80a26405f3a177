"""Any predictions file to rows: JSON, JSON lines, CSV or TSV; gzip or not; UTF-8, UTF-16 or UTF-32.

The content decides, not the name of the file, since results are passed on under any name. Tried in this order:

1. one JSON document: a list of objects, an object around lists (one a question type, say: all that have truth and
   prediction), an object of objects, or columns (`{"gt": [...], ...}`);
2. JSON lines; blank lines are no rows, a comma at the end of a line does not matter;
3. JSON objects one after another over many lines (`jq`'s output, a list that was cut off);
4. a table with a header (`cells.py`), cut at tabs, semicolons or commas, whichever its header holds most of. An empty cell is
   an empty answer, not a null one, because a table cannot tell them apart.

What is no object is returned as None, the objects of other lists are returned apart, and the reader counts both. Lines of
JSON end at line feeds only: JSON allows the other line breaks of Unicode inside a text, and `str.splitlines` would cut there.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.cells import read_cells
from scaleearth_pl.evaluation.rsvqa.columns import find_columns

Row = dict[str, Any]

_GZIP = b"\x1f\x8b"
_BETWEEN_OBJECTS = " \t\r\n,[]"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds.

    Attributes:
        rows: every row, None for one that is no object.
        ignored: objects of lists beside the rows, without truth or prediction.
        of_cells: the file is a table, so that a text and a number cannot be told apart.
        notes: what was done to read it, counted.
    """

    rows: list[Row | None]
    ignored: list[Row] = field(default_factory=list)
    of_cells: bool = False
    notes: Counter[str] = field(default_factory=Counter)


def read_objects(path: Path, *, chosen: Mapping[str, str] | None = None) -> Found:
    """Every row of a file.

    Args:
        path: of the file.
        chosen: meaning (target, prediction) to key, where the user knows better: such lists are the rows.

    Raises:
        ConfigError: the file cannot be read, or holds not a single row.
    """
    text, replaced = _text(path)
    readers: tuple[Callable[[str], Found], ...] = (partial(_document, chosen=chosen or {}), _lines, _sequence, _table)
    for reader in readers:
        found = reader(text)
        if any(row is not None for row in found.rows):
            found.notes["bytes_replaced"] += replaced
            return found
    raise ConfigError(
        "no JSON object and no table in the file",
        file=path,
        remedy="give JSON lines, a JSON list of objects, or CSV with a header; gzip is read, too",
    )


def _text(path: Path) -> tuple[str, bool]:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"predictions file cannot be read: {error}", file=path) from error
    encoding = json.detect_encoding(raw)
    try:
        return raw.decode(encoding), False
    except UnicodeDecodeError:
        return raw.decode(encoding, errors="replace"), True


def _parse(text: str) -> Any:
    """The JSON value of a text, None where it is none; integers too long for Python stay texts (a model got stuck)."""
    for integer in (None, str):
        try:
            return json.loads(text, strict=False, parse_int=integer)
        except (json.JSONDecodeError, RecursionError):
            return None
        except ValueError:
            continue
    return None


def _lines(text: str) -> Found:
    return Found(rows=_objects(_parse(line.strip().rstrip(",")) for line in text.split("\n") if line.strip("\r \t,")))


def _document(text: str, chosen: Mapping[str, str]) -> Found:
    document, ignored = _parse(text), list[Row]()
    if isinstance(document, dict):
        document, ignored = _rows_of(document, chosen)
    return Found(rows=_objects(document) if isinstance(document, list) else [], ignored=ignored)


def _objects(values: Iterable[Any]) -> list[Row | None]:
    return [value if isinstance(value, dict) else None for value in values]


def _rows_of(document: Row, chosen: Mapping[str, str]) -> tuple[list[Any], list[Row]]:
    """(the rows inside of one object, the objects of its other lists): its groups of objects, its columns, its objects."""
    lists = [value for value in document.values() if isinstance(value, list) and _group(value)]
    kept = _answered_groups(document, chosen) or ([max(lists, key=len)] if lists else [])
    if kept:
        others = [row for one in lists if not any(one is group for group in kept) for row in one]
        return [row for group in kept for row in group], [row for row in others if isinstance(row, dict)]
    columns = _columns(document)
    if columns is not None:
        return columns, []
    if document and all(isinstance(v, dict) for v in document.values()):
        return list(document.values()), []
    return [document], []


def _answered_groups(document: Row, chosen: Mapping[str, str]) -> list[list[Any]]:
    """The groups of objects that have truth and prediction, under the keys that the longest of them has."""
    groups = [group for value in document.values() if (group := _group(value))]
    answered = [(keys, group) for group in groups if (keys := _keys_of_answers(group, chosen))]
    longest, _ = max(answered, key=lambda pair: len(pair[1]), default=(None, None))
    return [group for keys, group in answered if keys == longest]


def _group(value: object) -> list[Any]:
    """A list that holds objects, or an object of nothing else, as a list; [] for everything else."""
    if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
        return list(value.values())
    return value if isinstance(value, list) and any(isinstance(row, dict) for row in value) else []


def _keys_of_answers(group: Sequence[Any], chosen: Mapping[str, str]) -> tuple[str, str] | None:
    """The keys under which the objects hold truth and prediction; None where they lack one."""
    known = {meaning: key for meaning, key in chosen.items() if meaning in ("target", "prediction")}
    try:
        columns = find_columns([row for row in group if isinstance(row, dict)], file="", chosen=known)
    except ConfigError:
        return None
    return columns.target, columns.prediction


def _columns(document: Mapping[str, Any]) -> list[Row] | None:
    """Rows of `{"gt": [...], "pred": [...]}` or of what pandas writes, `{"gt": {"0": ...}, "pred": {"0": ...}}`."""
    values = list(document.values())
    if len(values) > 1 and all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        return [dict(zip(document, cells, strict=True)) for cells in zip(*values, strict=True)]
    keyed = len(values) > 1 and all(isinstance(v, dict) and v.keys() == values[0].keys() for v in values)
    if keyed and values[0] and all(key.isdecimal() for key in values[0]):
        return [{name: column[key] for name, column in document.items()} for key in values[0]]
    return None


def _sequence(text: str) -> Found:
    decoder, rows, at = json.JSONDecoder(strict=False), list[Row | None](), 0
    while (at := _next(text, at)) < len(text):
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return Found(rows=[*rows, None])
        rows.append(row if isinstance(row, dict) else None)
    return Found(rows=rows)


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BETWEEN_OBJECTS:
        at += 1
    return at


def _table(text: str) -> Found:
    rows, notes = read_cells(text)
    return Found(rows=[*rows], of_cells=True, notes=notes)
