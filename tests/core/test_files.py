"""Files and folders that are whole or absent: errors, kills, and what is flushed before what is renamed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from scaleearth_pl.core import files
from scaleearth_pl.core.errors import DiskSpaceError
from scaleearth_pl.core.files import (
    put_in_place,
    replacing_file,
    replacing_folder,
    sha256_of,
    write_json,
    write_text,
)


def put(target: Path, replacing: Callable[[Path], AbstractContextManager[Path]], text: str) -> None:
    """Writes `text` to a file, or into a folder and a folder in it."""
    with replacing(target) as new:
        if replacing is replacing_file:
            new.write_text(text)
            return
        (new / "deep").mkdir()
        (new / "a").write_text(text)
        (new / "deep" / "b").write_text(text)


def content(target: Path) -> dict[str, str]:
    found = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target.parent)): path.read_text() for path in found}


BOTH = pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])


@BOTH
def test_the_new_one_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path, replacing) -> None:
    target = tmp_path / "runs" / "x"
    for text in ("old", "new"):
        put(target, replacing, text)
        assert set(content(target).values()) == {text}
        assert list(target.parent.iterdir()) == [target]


@BOTH
@pytest.mark.parametrize("call", ["write_text", "fsync", "replace"])
def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch, replacing, call: str) -> None:
    put(tmp_path / "x", replacing, "old")
    before = content(tmp_path / "x")

    def refuse(*args: object, **settings: object) -> None:
        raise PermissionError(call)

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "write_text" else files.os, call, refuse)
        with pytest.raises(PermissionError, match=call):
            put(tmp_path / "x", replacing, "new")
    assert content(tmp_path / "x") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@BOTH
def test_a_kill_leaves_the_old_one(tmp_path: Path, replacing) -> None:
    put(tmp_path / "x", replacing, "old")
    before = content(tmp_path / "x")
    code = f"""
import os, signal
from pathlib import Path
from scaleearth_pl.core import files
files.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
with files.{replacing.__name__}(Path({str(tmp_path / "x")!r})) as new:
    (new / "a" if new.is_dir() else new).write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert content(tmp_path / "x") == before


@BOTH
def test_everything_is_flushed_before_the_rename_and_its_folder_after(tmp_path: Path, monkeypatch, replacing) -> None:
    done: list[tuple[str, str]] = []
    flush, replace = files.flush, os.replace
    monkeypatch.setattr(files, "flush", lambda path: (done.append(("flush", path.name)), flush(path)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append(("replace", Path(b).name)), replace(a, b)))
    put(tmp_path / "x", replacing, "text")
    renamed = done.index(("replace", "x"))
    flushed = {name for kind, name in done[:renamed] if kind == "flush"}
    if replacing is replacing_file:
        assert len(flushed) == 1 and re.fullmatch(r"\.x\.[0-9a-f]{16}", *flushed)
    else:
        assert flushed == {"a", "deep", "b", "x"}
    assert done[renamed + 1 :] == [("flush", tmp_path.name)]


def test_a_full_disk_is_seen_before_a_folder_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError, match="bytes to write"), replacing_folder(tmp_path / "x", 1 << 60):
        raise AssertionError("the block must not begin")
    assert not list(tmp_path.iterdir())


def test_the_old_folder_stays_aside_until_the_disk_knows_the_new_one(tmp_path: Path, monkeypatch) -> None:
    new, folder, aside = tmp_path / "new", tmp_path / "x", tmp_path / "aside"
    for path in (new, folder):
        path.mkdir()
        (path / "name").write_text(path.name)
    monkeypatch.setattr(files, "flush", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put_in_place(new, folder, aside=aside)
    assert (content(folder), content(aside)) == ({"x/name": "new"}, {"aside/name": "x"})


def test_json_keeps_its_order_and_text_is_utf8(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": [None, "ä"]})
    assert (tmp_path / "x.json").read_bytes() == b'{\n  "b": 1,\n  "a": [\n    null,\n    "\\u00e4"\n  ]\n}\n'
    write_text(tmp_path / "x.txt", "ä\n")
    assert (tmp_path / "x.txt").read_bytes() == "ä\n".encode()
    assert sha256_of(tmp_path / "x.txt") == hashlib.sha256("ä\n".encode()).hexdigest()
    assert json.loads((tmp_path / "x.json").read_text()) == {"b": 1, "a": [None, "ä"]}
