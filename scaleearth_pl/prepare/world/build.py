"""Builds the procedural corpus: draws, balances questions, writes shards, reports floors.

Questions are balanced in this process over blocks of `BLOCK_IMAGES`, after drawing and in the order of the images: the
corpus is the same byte for byte whatever the number of processes. Its `content_hash` covers every sample's JSON, that
is every question, answer, GSD and factor, and the source of the generator, and so the pixels: what a comparison has to
hold constant.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.prepare.world.balance import choose
from scaleearth_pl.prepare.world.config import WORLD_VERSION, WorldConfig, generator
from scaleearth_pl.prepare.world.draw import BOUNDARIES, Drawn, draw_all, workers
from scaleearth_pl.prepare.world.floors import Asked, floors
from scaleearth_pl.prepare.world.plan import SPLITS
from scaleearth_pl.prepare.write import ShardWriter

VERSION = WORLD_VERSION
BLOCK_IMAGES = 6000
"""Images whose questions are balanced together; they wait in memory, about 12 kB each."""


def build(config: dict[str, Any], out: Path) -> Path:
    """Entry of the corpus registry (`kind: world`): keys are those of `WorldConfig`; returns the folder `out`.

    Raises:
        ConfigError: an unknown key or an impossible value, or `out` holds a corpus.
        DiskSpaceError: the disk is full.
    """
    world = WorldConfig.from_dict(config)
    console = Console(stderr=True)
    asked: dict[str, list[Asked]] = {split: [] for split in world.images}
    digest = hashlib.sha256(f"scaleearth world {WORLD_VERSION} {generator()}\n".encode())
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    writer = ShardWriter(out, corpus=world.name, boundaries=BOUNDARIES, samples_per_shard=world.samples_per_shard)
    with bar, writer, workers(world) as pool:
        streams = {split: draw_all(world, split, pool) for split in SPLITS if split in world.images}
        for split, stream in streams.items():
            task = bar.add_task(f"{world.name}/{split}", total=world.images[split])
            for sample, image in finished(world, bar.track(stream, task_id=task)):
                writer.write(sample, image, "jpg")
                digest.update(sample.to_json().encode() + b"\n")
                asked[split] += asked_of(sample)
        writer.content_hash = digest.hexdigest()
    learnt = asked.get("train", []) + asked.get("stage1", [])
    if learnt:
        report(out, {s: floors(learnt, rows) for s, rows in asked.items() if s in ("val", "test")}, console)
    return out


def finished(world: WorldConfig, images: Iterable[Drawn]) -> Iterator[tuple[Sample, bytes]]:
    """Samples with their questions, and their JPEG files, in order."""
    block: list[Drawn] = []
    for drawn in images:
        block.append(drawn)
        if len(block) == BLOCK_IMAGES:
            yield from finish(world, block)
            block = []
    yield from finish(world, block)


def finish(world: WorldConfig, block: Sequence[Drawn]) -> Iterator[tuple[Sample, bytes]]:
    """Gives every image of a block its questions."""
    least, most = world.questions
    for drawn, chosen in zip(block, choose([d.candidates for d in block], least=least, most=most), strict=True):
        qas = tuple(
            Question(id=f"{i:02d}", type=c.type, family=c.family, question=c.question, answer=c.answer)
            for i, c in enumerate(chosen)
        )
        yield replace(drawn.sample, qas=qas), drawn.image


def asked_of(sample: Sample) -> list[Asked]:
    """The questions of a sample as a blind reader sees them."""
    assert sample.gsd_m_native is not None
    scale = log10_gsd(sample.gsd_m_native)
    return [
        Asked(type=q.type, family=q.family, question=q.question, answer=q.answer, log10_gsd=scale) for q in sample.qas
    ]


def report(out: Path, found: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """Writes `floors.json` beside the index and prints the floors, in per cent."""
    (out / "floors.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    table = Table(title="what the corpus gives away without its images, per cent")
    for name in ("split", "family", "questions", "majority", "question", "question + GSD", "answerable"):
        table.add_column(name, justify="left" if name in ("split", "family") else "right")
    for split, by_family in found.items():
        for family, row in by_family.items():
            shares = (f"{100 * row[k]:.1f}" for k in ("majority", "question", "question_gsd", "answerable"))
            table.add_row(split, family, f"{row['n']:.0f}", *shares)
    console.print(table)
