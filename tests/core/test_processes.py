"""Pools: a killed worker is said, and an error drops what has not begun. That workers end with us: test_pipeline.py."""

import os
import platform
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import WorkerError
from scaleearth_pl.core.processes import children_keep_memory, process_pool

MANY = 20


def note(folder: Path, number: int) -> None:
    """Leaves a file; number 0 raises instead."""
    if number == 0:
        raise ValueError("the first")
    (folder / str(number)).touch()


def result_of_the_first(pool: ProcessPoolExecutor, folder: Path) -> None:
    """Not `pool.map`, which cancels the others itself."""
    futures = [pool.submit(note, folder, number) for number in range(MANY)]
    futures[0].result()


def test_a_killed_worker_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(WorkerError, match="killed") as lost, process_pool(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()
    assert lost.value.exit_status == 75


def test_an_error_drops_what_has_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the first"), process_pool(1) as pool:
        result_of_the_first(pool, tmp_path)
    assert len(list(tmp_path.iterdir())) < MANY - 1


def faults_of_a_thousand_megabytes() -> int:
    """Page faults while one megabyte after the other is filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(1000):
        bytearray(1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_workers_keep_what_they_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4096")  # the user's own: each megabyte is asked of the kernel
    with children_keep_memory(), process_pool(1) as pool:
        given_back = pool.submit(faults_of_a_thousand_megabytes).result()
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "4096"
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    with children_keep_memory(), process_pool(1) as pool:
        kept = pool.submit(faults_of_a_thousand_megabytes).result()
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    assert kept < given_back / 20
