"""The runs and measurements of `falsify` and `ablations` without processes, and the runs two steps long."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import DATA, shallow

from scaleearth_pl.evaluation.falsify import measure, runs
from scaleearth_pl.training.command import run_lightning

SMALL = [word for name, value in DATA.items() if name != "seed" for word in (f"--data.{name}", str(value))]


def run_here(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """Makes every job run in this process, with its own words but for size; returns the list of those that ran."""
    started: list[str] = []

    def train(job: runs.Job, _: int) -> None:
        started.append(job.name)
        with shallow():
            run_lightning(job.command[3:])

    def small(*words: Any) -> tuple[str, ...]:
        return *fit(*words), *SMALL, "--data.cache_dir", str(cache), "--trainer.max_steps", "2"

    fit = runs._fit
    monkeypatch.setattr(runs, "_fit", small)
    monkeypatch.setattr(runs, "run_one", train)
    monkeypatch.setattr(measure, "measure_all", _measure_here)
    return started


def _measure_here(jobs: Sequence[measure.Task], _: int) -> dict[tuple[str, str, int], Path]:
    return {(job.what, job.variant, job.seed): measure.measure(job) for job in jobs}
