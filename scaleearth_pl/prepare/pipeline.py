"""`kind: pipeline`: a corpus of archives built by tasks on datatrove's executors, on one machine or under Slurm.

    kind: pipeline
    root: DIR                    # with sources, drop, max_bad_share, max_pixels, samples_per_shard, corpus: as `kind: archives`
    sources: {rsvqa_lr: {splits: [train]}, rsvqa_hr: {splits: [train]}}
    rules: [leaked_gsd]          # syntactic rules of filter_rules.py for questions of the sources; none by default
    tasks: 8                     # parts of the corpus; decides which shard holds what
    workers: 2                   # tasks at a time; changes no byte, nor do the next two
    executor: local              # or slurm
    slurm: {partition: cpu, time: "04:00:00", cpus_per_task: 1, mem_per_cpu_gb: 4, venv_path: .venv/bin/activate}

What is run is `parts.ImportPart`, by `engine.py`. A finished task is not repeated after a kill
(`<out>.parts/<hash>/log/completions/`); a part without its completion file is built anew, and every part where the
settings, the sources that are there or their small tables have changed. Where too much of a source failed, the parts
with failures lose their completion files: the same command, run on mended archives, imports them again.

Generation and audit are *not* tasks: they wait for a server, one process keeps it busy (`jobs.py`), and their ledger has
one writer. Several servers are several runs of `generate` over corpora of single sources.

Under Slurm the tasks outlive this process: it submits them and ends with status 75; the same command, run when they
are done, joins the parts (and submits again what failed).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import console
from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError
from scaleearth_pl.core.settings import refuse_unknown
from scaleearth_pl.prepare.corpus import NOT_CONTENT, QUARANTINE_NAME
from scaleearth_pl.prepare.drop_list import read_drop, warn_of_unmatched
from scaleearth_pl.prepare.engine import EngineConfig, SlurmConfig, forget, run_tasks
from scaleearth_pl.prepare.importers.build import ArchivesConfig, find_sources, inputs_of
from scaleearth_pl.prepare.join import join_parts
from scaleearth_pl.prepare.parts import ImportPart, PartConfig, is_spoilt, part_folder


def build(config: dict[str, Any], out: Path) -> Path:
    """Entry of the corpus registry: imports in parts, joins them into `out`, and returns it.

    Raises:
        ConfigError: an unknown key, a wrong value, a source that is not there.
        QuarantineLimitError: a source lost too much.
        WorkerError, TasksPendingError: as `run_tasks`.
    """
    archives, engine, settings = read_config(config)
    work = work_folder(config, out, settings, inputs_of(archives))
    run_tasks(ImportPart(config=settings, parts=work), engine, work / "log")
    parts = [part_folder(work, rank) for rank in range(engine.tasks)]
    try:
        counts = join_parts(parts, out, corpus=archives.corpus, max_bad_share=archives.max_bad_share)
    except QuarantineLimitError as error:
        forget([rank for rank, part in enumerate(parts) if is_spoilt(part)], work / "log")
        raise _to_be_mended(error, archives, work) from error
    warn_of_unmatched(settings.drop, out / QUARANTINE_NAME)
    shutil.rmtree(work)
    if not any(work.parent.iterdir()):
        work.parent.rmdir()
    screen = console(stderr=True)
    for source, found in counts["sources"].items():
        lost = ", ".join(f"{kind} {n:,}" for kind, n in found["rejected"].items())
        n_images, n_questions = sum(found["images"].values()), sum(found["questions"].values())
        screen.print(f"{source}: {n_images:,} images, {n_questions:,} questions; left out: {lost or 'nothing'}")
    for rule, n in counts["rules"].items():
        screen.print(f"rule {rule}: {n:,} questions dropped")
    return out


def read_config(config: dict[str, Any]) -> tuple[ArchivesConfig, EngineConfig, PartConfig]:
    """The YAML's mapping as typed parts; `ConfigError` for unknown keys and wrong values."""
    engine = {f.name: config[f.name] for f in fields(EngineConfig) if f.name in config}
    if engine.get("slurm") is not None:
        engine["slurm"] = _typed(SlurmConfig, engine["slurm"], "slurm")
    archives = _archives(config)
    sources, missing = find_sources(archives)
    if missing:
        console(stderr=True).print(f"not there: {', '.join(missing)}")
    part = PartConfig(
        sources=tuple(sources.values()),
        corpus=archives.corpus,
        rules=tuple(config.get("rules") or ()),
        drop=read_drop(archives.drop) if archives.drop else frozenset(),
        max_pixels=archives.max_pixels,
        samples_per_shard=archives.samples_per_shard,
    )
    return archives, _typed(EngineConfig, engine, "engine"), part


def inputs(config: dict[str, Any]) -> dict[str, str]:
    """As `importers.build.inputs`."""
    return inputs_of(_archives(config))


def work_folder(config: dict[str, Any], out: Path, part: PartConfig, found: Mapping[str, str]) -> Path:
    """Where the parts of these settings lie: beside `out`, so that they outlive the `.partial` folder of a killed build.

    What was `found` counts as settings (`inputs`): parts that were built without an optional source do not fit those
    with it. The share that may fail does not: it changes no part.
    """
    content = {key: value for key, value in config.items() if key not in (*NOT_CONTENT, "max_bad_share")}
    settings = [content, found, [repr(source) for source in part.sources]]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return out.with_name(f"{out.name.removesuffix('.partial')}.parts") / digest[:12]


def _archives(config: Mapping[str, Any]) -> ArchivesConfig:
    ours = ("rules", *(f.name for f in fields(EngineConfig)))
    return ArchivesConfig.from_dict({key: value for key, value in config.items() if key not in ours})


def _to_be_mended(error: QuarantineLimitError, archives: ArchivesConfig, work: Path) -> QuarantineLimitError:
    """The error with what to do next, which only the builder knows."""
    share: dict[str, Any] = {"field": error.field, "value": archives.max_bad_share} if error.field else {}
    return QuarantineLimitError(
        error.problem,
        file=error.file,
        **share,
        remedy=f"{error.remedy}; then run the same command: of the parts in {work}, those with failures are made again",
    )


def _typed(cls: type[Any], given: Any, where: str) -> Any:
    if not isinstance(given, dict):
        raise ConfigError("not a mapping", field=where, value=given)
    refuse_unknown(given, cls, where=where)
    try:
        return cls(**given)
    except TypeError as error:
        raise ConfigError(f"a key is missing: {error}", field=where) from error
