"""Builds the procedural corpus: draws places in parallel, balances questions, writes shards.

A place is a pure function of (seed, split, number), so it does not matter who draws it; results come back in order, and questions are
balanced afterwards in one process over blocks of `BLOCK_IMAGES`. Workers are spawned with single-threaded linear algebra:
two processes that each start two threads on two cores would only wait for each other.
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scaleearth_pl.core.gsd import Provenance, TierBoundaries, log10_gsd
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.prepare.world.balance import choose
from scaleearth_pl.prepare.world.config import WORLD_VERSION, WorldConfig
from scaleearth_pl.prepare.world.factors import factors_of
from scaleearth_pl.prepare.world.floors import Asked, floors
from scaleearth_pl.prepare.world.identify import identify
from scaleearth_pl.prepare.world.plan import DEGREE_M, SPLITS, Place, aim, make_place, visits
from scaleearth_pl.prepare.world.questions import Candidate, about_sizes
from scaleearth_pl.prepare.world.render import expose, render
from scaleearth_pl.prepare.world.sight import look
from scaleearth_pl.prepare.write import ShardWriter

VERSION = WORLD_VERSION
BLOCK_IMAGES = 6000
"""Images whose questions are balanced together; they wait in memory, about 12 kB each."""
BOUNDARIES = TierBoundaries()
PENDING = (Question(id="-", type="-", family="-", question="-", answer="-"),)
"""Stands in a sample until its questions are chosen: a sample without questions is not valid."""


@dataclass(frozen=True)
class Drawn:
    """An image before its questions are chosen."""

    sample: Sample
    candidates: tuple[Candidate, ...]
    image: bytes


def build(config: dict[str, Any], out: Path) -> Path:
    """Entry of the corpus registry (`kind: world`): keys are those of `WorldConfig`; returns the folder `out`.

    Raises:
        ConfigError: an unknown key or an impossible value, or `out` holds a corpus.
        DiskSpaceError: the disk is full.
    """
    world = WorldConfig.from_dict(config)
    console = Console(stderr=True)
    asked: dict[str, list[Asked]] = {split: [] for split in world.images}
    digest = hashlib.sha256(f"scaleearth world {WORLD_VERSION}\n".encode())
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with (
        bar,
        ShardWriter(out, corpus=world.name, boundaries=BOUNDARIES, samples_per_shard=world.samples_per_shard) as writer,
    ):
        for split in (s for s in SPLITS if s in world.images):
            task = bar.add_task(f"{world.name}/{split}", total=world.images[split])
            for sample, image in samples(world, split):
                writer.write(sample, image, "jpg")
                digest.update(sample.to_json().encode() + b"\n")
                asked[split] += asked_of(sample)
                bar.advance(task)
        writer.content_hash = digest.hexdigest()
    if "train" in asked:
        report(out, {s: floors(asked["train"], rows) for s, rows in asked.items() if s != "train"}, console)
    return out


def samples(world: WorldConfig, split: str) -> Iterator[tuple[Sample, bytes]]:
    """Finished samples of a split with their JPEG files, in order."""
    block: list[Drawn] = []
    for drawn in draw_all(world, split):
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


def draw_all(world: WorldConfig, split: str) -> Iterator[Drawn]:
    """Images of a split in order, whoever draws them."""
    tasks = [(world, split, index, visit) for index, visit in enumerate(visits(world.images[split]))]
    workers = min(world.processes or os.cpu_count() or 1, len(tasks))
    with single_threaded(), multiprocessing.get_context("spawn").Pool(workers) as pool:
        for drawn in pool.imap(draw_place, tasks, chunksize=4):
            yield from drawn


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started inside do their linear algebra in one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def draw_place(task: tuple[WorldConfig, str, int, tuple[int, int]]) -> list[Drawn]:
    """All images of one place."""
    world, split, index, visit = task
    place = make_place(
        world.seed_of(split),
        split,
        index,
        visit,
        range_m=world.gsd_m,
        cue_less_share=world.cue_less_share,
        boundaries=BOUNDARIES,
    )
    return [draw_image(world, place, number) for number in range(len(place.gsds_m))]


def draw_image(world: WorldConfig, place: Place, number: int) -> Drawn:
    """Points the camera, renders, exposes, and lists everything that could be asked."""
    rng = np.random.default_rng([world.seed_of(place.split), SPLITS[place.split], place.index, number])
    view = aim(rng, place, number, world.image_px)
    picture = render(place.scene, view)
    levels = expose(picture, rng, noise_levels=world.noise_levels)
    sight = look(place.scene, picture)
    image_id = f"{place.split}-{place.first_image + number:06d}"
    lat = place.lat - view.y_m / DEGREE_M
    sample = Sample(
        source="world",
        split=place.split,
        image_id=image_id,
        width=world.image_px,
        height=world.image_px,
        gsd_m_native=view.gsd_m,
        gsd_provenance=Provenance.EXACT,
        tier=BOUNDARIES.tier_of(view.gsd_m),
        qas=PENDING,
        place_id=place.place_id,
        region_id=place.region_id,
        lon=round(place.lon + view.x_m / (DEGREE_M * float(np.cos(np.radians(place.lat)))), 6),
        lat=round(lat, 6),
        sensor="world",
        has_scale_cue=place.scene.has_scale_cue,
        licence="CC0-1.0",
        class_label=place.scene.label,
        factors=factors_of(levels, picture, sight),
    )
    candidates = (*about_sizes(sight, image_id), *identify(sight, picture, image_id))
    return Drawn(sample, candidates, encode(levels, world.jpeg_quality))


def encode(levels: np.ndarray[Any, np.dtype[np.uint8]], quality: int) -> bytes:
    """JPEG without chroma subsampling; one quality and one size for all, so that the file tells nothing."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


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
