"""A corpus in parts: each task imports its share of the images into a small corpus; `join.py` makes one of them.

    task k of n:  records -> (hash of the image id mod n == k) -> finish -> dropped? -> rules -> ShardWriter in parts/<k>

A task is a pure function of (sources, k, n): it can be killed, repeated, and run anywhere that sees the files. Equal
image ids fall into one task, which finds duplicates without asking the others. Price: every task reads all tables of
the sources (not the images), so n tasks parse n times; a list written beforehand by one process would save processor time and
no waiting, since that one process would take as long as each task takes now. The bytes depend on `tasks`, not on how many
of them run at once or where.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.prepare.corpus import QUARANTINE_NAME
from scaleearth_pl.prepare.filter_rules import RULES, PairInView
from scaleearth_pl.prepare.importers.books import COUNTS_NAME, open_books, write_counts
from scaleearth_pl.prepare.importers.finish import finish
from scaleearth_pl.prepare.importers.picture import MAX_PIXELS
from scaleearth_pl.prepare.importers.record import Found, Imported, Rejected
from scaleearth_pl.prepare.importers.source import Source
from scaleearth_pl.prepare.importers.tally import DROPPED, Tally, dropped
from scaleearth_pl.prepare.views import view_of
from scaleearth_pl.prepare.write import ShardWriter


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """What decides the bytes of the parts.

    Args:
        sources: importers, in order.
        corpus: name of the corpus.
        rules: names of `filter_rules.RULES` that every question must pass; none by default, since benchmarks have their
            own ways of putting things.
        drop: ids of images to leave out (`leakage --drop`).
        max_pixels: larger images are averaged down.
        samples_per_shard: images in one tar file.
    """

    sources: tuple[Source, ...]
    corpus: str
    rules: tuple[str, ...] = ()
    drop: frozenset[str] = field(default=frozenset(), repr=False)
    max_pixels: int = MAX_PIXELS
    samples_per_shard: int = 512

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in RULES:
                raise ConfigError("no such rule", field="rules", value=rule, remedy=f"use {', '.join(RULES)}")


@dataclass(frozen=True, kw_only=True)
class ImportPart:
    """The callable that an engine runs: `(data, rank, world_size)` is datatrove's signature, `data` is not used."""

    config: PartConfig
    parts: Path

    def __call__(self, _data: object, rank: int, world_size: int) -> None:
        """Builds part `rank` anew, whatever a killed attempt left."""
        out = part_folder(self.parts, rank)
        shutil.rmtree(out, ignore_errors=True)
        import_part(self.config, out, rank=rank, tasks=world_size)


def part_folder(parts: Path, rank: int) -> Path:
    """Folder of one part."""
    return parts / f"{rank:05d}"


def task_of(item: str, tasks: int) -> int:
    """The task that an image belongs to: by hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest()) % tasks


def import_part(config: PartConfig, out: Path, *, rank: int, tasks: int) -> Path:
    """Writes the images of task `rank` of `tasks` into `out`, with the files of `importers.books` beside them.

    Raises:
        ConfigError, SampleError, DiskSpaceError: as the importers and `ShardWriter`. An empty part is no error.
    """
    out.mkdir(parents=True)
    boundaries, broken = TierBoundaries(), Counter[str]()
    tally = Tally(max_bad_share=0.0, quarantine=out / QUARANTINE_NAME)
    writer = ShardWriter(out, corpus=config.corpus, boundaries=boundaries, samples_per_shard=config.samples_per_shard)
    with open_books(out, tally) as books, ExitStack() as stack:
        stack.push(writer)  # closes it, also after an error
        for record in _of_task(config.sources, rank, tasks):
            books.file(writer, _entry(record, config, boundaries, tally, broken))
        if not tally.images:
            stack.pop_all()  # an empty part gets no index, and is no error
    write_counts(out, tally.as_dict() | {"rules": dict(broken)})
    return out


def is_spoilt(part: Path) -> bool:
    """Whether a finished part would differ, were the archives mended: it has failures, or no image at all."""
    sources = json.loads((part / COUNTS_NAME).read_text())["sources"].values()
    kinds = {kind for found in sources for kind in found["rejected"]}
    return bool(kinds - {DROPPED}) or not any(found["images"] for found in sources)


def filtered(sample: Sample, rules: Sequence[str], boundaries: TierBoundaries, broken: Counter[str]) -> Sample | None:
    """The sample with the questions that break none of `rules`; None if none is left. `broken` counts by rule."""
    view = view_of(sample, 1, boundaries)
    if not rules or view is None:
        return sample
    kept = []
    for qa in sample.qas:
        pair = PairInView(
            question=qa.question,
            answer=qa.answer,
            options=qa.options or (),
            type=qa.type,
            family=qa.family,
            view=view,
            gsd_sigma_log10=sample.sigma_log10,
        )
        found = [rule for rule in rules if RULES[rule](pair) is not None]
        broken.update(found)
        if not found:
            kept.append(qa)
    if len(kept) == len(sample.qas):
        return sample
    return replace(sample, qas=tuple(kept)) if kept else None


def _of_task(sources: Sequence[Source], rank: int, tasks: int) -> Iterator[Found | Rejected]:
    for source in sources:
        for record in source.records():
            item = record.item if isinstance(record, Rejected) else record.image_id
            if task_of(item, tasks) == rank:
                yield record


def _entry(
    record: Found | Rejected, config: PartConfig, boundaries: TierBoundaries, tally: Tally, broken: Counter[str]
) -> Imported | Rejected:
    if isinstance(record, Rejected):
        return record
    if record.image_id in config.drop:
        return dropped(record)
    entry, resolution = finish(record, boundaries=boundaries, max_pixels=config.max_pixels)
    if isinstance(entry, Rejected):
        return entry
    if resolution is not None:
        tally.inject.add(record.image_id, resolution)
    sample = filtered(entry.sample, config.rules, boundaries, broken)
    if sample is None:
        reason = "every question breaks a rule"
        return Rejected(source=record.source, item=record.image_id, kind="no_questions", reason=reason)
    return entry if sample is entry.sample else replace(entry, sample=sample)
