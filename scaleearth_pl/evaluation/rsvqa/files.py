"""Any predictions file to rows: JSON, JSON lines, CSV or TSV; gzip or not; UTF-8, UTF-16 or UTF-32.

The content decides, not the name of the file, since results are passed on under any name. Tried in this order:

1. one JSON document: a list of objects, an object around one, an object of objects, or columns (`{"gt": [...], ...}`);
2. JSON lines; blank lines are no rows, a comma at the end of a line does not matter;
3. JSON objects one after another over many lines (`jq`'s output, a list that was cut off);
4. a table with a header, cut at tabs, semicolons or commas, whichever its header holds most of. An empty cell is an empty
   answer, not a null one, because a table cannot tell them apart.

What is no object is returned as None and counted by the reader. Lines end at line feeds only: JSON allows the other line
breaks of Unicode inside a text, and `str.splitlines` would cut there.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError

Row = dict[str, Any]

_GZIP = b"\x1f\x8b"
_BETWEEN_OBJECTS = " \t\r\n,[]"
_REST = "(more cells than the header has)"


def read_objects(path: Path) -> tuple[list[Row | None], bool]:
    """(every row of a file, None for one that is no object; whether bytes had to be replaced to read it).

    Raises:
        ConfigError: the file cannot be read, or holds not a single row.
    """
    text, replaced = _text(path)
    for reader in (_document, _lines, _sequence, _table):
        rows = reader(text)
        if any(row is not None for row in rows):
            return rows, replaced
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


def _lines(text: str) -> list[Row | None]:
    rows = (_parse(line.strip().rstrip(",")) for line in text.split("\n") if line.strip("\r \t,"))
    return [row if isinstance(row, dict) else None for row in rows]


def _document(text: str) -> list[Row | None]:
    document = _parse(text)
    if isinstance(document, dict):
        document = _rows_of(document)
    return [row if isinstance(row, dict) else None for row in document] if isinstance(document, list) else []


def _rows_of(document: Row) -> list[Any]:
    """The rows inside of one object: its lists of objects that have the keys of the longest, its objects, its columns."""
    lists = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if lists:
        longest = max(lists, key=len)
        return [row for one in lists if one[0].keys() == longest[0].keys() for row in one]
    columns = _columns(document)
    if columns is not None:
        return columns
    if document and all(isinstance(v, dict) for v in document.values()):
        return list(document.values())
    return [document]


def _columns(document: Mapping[str, Any]) -> list[Row] | None:
    """Rows of `{"gt": [...], "pred": [...]}` or of what pandas writes, `{"gt": {"0": ...}, "pred": {"0": ...}}`."""
    values = list(document.values())
    if len(values) > 1 and all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        return [dict(zip(document, cells, strict=True)) for cells in zip(*values, strict=True)]
    keyed = len(values) > 1 and all(isinstance(v, dict) and v.keys() == values[0].keys() for v in values)
    if keyed and values[0] and all(key.isdecimal() for key in values[0]):
        return [{name: column[key] for name, column in document.items()} for key in values[0]]
    return None


def _sequence(text: str) -> list[Row | None]:
    decoder, rows, at = json.JSONDecoder(strict=False), list[Row | None](), 0
    while (at := _next(text, at)) < len(text):
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return [*rows, None]
        rows.append(row if isinstance(row, dict) else None)
    return rows


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BETWEEN_OBJECTS:
        at += 1
    return at


def _table(text: str) -> list[Row | None]:
    header = text.lstrip("\r\n").partition("\n")[0]
    cut = max("\t;,", key=header.count)
    if cut not in header:
        return []
    reader = csv.DictReader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=cut, restkey=_REST)
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process: importers rely on its default
    try:
        return list(_cells(reader))
    finally:
        csv.field_size_limit(limit)


def _cells(reader: "csv.DictReader[str]") -> Iterator[Row | None]:
    try:
        yield from reader
    except csv.Error:
        yield None
