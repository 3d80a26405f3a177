"""The seal of a checkpoint: what it says of itself, and whether that is true.

A file's seal is its last 256 bytes (JSON), so data and checksum cannot come apart as a file and its sidecar can;
`torch.load` does not mind them. A sharded folder's seal is a file in it (`sealed_folder.py`).
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.training.sealed_folder import read_folder_seal, verify_folder

CHECKPOINT_SCHEMA = "scaleearth-checkpoint/1"
_SEAL_BYTES = 256
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Schema, optimizer step, length of the content in bytes, its SHA-256 (both absent for a folder)."""

    schema: str
    step: int
    n_bytes: int
    sha256: str


class HashingWriter:
    """A file that hashes what passes, for `torch.save`.

    An error is kept and raised at the end: torch's writer is C++ and does not survive one in the middle.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.n_bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes and hashes; after an error it only counts."""
        view = memoryview(data)
        if self.error is None:
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
            self.digest.update(view)
            self.n_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Nothing: flushed once, at the end."""

    def finish(self, step: int) -> None:
        """Raises what went wrong, else writes the seal."""
        if self.error is not None:
            raise self.error
        seal = Seal(schema=CHECKPOINT_SCHEMA, step=step, n_bytes=self.n_bytes, sha256=self.digest.hexdigest())
        self.file.write(json.dumps(asdict(seal)).encode().rjust(_SEAL_BYTES - 1) + b"\n")


def read_seal(path: Path) -> Seal:
    """The seal of a file or a sharded folder, without looking at the content.

    Raises:
        CheckpointError: missing, cut, of another schema, or written by something else.
    """
    if path.is_dir():
        row = read_folder_seal(path)
        return Seal(schema=row["schema"], step=row["step"], n_bytes=-1, sha256="")
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SEAL_BYTES))
            seal = Seal(**json.loads(file.read()))
    except OSError as error:
        raise CheckpointError(f"checkpoint cannot be read: {error.strerror}", file=path) from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            "checkpoint is cut, or was not written by this package", file=path, remedy="resume from another one"
        ) from error
    if seal.schema != CHECKPOINT_SCHEMA or seal.n_bytes != size - _SEAL_BYTES:
        raise CheckpointError(
            "checkpoint is cut or of another schema",
            file=path,
            field="schema, n_bytes",
            value=(seal.schema, size - _SEAL_BYTES),
            remedy=f"this version reads {CHECKPOINT_SCHEMA} of {seal.n_bytes} bytes",
        )
    return seal


def verify(path: Path) -> Seal:
    """Reads everything once and compares checksums; `CheckpointError` unless the bytes are those that were written."""
    seal = read_seal(path)
    if path.is_dir():
        verify_folder(path)
        return seal
    digest, left = hashlib.sha256(), seal.n_bytes
    with path.open("rb") as file:
        while left and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest() != seal.sha256:
        raise CheckpointError(
            "checkpoint was altered: its checksum does not hold",
            file=path,
            field="sha256",
            value=digest.hexdigest()[:16],
            remedy="resume from another one (`--resume` does so by itself)",
        )
    return seal
