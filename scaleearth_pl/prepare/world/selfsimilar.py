"""Places without any scale: zoomed by any factor they look the same, statistically.

Open sea, bare soil, snow, uniform crop. Ground texture is a self-similar wave field; lakes (islands in the sea)
come in a geometric series of sizes with random phase, each as far from the centre as it is long; rivers likewise. Nothing has a
size of its own: no cars, no trees, no banks of so many metres. The picture then says how many *pixels* wide a river is,
only metadata says how many metres, and SSE-U has to admit that it does not know.
"""

import numpy as np

from scaleearth_pl.prepare.world.compose import painting_order
from scaleearth_pl.prepare.world.draft import Draft
from scaleearth_pl.prepare.world.scene import Scene
from scaleearth_pl.prepare.world.subjects import PLACERS

BASES = {"open sea": "water", "bare soil": "soil", "snow": "snow", "uniform crop": "field"}
SMALLEST_M, LARGEST_M = 0.02, 40_000.0
"""Sizes of the series: from below a pixel at 0.05 m to five footprints at 60 m, so that its ends are never seen."""


def compose_self_similar(rng: np.random.Generator, label: str) -> Scene:
    """A place without scale cue; `label` is a key of `BASES`."""
    draft = Draft(rng, label)
    noun = "island" if label == "open sea" else "lake"
    if rng.uniform() < 0.85:
        series(draft, noun, ratio=float(rng.uniform(9, 14)))
    if label != "open sea" and rng.uniform() < 0.6:
        series(draft, "river", ratio=float(rng.uniform(14, 22)))
    return Scene(
        seed=int(rng.integers(1 << 30)),
        label=label,
        base=BASES[label],
        sun=(1.0, 0.0),
        things=painting_order(draft.things),
        subjects=tuple(draft.subjects),
        has_scale_cue=False,
    )


def series(draft: Draft, noun: str, *, ratio: float) -> None:
    """Things of one noun, every one `ratio` times the size of the one before."""
    rng = draft.rng
    size = SMALLEST_M * ratio ** float(rng.uniform())
    while size < LARGEST_M:
        PLACERS[noun](draft, size)
        size *= ratio
