"""Rows of a benchmark from local files: parquet, JSON lines, JSON; a few at a time, images on demand.

Parquet is read in batches of `BATCH_ROWS` (one row may hold 300 MB of pixels), and without its image columns where only
questions are wanted. An image is bytes, a struct with bytes or path, base64 text, or a path beside the file; several of
them are a list (change questions have two).
"""

import base64
import binascii
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError, SampleError

BATCH_ROWS = 4
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
IMAGE_COLUMNS = ("image", "images", "Images")


def read_rows(files: Sequence[Path], *, images: bool = True) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every row of the files with its file, in order; `images=False` leaves parquet's image columns on disk.

    Raises:
        ConfigError: a file that cannot be read, of another kind, or named twice; a row that is no object.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise ConfigError("a benchmark file is named twice", field="files", value=[str(file) for file in files])
    for file in files:
        if file.suffix not in (".parquet", ".jsonl", ".json"):
            raise ConfigError("not a benchmark file", file=file, remedy="give .parquet, .jsonl or .json")
        for row in _parquet(file, images) if file.suffix == ".parquet" else _json(file):
            if not isinstance(row, dict):
                raise ConfigError("a row of a benchmark is an object", file=file, value=str(row)[:80])
            yield file, row


def image_bytes(row: Mapping[str, Any], *, folder: Path) -> list[bytes]:
    """The encoded images of a row; `SampleError` where there is none or one cannot be read."""
    value = next((row[name] for name in IMAGE_COLUMNS if row.get(name) is not None), None)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or values == [None]:
        raise SampleError("row has no image", field="image", value=sorted(row))
    return [_bytes(one, folder) for one in values]


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of a row: a list, or the lines between "listed below:" and the instruction of a VLMEvalKit row."""
    value = stated_options(row)
    if isinstance(value, str):
        listed = value.partition("listed below:\n")[2] or value
        value = [line for line in listed.partition("\n\n")[0].splitlines() if line.strip()]
    return tuple(str(option) for option in value)


def stated_options(row: Mapping[str, Any]) -> Any:
    """The options as they stand in the row: a list, VLMEvalKit's text with the instruction, or () where it has none."""
    return next((row[name] for name in ("multi-choice options", "Answer Choices") if row.get(name) is not None), ())


def _bytes(value: Any, folder: Path) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return bytes(value["bytes"])
        return _bytes(value.get("path"), folder)
    if isinstance(value, str) and Path(value[:256]).suffix.lower() in IMAGE_SUFFIXES and len(value) <= 256:
        return _file(value, folder)
    if isinstance(value, str) and len(value) >= 64:
        try:
            return base64.b64decode(value.partition("base64,")[2] or value, validate=False)
        except (binascii.Error, ValueError) as error:
            raise SampleError(f"image is not base64: {error}", field="image") from error
    raise SampleError("image is neither bytes, base64 nor a file here", field="image", value=str(value)[:80])


def _file(name: str, folder: Path) -> bytes:
    """An image file by its relative name, below the benchmark's folder or one of the five above it."""
    for root in (folder, *list(folder.resolve().parents)[:5]):
        path = (root / name).resolve()
        if path.is_file() and path.is_relative_to(root.resolve()):
            return path.read_bytes()
    raise SampleError("image file is not below the benchmark's folder", file=folder, field="image", value=name)


def _json(file: Path) -> Iterable[Any]:
    try:
        if file.suffix == ".jsonl":
            with file.open(encoding="utf-8") as stream:
                for line in stream:
                    if line.strip():
                        yield json.loads(line)
            return
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"benchmark file cannot be read: {error}", file=file) from error
    yield from document if isinstance(document, list) else [document]


def _parquet(file: Path, images: bool) -> Iterator[dict[str, Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("reading parquet needs pyarrow", file=file, remedy="pip install pyarrow") from error
    try:
        source = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise ConfigError(f"benchmark file cannot be read: {error}", file=file) from error
    names = [name for name in source.schema_arrow.names if images or name not in IMAGE_COLUMNS]
    for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=names):
        yield from batch.to_pylist()
