"""What the run folders do not hold: answers under other GSDs, and what the ranks know. One process per model.

    policies   ours, all questions: metadata, predicted, fused, and metadata with noise of 0.25 to 1 decade
    spoof      ours, the plan's questions about images near its true GSDs: told every point of the grid (H4)
    shifts     first seed, the plan's questions: told the truth and shifts from it, by whoever reads the scale (Figure 10)
    probes     ours: ungated A x, mean over tokens, read linearly for the factors of the world
    told       any model, all questions: told the truth, and where it has an SSE-U told what that reads (`ablations`)

Answers are teacher-forced: right is every token right, which is greedy exact match. Tables are files named by the
model's fingerprint and a hash of what was asked (views, family, permutations, corpus), and read again if they are there: a
second call costs nothing; new weights, another plan and another corpus get a table of their own.

Legend of shape suffixes: K true GSDs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scaleearth_pl.core.console import progress
from scaleearth_pl.core.files import write_text
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.processes import children_keep_memory, process_pool
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.engine import Asked
from scaleearth_pl.evaluation.evaluator.model import Subject, load_subject
from scaleearth_pl.evaluation.evaluator.table import tabulate
from scaleearth_pl.evaluation.evaluator.views import View, shift_views, spoof_views
from scaleearth_pl.evaluation.falsify.findings import BAND_DECADES
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.protocols.probes import probe
from scaleearth_pl.evaluation.protocols.probes_figure import save_probe_figure
from scaleearth_pl.evaluation.protocols.probes_read import read_units
from scaleearth_pl.evaluation.protocols.referee import referee_views
from scaleearth_pl.model.backbone import silence_loading

What = Literal["policies", "spoof", "shifts", "probes", "told"]
NOISE_DECADES = (0.0, 0.25, 0.5, 1.0)
SHIFTS_DECADES = tuple(k / 4 for k in range(-8, 9))
SPOOFED = (OURS, "gsd_text", "bucketed", "plain_lora")
"""Variants of Figure 10. Plain LoRA is not told a GSD: one view is its whole curve."""
LONGEST_FIRST: tuple[What, ...] = ("shifts", "policies", "told", "spoof", "probes")
"""3 to 4 minutes each at tiny size, 2.5 to 3, 1.5 and 0.3: a long one that begins last would end alone."""
OF_THE_GROUP = ("spoof", "shifts")
"""What asks the questions of the plan's group only."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One model and what to ask of it."""

    variant: str
    seed: int
    run: Path
    what: What
    corpus: Path
    out: Path
    grid_m: tuple[float, ...] = ()
    truths_m: tuple[float, ...] = ()
    family: str = ""
    permutations: int = 0
    limit: int | None = None


def grid(spec: Mapping[str, float]) -> tuple[float, ...]:
    """`{from, to, per_decade}` as metres, both ends included."""
    low, high, n = np.log10(spec["from"]), np.log10(spec["to"]), spec["per_decade"]
    return tuple(float(10**x) for x in np.linspace(low, high, round((high - low) * n) + 1))


def tasks(
    plan: Plan,
    runs: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    *,
    corpus: Path,
    out: Path,
    limit: int | None = None,
) -> list[Task]:
    """Everything that the plan's hypotheses and figures need, and no more: spoofing is most of the work.

    Args:
        plan: the hypotheses.
        runs: of each variant, a run folder a seed.
        seeds: of the runs.
        corpus: folder of the corpus.
        out: folder of the tables.
        limit: test images that are asked about; None for all.
    """
    bars = {h.kind: h.bars for h in plan.hypotheses}
    asked: list[tuple[str, int, What]] = [
        (OURS, i, what) for i in range(len(seeds)) for what in ("policies", "spoof", "probes")
    ]
    asked += [(name, 0, "shifts") for name in SPOOFED if name in runs]
    return [
        Task(
            variant=variant,
            seed=seeds[i],
            run=runs[variant][i],
            what=what,
            corpus=corpus,
            out=out,
            grid_m=grid(bars["spoofing"]["grid_m"]),
            truths_m=tuple(bars["spoofing"]["truths_m"]),
            family=plan.group.partition("/")[2],
            permutations=int(bars["probes"]["permutations"]),
            limit=limit,
        )
        for variant, i, what in asked
    ]


