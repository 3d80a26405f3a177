"""JSON of any size, read as a stream; a table that breaks is an error that names file and place.

A list of 15 million questions is never held: ijson (yajl) hands over one row after the other. What a broken *table*
loses cannot be counted, so it cannot be held against a share either: it stops the import. A broken file of *one image*
costs that image.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson  # type: ignore[import-untyped]  # has no stubs

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.geo.sidecars import parse_json

Row = dict[str, Any]

_NOT_JSON = re.compile(r"^lexical error.*\b(NaN|Infinity)\b")
_NO_NUMBER = "JSON has no NaN and no Infinity: write null (Python's json.dump and pandas write them)"
_BROKEN = "download the file again; one's own is to be mended at that place"


def rows_of_list(path: Path, prefix: str = "item") -> Iterator[Any]:
    """Elements of one JSON array, one at a time.

    Args:
        path: the file.
        prefix: where the elements lie: "item" of a top-level array, "questions.item" of an object's list.

    Raises:
        ConfigError: the file does not exist.
        SampleError: the JSON breaks off or holds no such list.
    """
    try:
        stream = _after_mark(path)
    except OSError as error:
        raise ConfigError(f"table cannot be read: {error.strerror}", file=path, remedy="unpack all files") from error
    n_rows = 0
    with stream:
        try:
            for row in ijson.items(stream, prefix, use_float=True):
                n_rows += 1
                yield row
        except (ijson.JSONError, UnicodeDecodeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:160]
            raise SampleError(
                f"JSON does not parse: {reason}",
                file=path,
                field=f"after row {n_rows}, before byte {stream.tell()}",
                remedy=_NO_NUMBER if _NOT_JSON.search(reason) else _BROKEN,
            ) from error
    if not n_rows and not _has_list(path, prefix):
        raise SampleError("JSON holds no such list", file=path, field=prefix, remedy="is it the official file?")


def _has_list(path: Path, prefix: str) -> bool:
    where = prefix.removesuffix("item").rstrip(".")
    with _after_mark(path) as stream:
        return any((place, event) == (where, "start_array") for place, event, _ in ijson.parse(stream))


def _after_mark(path: Path) -> BinaryIO:
    """The file, behind the byte-order mark that some editors write."""
    stream = path.open("rb")
    if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        stream.seek(0)
    return stream


def rows_of_file(path: Path) -> Iterator[tuple[str, Row | SampleError]]:
    """(place, row) of a .json array, .jsonl or .csv with a header; a broken line yields its error.

    Raises:
        ConfigError: another suffix, or no such file.
        SampleError: a .json table that breaks off.
    """
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".json", ".jsonl", ".csv"):
        raise ConfigError("table must be an existing .json, .jsonl or .csv file", file=path)
    if suffix == ".json":
        for number, row in enumerate(rows_of_list(path)):
            place = f"row {number}"
            yield place, row if isinstance(row, dict) else SampleError("row is not an object", file=path, field=place)
    elif suffix == ".csv":
        for number, cells in enumerate(rows_of_csv(path)):
            yield f"row {number}", {key: value for key, value in cells.items() if key}
    else:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", _json_line(line, path, number)


def rows_of_csv(path: Path, columns: tuple[str, ...] = ()) -> Iterator[dict[str, str | None]]:
    """Rows of a CSV file with a header.

    Raises:
        ConfigError: no such file, or one of `columns` is missing.
        SampleError: it is not CSV text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise ConfigError(f"table needs the columns {', '.join(columns)}", file=path, value=reader.fieldnames)
            yield from reader
    except OSError as error:
        raise ConfigError(f"table cannot be read: {error.strerror}", file=path) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SampleError(f"table is not CSV text: {error}", file=path) from error


def _json_line(line: bytes, path: Path, number: int) -> Row | SampleError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return SampleError(f"JSON does not parse: {error}", file=path, field=f"line {number}")
    return row if isinstance(row, dict) else SampleError("row is not an object", file=path, field=f"line {number}")


def record_of_image(path: Path) -> Row | SampleError:
    """The JSON object of one image, or its error."""
    try:
        return parse_json(path)
    except (SampleError, OSError) as error:
        return error if isinstance(error, SampleError) else SampleError(f"JSON cannot be read: {error}", file=path)
