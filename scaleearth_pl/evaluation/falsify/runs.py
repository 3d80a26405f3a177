"""Trains what is missing: every variant of every seed as a process of its own, a few at a time.

A run is `scaleearth fit`, the command of the Makefile, in the folder that `make stage2` and `make compare` use too, so
runs made by either are taken over, where they are what that command would make (`takeover.py`); anything else is
trained again, beside it. Only here it does not validate, which nobody reads, and at tiny size keeps the NF4 values
written out: the same adapters to the bit for 7 % less of stage 2.

The cores are shared out, at least one thread to a process: at tiny size, on two cores, two processes of one thread do
about 1.6 times the work of one with two; a third fills the gaps while the others start, load and save.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.console import console, progress
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.processes import children_keep_memory
from scaleearth_pl.core.run_files import PREDICTIONS, RUN
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.falsify.takeover import finished

LOG = "falsify.log"
WORKERS = min(3, 1 + (os.cpu_count() or 1))
"""Processes at a time, where nobody says otherwise."""
UNREAD = ("--trainer.limit_val_batches", "0")
FAST = ("--trainer.max_steps", "40", "--data.limit_images", "64")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs share.

    Attributes:
        size: `experiments/size/<size>.yaml`.
        corpus: folder of shards.
        runs: where runs go.
        workers: processes at a time.
        fast: a smoke test, forty steps each.
    """

    size: str = "tiny"
    corpus: Path = Path("data_shards/world")
    runs: Path = Path("runs")
    workers: int = WORKERS
    fast: bool = False

    def tag(self, seed: int) -> str:
        """As in the Makefile: smoke tests keep to themselves."""
        return f"{self.size}-{self.corpus.name}{'' if seed == 1 else f'-seed{seed}'}{'-fast' if self.fast else ''}"

    def stage1(self, seed: int) -> Path:
        """Folder of experiment `stage1`."""
        return self.runs / f"stage1-{self.tag(seed)}"

    def run(self, variant: str, seed: int) -> Path:
        """Folder of a variant's experiment."""
        return self.runs / f"{'stage2' if variant == OURS else variant}-{self.tag(seed)}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: its name, command, the folder that it makes, and what can start once it has ended."""

    name: str
    command: tuple[str, ...]
    folder: Path
    then: tuple["Job", ...] = ()


def train_missing(plan: Plan, setting: Setting, seeds: Sequence[int]) -> dict[str, list[Path]]:
    """Trains and tests what is not there; returns the run folders by variant, in the order of `seeds`.

    Raises:
        ConfigError: a process failed; its log is named.
    """
    jobs = [job for seed in seeds for job in missing(plan, setting, seed)]
    trained = {job.folder for first in jobs for job in (first, *first.then)}
    say_what_is_kept([f for seed in seeds for f in _folders(plan, setting, seed) if f not in trained])
    with children_keep_memory():
        run_all(jobs, setting.workers, title="training")
    return {name: [setting.run(name, seed) / "latest" for seed in seeds] for name in plan.variants}


def say_what_is_kept(folders: Sequence[Path]) -> None:
    """One line about finished runs that are taken over from other code, which nobody can compare."""
    now, records = current_commit(), [json.loads((folder / "latest" / RUN).read_text()) for folder in folders]
    others = sorted({str(record.get("commit")) for record in records} - {now})
    if others:
        console(stderr=True).print(
            f"{len(folders)} finished runs are kept, some trained at {', '.join(others)} (this is {now}). Where that "
            "changes what is trained, name another folder with --runs",
            soft_wrap=True,
            markup=False,
        )


def _folders(plan: Plan, setting: Setting, seed: int) -> list[Path]:
    return [setting.stage1(seed), *(setting.run(variant, seed) for variant in plan.variants)]


def missing(plan: Plan, setting: Setting, seed: int) -> list[Job]:
    """What a seed lacks: variants; or a stage 1 and, after it, every variant, for the old ones grew from another."""
    first = stage1_job(setting, seed)
    afresh = not finished(first.folder, setting.corpus, needs="hf", command=first.command)
    variants = [variant_job(plan, setting, name, seed) for name in plan.variants]
    if afresh:
        return [replace(first, then=tuple(variants))]
    return [
        job
        for job in variants
        if not finished(job.folder, setting.corpus, needs=PREDICTIONS, command=job.command, stage1=first.folder)
    ]


def stage1_job(setting: Setting, seed: int) -> Job:
    """The command of `make stage1`."""
    overlay = Path("experiments/data") / f"{setting.corpus.name}_stage1.yaml"
    extra = ("-c", str(overlay)) if overlay.exists() else ("--data.train_splits", "[train]")
    folder = setting.stage1(seed)
    return Job(name=folder.name, command=_fit("stage1", setting, extra, seed, folder), folder=folder)


def variant_job(plan: Plan, setting: Setting, variant: str, seed: int) -> Job:
    """The command of `make stage2` with the variant's overlays."""
    overlays = [word for overlay in plan.variants[variant] for word in ("-c", overlay)]
    folder = setting.run(variant, seed)
    command = _fit("stage2", setting, overlays, seed, folder)
    init = ("--model.init_args.init_from", str(setting.stage1(seed) / "latest/hf"), "--test_after_fit", "true")
    written_out = ("--model.init_args.backbone.keep_dequantized", "true") if setting.size == "tiny" else ()
    return Job(name=folder.name, command=(*command, *init, *written_out), folder=folder)


def _fit(stage: str, setting: Setting, overlays: Iterable[str], seed: int, folder: Path) -> tuple[str, ...]:
    data = Path("experiments/data") / f"{setting.corpus.name}.yaml"
    return (
        *(sys.executable, "-m", "scaleearth_pl", "fit", "-c", f"experiments/{stage}.yaml"),
        *("-c", f"experiments/size/{setting.size}.yaml", *(("-c", str(data)) if data.exists() else ()), *overlays),
        *("--experiment", folder.name, "--runs_dir", str(setting.runs), "--data.root", str(setting.corpus)),
        *("--seed_everything", str(seed), "--data.seed", str(seed), *UNREAD, *(FAST if setting.fast else ())),
    )


def run_all(jobs: Sequence[Job], workers: int, *, title: str) -> None:
    """Runs `jobs` and what follows from them, `workers` at a time, with a progress bar; a failure stops the rest."""
    with progress(title, sum(1 + len(job.then) for job in jobs)) as advance, ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run_one, job, workers): job for job in jobs}
        try:
            while running:
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(ended)
                    ended.result()
                    running |= {pool.submit(run_one, following, workers): following for following in job.then}
                    advance()
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def run_one(job: Job, workers: int) -> None:
    """One process, its output in `<folder>/falsify.log`; `ConfigError` if it fails."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / LOG
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("SCALEEARTH_VERSION", None)
    with log.open("wb") as out:
        done = subprocess.run(job.command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(
            f"run ended with status {done.returncode}: {' '.join(last)}", file=log, field="run", value=job.name
        )