def measure_all(jobs: Sequence[Task], workers: int) -> dict[tuple[str, str, int], Path]:
    """Runs all tasks, `workers` processes at a time; returns the file of each (what, variant, seed)."""
    files: dict[tuple[str, str, int], Path] = {}
    with progress("other scales", len(jobs)) as advance, children_keep_memory(), process_pool(workers) as pool:
        longest_first = sorted(jobs, key=lambda job: LONGEST_FIRST.index(job.what))
        waiting = {pool.submit(measure, job): job for job in longest_first}
        for done in as_completed(waiting):
            job = waiting[done]
            files[job.what, job.variant, job.seed] = done.result()
            advance()
    return files


def measure(task: Task) -> Path:
    """One task; returns the file that holds its result."""
    torch.set_num_threads(1)
    silence_loading()
    subject = load_subject(task.run)
    split = CorpusSplit.open(task.corpus, "test", limit_images=task.limit)
    views = views_of(task, subject)
    file = _file(task, subject, split, views)
    if file.exists():
        return file
    if task.what == "probes":
        return _probe(task, subject, split.images(subject), file)
    tabulate(subject, _images_of(task, subject, split), views, boundaries=split.index.boundaries).save(file)
    return file


def _images_of(task: Task, subject: Subject, split: CorpusSplit) -> Iterator[Asked]:
    """Images with the questions that the task asks; where none is near a true GSD, all, and H4 says so."""

    def images() -> Iterator[Asked]:
        every = split.images(subject)
        return of_family(every, task.family) if task.what in OF_THE_GROUP else every

    near = near_truths(images(), task.truths_m) if task.what == "spoof" else iter(())
    first = next(near, None)
    return images() if first is None else chain([first], near)


def views_of(task: Task, subject: Subject) -> tuple[View, ...]:
    """What the model is told in a task; nothing where it is probed."""
    if task.what == "policies":
        return referee_views(levels_decades=NOISE_DECADES, told=False)
    if task.what == "told":
        return told_views(subject)
    if task.what == "shifts":
        return shifted_views(subject)
    return tuple(spoof_views(task.grid_m)) if task.what == "spoof" else ()


def _file(task: Task, subject: Subject, split: CorpusSplit, views: Sequence[View]) -> Path:
    """Where the result goes, by everything that it depends on."""
    asked: list[Any] = [split.index.hash, [dataclasses.asdict(view) for view in views]]
    of_what: dict[What, list[Any]] = {
        "spoof": [task.family, task.truths_m, BAND_DECADES],
        "shifts": [task.family],
        "probes": [task.permutations],
    }
    asked += of_what.get(task.what, [])
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    limits = f"-{task.limit}" if task.limit else ""
    suffix = "json" if task.what == "probes" else "npz"
    return task.out / f"{task.what}-{subject.folder}-{task.seed}{limits}-{digest}.{suffix}"


def shifted_views(subject: Subject) -> tuple[View, ...]:
    """The truth, and shifts from it; the truth alone for a model that no GSD can move."""
    shifts = (v for v in shift_views(SHIFTS_DECADES) if v.shift_decades)
    return (View(policy="metadata"), *(shifts if subject.reads_scale else ()))


def told_views(subject: Subject) -> tuple[View, ...]:
    """The truth, and what SSE-U makes of the image where there is one."""
    return (View(policy="metadata"), *([View(policy="predicted")] if subject.has_sse_u else []))


def of_family(images: Iterator[Asked], family: str) -> Iterator[Asked]:
    """Images with only their questions of one family; images without any are passed over."""
    for asked in images:
        kept = tuple(q for q in asked.questions if q.family == family)
        if kept:
            yield dataclasses.replace(asked, questions=kept)


def near_truths(images: Iterator[Asked], truths_m: Sequence[float]) -> Iterator[Asked]:
    """Images whose true GSD lies in the band around one of `truths_m`: those that `findings.spoofing` judges."""
    truths_K = np.array([log10_gsd(m) for m in truths_m])
    for asked in images:
        gsd_m = asked.gsd_m
        if gsd_m is not None and np.abs(log10_gsd(gsd_m) - truths_K).min() <= BAND_DECADES:
            yield asked


def _probe(task: Task, subject: Subject, images: Iterable[Asked], file: Path) -> Path:
    result = probe(read_units(subject, images), n_permutations=task.permutations)
    save_probe_figure(file.with_suffix(".png"), result, title=f"{subject.name}: what each rank dimension knows")
    write_text(file, json.dumps(result.as_json() | {"null": result.null.tolist()}))
    return file
