"""The ledger: what was recorded survives, what was torn is dropped, what was altered is refused."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import DiskSpaceError
from scaleearth_pl.prepare import ledger as module
from scaleearth_pl.prepare.ledger import Ledger, LedgerError, read_records, record_id, whole_file

IDENTITY = {"image_sha256": "a" * 64, "prompt_version": "v1", "prompt": "p", "model": "m", "parameters": {"t": 0.0}}


def test_id_depends_on_everything_and_on_nothing_else() -> None:
    base = record_id(**IDENTITY)
    assert base == record_id(**{k: IDENTITY[k] for k in reversed(IDENTITY)})
    changes = {
        "image_sha256": "b" * 64,
        "prompt_version": "v2",
        "prompt": "q",
        "model": "n",
        "parameters": {"t": 0.1},
    }
    assert len({base, *(record_id(**{**IDENTITY, name: value}) for name, value in changes.items())}) == 6


def test_id_is_the_same_in_another_process() -> None:
    code = f"from scaleearth_pl.prepare.ledger import record_id; print(record_id(**{IDENTITY!r}))"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == record_id(**IDENTITY)


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "l.jsonl"
    with Ledger(path) as ledger:
        ledger.append([{"id": "a", "text": "ä\u2028\n"}, {"id": "b"}])
        ledger.append([])
        ledger.append([{"id": "c"}])
        assert "a" in ledger
        assert "d" not in ledger
    with Ledger(path) as again:
        assert len(again) == 3
        assert "c" in again
        assert again.torn_bytes == 0
    assert [record["id"] for record in read_records(path)] == ["a", "b", "c"]
    assert next(read_records(path))["text"] == "ä\u2028\n"


def test_every_cut_of_the_last_line_loses_that_line_only(tmp_path: Path) -> None:
    whole = b'{"id":"a"}\n{"id":"b","x":"y"}\n'
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        assert [record["id"] for record in read_records(path)] == ["a"]
        with Ledger(path) as ledger:
            assert (len(ledger), ledger.torn_bytes) == (1, cut - first)
            ledger.append([{"id": "b", "x": "y"}])
        assert path.read_bytes() == whole


def test_a_torn_line_longer_than_the_search_block_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(b'{"id":"a"}\n' + b"x" * 200_000)
    with Ledger(path) as ledger:
        assert ledger.torn_bytes == 200_000
    path.write_bytes(b"x" * 70_000)
    with Ledger(path) as ledger:
        assert len(ledger) == 0
    assert path.stat().st_size == 0


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"no":"id"}', b'{"id":7}', b""])
def test_an_altered_line_is_refused_by_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(b'{"id":"a"}\n' + line + b'\n{"id":"c"}\n')
    with pytest.raises(LedgerError, match=r"line 2"):
        Ledger(path)


def test_two_writers_are_refused_and_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger(path), pytest.raises(LedgerError, match="another process"):
        Ledger(path)
    Ledger(path).close()


def test_a_full_disk_leaves_no_half_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger(path) as ledger:
        ledger.append([{"id": "a"}])
        real = os.write

        def short(handle: int, data: bytes) -> int:
            real(handle, bytes(data)[:5])
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(module.os, "write", short)
        with pytest.raises(DiskSpaceError, match="disk is full"):
            ledger.append([{"id": "b"}])
        monkeypatch.setattr(module.os, "write", real)
        assert "b" not in ledger
        ledger.append([{"id": "c"}])
    assert [record["id"] for record in read_records(path)] == ["a", "c"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl") as ledger:
        threads = [
            threading.Thread(target=lambda k=k: [ledger.append([{"id": f"{k}-{i}", "x": "y" * 999}]) for i in range(9)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({record["id"] for record in read_records(tmp_path / "l.jsonl")}) == 36


def test_a_whole_file_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with whole_file(path) as write:
        write({"id": "a"})
    with pytest.raises(ValueError, match="JSON"), whole_file(path) as write:
        write({"id": "b", "gsd_m": float("nan")})
    assert json.loads(path.read_text()) == {"id": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
