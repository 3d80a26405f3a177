"""A checkpoint is whole or absent, found by its recorded step, and never runs code."""

import errno
import logging
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch

from scaleearth_pl.core.errors import CheckpointError, DiskSpaceError
from scaleearth_pl.training import checkpoint_io
from scaleearth_pl.training.callbacks.checkpoint import prune, remove_debris
from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO, checkpoints_by_step, newest_valid, write_sealed
from scaleearth_pl.training.seal import read_seal, verify
from scaleearth_pl.training.sealed_folder import flush_and_hash, seal_folder


def content(step: int) -> dict[str, object]:
    return {"global_step": step, "state_dict": {"w": torch.arange(5000.0) + step}, "names": ["a", None, 1.5]}


def save(folder: Path, step: int) -> Path:
    path = folder / f"step={step:08d}.ckpt"
    DurableCheckpointIO().save_checkpoint(content(step), path)
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", 7)
    loaded = DurableCheckpointIO().load_checkpoint(path)
    assert loaded["state_dict"]["w"].equal(content(7)["state_dict"]["w"])  # type: ignore[index]
    assert loaded["names"] == ["a", None, 1.5]
    assert read_seal(path).step == 7
    assert os.listdir(path.parent) == [path.name]


def test_plain_torch_still_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["global_step"] == 3


def test_every_cut_and_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 997):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            verify(path)
    for place in range(0, len(whole), 499):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        if damaged[-256:].strip() == whole[-256:].strip() and place >= len(whole) - 256:
            continue
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            verify(path)
    path.write_bytes(whole)
    assert verify(path).step == 1


def test_the_newest_valid_one_is_chosen_by_step_never_by_clock(tmp_path: Path, caplog) -> None:
    paths = {step: save(tmp_path, step) for step in (10, 2, 9)}
    os.utime(paths[10], (1, 1))
    os.utime(paths[2], (4e9, 4e9))
    assert newest_valid(tmp_path) == paths[10]
    data = bytearray(paths[10].read_bytes())
    data[200] ^= 1
    paths[10].write_bytes(data)
    paths[9].write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert newest_valid(tmp_path) == paths[2]
    assert paths[10].name in caplog.text
    assert paths[9].name in caplog.text
    paths[2].unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        newest_valid(tmp_path)
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        newest_valid(tmp_path / "absent")


def test_a_folder_loads_as_its_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert DurableCheckpointIO().load_checkpoint(tmp_path)["global_step"] == 2


class Payload:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_no_checkpoint_runs_code(tmp_path: Path) -> None:
    with (tmp_path / "bare.ckpt").open("wb") as file:
        pickle.dump(Payload(), file)
    write_sealed(tmp_path / "sealed.ckpt", {"global_step": 1, "x": Payload()}, step=1)
    for name, why in (("bare.ckpt", "not written by this package"), ("sealed.ckpt", "does not load")):
        with pytest.raises(CheckpointError, match=why):
            DurableCheckpointIO().load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="never unpickled"):
        DurableCheckpointIO().load_checkpoint(save(tmp_path, 1), weights_only=False)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    pid = os.fork()
    if pid == 0:  # a limit cannot be raised again, so it is set in a process of its own
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            DurableCheckpointIO().save_checkpoint(content(2), old)
        except DiskSpaceError as error:
            os._exit(17 if "old one stays" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    assert verify(old).step == 1
    assert os.listdir(tmp_path) == [old.name]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_refusal_is_an_error_and_not_a_silent_success(tmp_path: Path, monkeypatch, call: str) -> None:
    old = save(tmp_path, 1)

    def refuse(*args: object, **settings: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if call == "open":
        monkeypatch.setattr(Path, "open", refuse)
    else:
        monkeypatch.setattr(checkpoint_io.os, call, refuse)
    with pytest.raises(CheckpointError, match=r"cannot be written: Permission denied.*make the folder writable"):
        DurableCheckpointIO().save_checkpoint(content(2), old)
    monkeypatch.undo()
    assert verify(old).step == 1
    assert os.listdir(tmp_path) == [old.name]


@pytest.mark.parametrize("n_bytes", [0, 1000, 15_000])
def test_kill_inside_a_save_leaves_a_valid_checkpoint(tmp_path: Path, n_bytes: int) -> None:
    """The same file is written anew: it is the old one until the new one is whole."""
    path = save(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        write = checkpoint_io.HashingWriter.write

        def until(self, data):
            if self.n_bytes >= n_bytes:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(self, data)

        checkpoint_io.HashingWriter.write = until  # type: ignore[method-assign]
        write_sealed(path, content(2), step=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert newest_valid(tmp_path) == path
    assert verify(path).step == 1
    remove_debris(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_the_newest_are_kept_and_foreign_files_left_alone(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 9):
        save(tmp_path, step)
    (tmp_path / "notes.txt").touch()
    DurableCheckpointIO().save_checkpoint(content(1), tmp_path / "mine.ckpt")
    prune(tmp_path, keep=2, step=4)
    kept = [(step, path.name) for step, path in checkpoints_by_step(tmp_path)]
    assert kept == [(1, "mine.ckpt"), *((s, f"step={s:08d}.ckpt") for s in (3, 4, 9))]
    assert (tmp_path / "notes.txt").exists()


def sharded(folder: Path, step: int) -> Path:
    waiting = folder / f".step={step:08d}.ckpt.tmp"
    waiting.mkdir(parents=True)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"):
        (waiting / name).write_bytes(f"{name}{step}".encode())
    path = folder / f"step={step:08d}.ckpt"
    seal_folder(waiting, path, step, [flush_and_hash(waiting, rank) for rank in range(2)])
    return path


def test_a_sharded_folder_is_sealed_whole(tmp_path: Path) -> None:
    path = sharded(tmp_path, 5)
    assert newest_valid(tmp_path) == path
    assert read_seal(path).step == 5
    again = sharded(tmp_path, 5)
    assert verify(again).step == 5
    assert os.listdir(tmp_path) == [path.name]
    older = sharded(tmp_path, 4)
    for damage in (
        lambda: (path / "__1_0.distcp").write_bytes(b"__1_0.distcp6"),
        lambda: (path / "extra").touch(),
        lambda: (path / "meta.pt").unlink(),
        lambda: (path / "seal.json").write_text("{"),
    ):
        sharded(tmp_path, 5)
        damage()
        with pytest.raises(CheckpointError):
            verify(path)
        assert newest_valid(tmp_path) == older
