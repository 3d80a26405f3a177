"""Files and folders that are whole or absent, whatever happens while they are written.

    replacing_file      .<name>.<random>          --flushed, renamed-->  <name>   --the folder's entries flushed-->
    replacing_folder    .<name>.<random>/<name>/  --flushed, renamed-->  <name>/  --the folder's entries flushed-->

What is new is written beside its target, on the same file system. An error, a kill or a power cut before the rename
leaves what was there, to the byte; after the block, a power cut no longer brings the old one back. A kill may leave the
hidden one beside the target. Its name is random, because containers that share a folder share process ids, too. Price:
a few milliseconds of `fsync` each; a rename without it may outlive its data.

A folder cannot be renamed over another, so between two renames the target is, for microseconds, absent; a crash just
there leaves the old one as `.<name>.previous` (`previous_of`).
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import DiskSpaceError, ScaleEarthError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an `OSError` says where the disk, the quota or the limit of a file is reached."""


def lines_of(text: str) -> list[str]:
    """Lines of a file, cut at its newlines alone: `str.splitlines` also cuts at the breaks of Unicode inside a text."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


@contextmanager
def locked(lock: Path, busy: ScaleEarthError) -> Iterator[None]:
    """Holds a lock file, made here; raises `busy` where another process does. The kernel frees it, however we end."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields the name of a file to write, which takes the place of `path` if the block ends without an error.

    Folders above it are made. An error leaves the old file and nothing else; what a power cut leaves, the module says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield new
        flush(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def replacing_folder(folder: Path, n_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` if the block ends without an error.

    Every file below it is flushed first. An error leaves the old folder and nothing else.

    Raises:
        DiskSpaceError: the disk has less than `n_bytes` left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < n_bytes:
        raise DiskSpaceError(f"{n_bytes} bytes to write", file=folder, value=free, remedy="free some space")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            flush(path)
        put_in_place(new, folder, aside=previous_of(folder))


def put_in_place(new: Path, folder: Path, *, aside: Path) -> None:
    """Renames a folder that is flushed already, an older `folder` to `aside` first; `aside` is then removed."""
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
    os.replace(new, folder)
    flush(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def previous_of(folder: Path) -> Path:
    """Where the old folder lies if a writer died between its two renames."""
    return folder.with_name(f".{folder.name}.previous")


def flush(path: Path) -> None:
    """Waits until the disk has a file's bytes, or a folder's entries: a rename is durable only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, all or nothing (`replacing_file`)."""
    with replacing_file(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON document, all or nothing: indented, in the given order; NaN and infinity are refused (write null)."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
