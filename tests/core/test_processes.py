"""Pools: a killed worker is said, and an error drops what has not begun. That workers end with us: test_pipeline.py."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import WorkerError
from scaleearth_pl.core.processes import process_pool

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
