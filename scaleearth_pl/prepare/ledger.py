r"""Results that were paid for, as an append-only JSONL file that a kill cannot spoil.

    {"id": "5f2a...", ...}\n      one record a line; a line counts once its newline is on the disk
    {"id": "91c0...", ...}\n
    {"id": "77e4                  torn by kill -9: dropped and cut off when the file is opened again

A record's id hashes everything that decides the reply (image bytes, prompt text, model, parameters), so that a second
run knows what it need not ask, and a changed prompt asks anew. `append` writes its batch in one call and returns after
`fsync`: what it returned for survives a kill and a power cut. One process writes at a time (`flock`, which the kernel
lets go of when the process dies). Price: the ids, not the records, stay in memory, about 120 bytes each.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TextIO

from scaleearth_pl.core.errors import DiskSpaceError, ScaleEarthError
from scaleearth_pl.core.files import NO_ROOM, replacing_file


class LedgerError(ScaleEarthError):
    """A ledger that is in use, or whose lines were altered."""


def record_id(
    *, image_sha256: str, prompt_version: str, prompt: str, model: str, parameters: Mapping[str, object]
) -> str:
    """32 hex digits that name one request by content; equal arguments give equal ids, in any process.

    Args:
        image_sha256: of the encoded bytes as they lie in the shard.
        prompt_version: of the prompt files.
        prompt: full text sent, so that GSD, class label and number of questions count too.
        model: name as the server knows it.
        parameters: anything else that decides the reply, such as temperature or the factor of area averaging.
    """
    parts = {
        "image": image_sha256,
        "version": prompt_version,
        "prompt": prompt,
        "model": model,
        "parameters": dict(parameters),
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """The file, open for appending; `id in ledger` tells whether a record is there.

    Args:
        path: created if absent; a torn last line is cut off, and its length kept in `torn_bytes`.

    Raises:
        LedgerError: another process writes to the file, or a complete line is not a record.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.torn_bytes = Path(path), 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._write_lock = threading.Lock()
        try:
            self._lock_file()
            self._drop_torn_line()
            self._ids = {str(record["id"]) for record in read_records(self.path)}
        except BaseException:
            os.close(self._handle)
            raise

    def __contains__(self, identity: str) -> bool:
        return identity in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes a batch and waits until the disk has it; safe to call from several threads.

        Raises:
            DiskSpaceError: the disk is full; nothing of the batch is left in the file.
        """
        if not records:
            return
        data = "".join(f"{_line(record)}\n" for record in records).encode()
        with self._write_lock:
            before = os.fstat(self._handle).st_size
            try:
                _write_all(self._handle, data)
                os.fsync(self._handle)
            except OSError as error:
                os.ftruncate(self._handle, before)
                if error.errno in NO_ROOM:
                    raise DiskSpaceError("disk is full", file=self.path, remedy="free space and run again") from error
                raise
            self._ids.update(str(record["id"]) for record in records)

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        os.close(self._handle)

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LedgerError(
                "another process writes to this file", file=self.path, remedy="wait for it, or name another file"
            ) from error

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._handle).st_size
        end = size
        while end > 0:
            start = max(0, end - 65536)
            newline = os.pread(self._handle, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            self.torn_bytes = size - end
            os.ftruncate(self._handle, end)
            os.fsync(self._handle)


def open_records(path: Path) -> BinaryIO:
    """The file of a ledger, to be read; `LedgerError` where it cannot be opened."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise LedgerError(
            f"ledger cannot be read: {error.strerror}", file=path, remedy="name the file that the step before wrote"
        ) from error


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a ledger in file order, one at a time; a torn last line is passed over.

    Raises:
        LedgerError: the file is missing, or a complete line is not a JSON object with an "id".
    """
    with open_records(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                known = isinstance(record, dict) and isinstance(record["id"], str)
            except (ValueError, KeyError):
                known = False
            if not known:
                raise LedgerError(
                    "line is not a record",
                    file=path,
                    field=f"line {number}",
                    value=line[:80],
                    remedy="the file was altered: restore it, or delete the line to have it asked again",
                )
            yield record


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives a function that writes records to a file which appears as a whole at the end, or not at all."""
    with replacing_file(path) as new, new.open("w", encoding="utf-8") as stream:
        yield lambda record: _put(stream, record)


def _put(stream: TextIO, record: Mapping[str, Any]) -> None:
    stream.write(f"{_line(record)}\n")


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
