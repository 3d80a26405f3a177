"""Places without any scale: zoomed by any factor they look the same, statistically.

Open sea, bare soil, snow, uniform crop. Ground texture is a self-similar wave field; lakes (islands in the sea) come
in a geometric series of sizes with random phase, each as far from the centre as it is long; rivers likewise. Nothing
has a size of its own: no cars, no trees, no banks of so many metres. The picture then says how many *pixels* wide a
river is, only metadata says how many metres, and SSE-U has to admit that it does not know.
"""

from collections.abc import Iterator

import numpy as np

from scaleearth_pl.prepare.world.compose import painting_order
from scaleearth_pl.prepare.world.draft import Draft
from scaleearth_pl.prepare.world.scene import Scene
from scaleearth_pl.prepare.world.subjects import PLACERS

BASES = {"open sea": "water", "bare soil": "soil", "snow": "snow", "uniform crop": "field"}
SMALLEST_M, LARGEST_M = 1e-5, 4e5
"""Sizes of the series. Three decades below the smallest pixel and half a decade above the largest footprint: finding
room for a thing depends on its smaller neighbours, and the series must have forgotten its beginning before it is
seen."""


def compose_self_similar(rng: np.random.Generator, label: str) -> Scene:
    """A place without scale cue; `label` is a key of `BASES`."""
    draft = Draft(rng, label)
    things: list[tuple[float, str]] = []
    if rng.uniform() < 0.85:
        noun = "island" if label == "open sea" else "lake"
        things += [(size_m, noun) for size_m in series(rng, float(rng.uniform(9, 14)))]
    if label != "open sea" and rng.uniform() < 0.6:
        things += [(size_m, "river") for size_m in series(rng, float(rng.uniform(14, 22)))]
    # In order of size, so that a thing makes room for its smaller neighbours only: any other order has a scale.
    for size_m, noun in sorted(things):
        PLACERS[noun](draft, size_m)
    return Scene(
        seed=int(rng.integers(1 << 30)),
        label=label,
        base=BASES[label],
        sun=(1.0, 0.0),
        things=painting_order(draft.things),
        subjects=tuple(draft.subjects),
        has_scale_cue=False,
    )


def series(rng: np.random.Generator, ratio: float) -> Iterator[float]:
    """Sizes in metres, every one `ratio` times the one before, with random phase."""
    size_m = SMALLEST_M * ratio ** float(rng.uniform())
    while size_m < LARGEST_M:
        yield size_m
        size_m *= ratio
