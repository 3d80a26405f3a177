"""Checkpoint files that survive a crash at any byte: written beside their target, sealed, flushed, then renamed.

    .step=00000500.ckpt.tmp  --fsync, os.replace, fsync of the folder-->  step=00000500.ckpt
    | what torch.save writes (a zip) | seal: schema, step, length, SHA-256 |

The seal holds the optimizer step, so that the newest checkpoint is found by what it *is* and not by a clock:
`newest_valid` walks down the steps and takes the first one whose checksum holds.

Lightning's own writer stages in `$TMPDIR` and moves (across file systems that is a copy: a kill leaves a cut file under
the good one's name), never flushes, and swallows PermissionError. Price of ours: a SHA-256 of the bytes as they are
written and two fsyncs. Loading is `weights_only=True`, always: a checkpoint can hold numbers, not code.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from scaleearth_pl.core.errors import CheckpointError, DiskSpaceError, ScaleEarthError
from scaleearth_pl.core.files import NO_ROOM, flush
from scaleearth_pl.training.ranks import in_group
from scaleearth_pl.training.seal import HashingWriter, read_seal, verify
from scaleearth_pl.training.sealed_folder import FOLDER_SEAL

log = logging.getLogger(__name__)

SUFFIX = ".ckpt"


class DurableCheckpointIO(CheckpointIO):
    """Lightning's door to checkpoints. A *folder of checkpoints* may be loaded: its newest valid one is taken."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes one sealed file; see `write_sealed`. `storage_options` must be None."""
        if storage_options is not None:
            raise CheckpointError("checkpoints are local files", file=path, field="storage_options")
        write_sealed(Path(path), checkpoint, step=int(checkpoint["global_step"]))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,  # noqa: ARG002
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The content, on the host, after its checksum was compared.

        Raises:
            CheckpointError: no such file, not sealed, altered, of another schema, or holding anything but numbers.
        """
        if weights_only is False:
            raise CheckpointError("a checkpoint is never unpickled", file=path, field="weights_only", value=False)
        path = resolve(Path(path))
        verify(path)
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint does not load: {error}", file=path) from error
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes one file, if it is there."""
        Path(path).unlink(missing_ok=True)


def write_sealed(path: Path, content: dict[str, Any], *, step: int) -> None:
    """Writes `content` so that `path` is at every moment either what it was or the whole new file.

    Raises:
        DiskSpaceError: the disk, quota or file-size limit is reached. Nothing is left behind, the old file stays.
        CheckpointError: the folder cannot be written (permissions, read-only file system). Likewise.
    """
    waiting = path.with_name(f".{path.name}.tmp")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with waiting.open("wb") as file:
                stream = HashingWriter(file)
                torch.save(content, stream)  # type: ignore[arg-type]
                stream.finish(step)
                file.flush()
                os.fsync(file.fileno())
            os.replace(waiting, path)
        except BaseException:
            _remove(waiting)
            raise
        flush(path.parent)


def checkpoints_by_step(folder: Path, *, complain: bool = False) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint with a readable seal, oldest step first; file times are never looked at."""
    found: list[tuple[int, Path]] = []
    for path in sorted(folder.glob(f"[!.]*{SUFFIX}")):
        try:
            found.append((read_seal(path).step, path))
        except CheckpointError as error:
            if complain:
                log.warning("checkpoint passed over: %s", error)
    return sorted(found)


def newest_valid(folder: Path) -> Path:
    """The checkpoint of the highest recorded step whose checksum holds; each one passed over is named in a warning.

    Raises:
        CheckpointError: there is none.
    """
    for _, path in reversed(checkpoints_by_step(folder, complain=True)):
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("checkpoint passed over, trying the one before: %s", error)
            continue
        return path
    raise CheckpointError(
        "no valid checkpoint", file=folder, field="resume", value=True, remedy="start the run without resume"
    )


def resolve(path: Path) -> Path:
    """`path` itself, or the newest valid checkpoint in it; rank 0 chooses for all, so that all load the same."""
    if not path.is_dir() or (path / FOLDER_SEAL).exists():
        return path
    return from_rank_zero(lambda: newest_valid(path))


def from_rank_zero(choose: Callable[[], Path]) -> Path:
    """Rank 0's choice on every rank, its typed error included; a collective."""
    if not in_group():
        return choose()
    chosen: list[Path | ScaleEarthError | None] = [None]
    if dist.get_rank() == 0:
        try:
            chosen[0] = choose()
        except ScaleEarthError as error:
            chosen[0] = error
    dist.broadcast_object_list(chosen, src=0)
    if isinstance(chosen[0], ScaleEarthError):
        raise chosen[0]
    assert chosen[0] is not None
    return chosen[0]


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a typed error that names the remedy."""
    try:
        yield
    except OSError as error:
        why = f"checkpoint cannot be written: {error.strerror}"
        if error.errno in NO_ROOM:
            raise DiskSpaceError(why, file=path, remedy="free space or raise the limit; the old one stays") from error
        raise CheckpointError(why, file=path, remedy="make the folder writable, or set runs_dir elsewhere") from error


def _remove(waiting: Path) -> None:
    """Removes a temporary file; where even that is forbidden, says so."""
    try:
        waiting.unlink(missing_ok=True)
    except OSError as error:
        log.warning("temporary file stays: %s (%s)", waiting, error.strerror)
