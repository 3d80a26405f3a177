"""Draws images in parallel: places to pictures, candidates and JPEG files.

A place is a pure function of (seed, split, number), so it does not matter who draws it; results come back in order.
Workers are spawned, import nothing but what draws, and do their linear algebra in one thread: two processes that each
start two threads on two cores would only wait for each other.
"""

import io
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing.pool import Pool

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.prepare.world.config import WorldConfig
from scaleearth_pl.prepare.world.factors import factors_of
from scaleearth_pl.prepare.world.identify import identify
from scaleearth_pl.prepare.world.plan import DEGREE_M, SPLITS, Place, aim, make_place, visits
from scaleearth_pl.prepare.world.questions import Candidate, about_sizes
from scaleearth_pl.prepare.world.render import expose, render
from scaleearth_pl.prepare.world.sight import look

BOUNDARIES = TierBoundaries()
PENDING = (Question(id="-", type="-", family="-", question="-", answer="-"),)
"""Stands in a sample until its questions are chosen: a sample without questions is not valid."""
Task = tuple[WorldConfig, str, int, tuple[int, int]]
"""Settings, split, number of the place, its visit."""


@dataclass(frozen=True)
class Drawn:
    """An image before its questions are chosen."""

    sample: Sample
    candidates: tuple[Candidate, ...]
    image: bytes


@contextmanager
def workers(world: WorldConfig) -> Iterator[Pool]:
    """The processes that draw; always others than this one, so that all draw under the same conditions."""
    with single_threaded():
        pool = multiprocessing.get_context("spawn").Pool(world.processes or os.cpu_count() or 1)
    with pool:
        yield pool


def draw_all(world: WorldConfig, split: str, pool: Pool) -> Iterator[Drawn]:
    """Images of a split in order, whoever draws them; the work starts at the call, before the first is asked for."""
    tasks: list[Task] = [(world, split, index, visit) for index, visit in enumerate(visits(world.images[split]))]
    return chain.from_iterable(pool.imap(draw_place, tasks, chunksize=4))


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


def draw_place(task: Task) -> list[Drawn]:
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


def encode(levels: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG without chroma subsampling; one quality and one size for all, so that the file tells nothing."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
