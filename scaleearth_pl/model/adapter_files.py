"""Files of the `adapter/` folder: JSON, tensors, checksums, and what each may hold. Nothing here knows a LoRA.

The folder is replaced whole (`core/files.py`); where a writer died between its two renames, the message of the failed
load says where the old one lies.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaleearth_pl.core.errors import CheckpointError, ScaleEarthError
from scaleearth_pl.core.files import previous_of, sha256_of


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError` if the file is missing or holds anything else."""
    _demand(path)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"JSON does not parse: {error}", file=path, remedy="copy the folder again") from error
    if not isinstance(row, dict):
        raise CheckpointError("JSON is not an object", file=path, value=type(row).__name__)
    return row


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, copied from wherever the tensors are."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the host; raises `CheckpointError` if it is missing or cut."""
    _demand(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}", file=path, remedy="copy the folder again") from error
    return tensors


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes; raises `CheckpointError` if it is missing."""
    _demand(path)
    return sha256_of(path)


def _demand(path: Path) -> None:
    if path.is_file():
        return
    previous = previous_of(path.parent)
    remedy = f"a writer died: rename {previous} to {path.parent.name}" if previous.is_dir() else "give another folder"
    raise CheckpointError("adapter folder lacks a file", file=path, remedy=remedy)


def parse_dataclass(cls: Any, row: object, file: Path, where: str = "") -> Any:
    """`cls` from a JSON object that holds exactly its fields, nested dataclasses included.

    A field that has a default may be absent: the folder is older than the field, whose default must then say what the
    code did before it was there.

    Raises:
        CheckpointError: another set of keys, a value of another type, or one that the dataclass refuses.
    """
    expected = {f.name for f in fields(cls)}
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(row, dict) or not required <= set(row) <= expected:
        differing = sorted(set(row) ^ expected) if isinstance(row, dict) else row
        raise CheckpointError(
            f"settings of {cls.__name__} have missing or unexpected keys",
            file=file,
            field=where or "the whole object",
            value=differing,
            remedy="written by another version: use that one, or write the folder again",
        )
    hints = get_type_hints(cls)
    values = {name: _parse_value(hints[name], value, file, f"{where}.{name}".strip(".")) for name, value in row.items()}
    try:
        return cls(**values)
    except ScaleEarthError as error:
        raise CheckpointError(f"settings are refused: {error}", file=file, field=where) from error


def _parse_value(hint: object, value: object, file: Path, where: str) -> object:
    """JSON has neither tuples nor dataclasses; the annotation says which is meant, and what the value may be."""
    for option in (hint, *get_args(hint)):
        if is_dataclass(option) and isinstance(value, dict):
            return parse_dataclass(option, value, file, where)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(hint, value):
        raise CheckpointError(
            f"setting is not of type {hint.__name__ if isinstance(hint, type) else str(hint).removeprefix('typing.')}",
            file=file,
            field=where,
            value=value,
            remedy="the file was edited, or is of another version: write the folder again",
        )
    return value


def _fits(hint: Any, value: object) -> bool:
    """Whether a JSON value is of an annotated type; dataclasses check their values, and nobody else their types."""
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if kind in (Union, UnionType):
        return any(_fits(option, value) for option in options)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(options[0], item) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def check_keys(found: Iterable[str], expected: Iterable[str], file: Path) -> None:
    """Raises `CheckpointError` unless both sets of keys are equal."""
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{len(missing)} keys missing, {len(unexpected)} unexpected",
            file=file,
            field=(missing + unexpected)[0],
            value={"missing": missing[:3], "unexpected": unexpected[:3]},
            remedy="use the folder with the configuration that it was trained with",
        )


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], file: Path) -> None:
    """Raises `CheckpointError` unless keys and shapes are equal."""
    check_keys(found, expected, file)
    for key, shape in expected.items():
        check_same(file, key, tuple(shape), tuple(found[key].shape))


def check_same(file: Path, name: str, ours: object, theirs: object) -> None:
    """Raises `CheckpointError` unless the folder's value (`theirs`) is the model's."""
    if ours != theirs:
        raise CheckpointError(
            f"adapter folder does not fit: expected {ours!r}",
            file=file,
            field=name,
            value=theirs,
            remedy="build the model with the settings in scaleearth.json",
        )


def base_hash(source: Path | str) -> str:
    """SHA-256 over the names and bytes of a local folder's weight files; "hub" for a name."""
    folder = Path(source)
    if not folder.is_dir():
        return "hub"
    files = sorted(folder.resolve().glob("*.safetensors"))
    return _bytes_hash(tuple((file, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]))


@functools.lru_cache(maxsize=64)
def _bytes_hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once while the files stay as they are (size, time of change): loading asks twice for 16 GB at 8B."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
