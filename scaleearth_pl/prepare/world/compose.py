"""From a seed and a few sizes to a place: the smaller a thing, the nearer to the centre.

A subject of size s lies about s from the place's centre, so that a camera at any GSD finds something there that is
neither a dot nor larger than the footprint: zooming in on the centre passes from town to house to puddle. Everything
else (`scenery.py`) is what such a landscape has anyway.
"""

import math
from collections.abc import Sequence

import numpy as np

from scaleearth_pl.prepare.world.archetypes import ARCHETYPES
from scaleearth_pl.prepare.world.draft import Draft, extent
from scaleearth_pl.prepare.world.scene import Scene, Thing
from scaleearth_pl.prepare.world.scenery import around, ground
from scaleearth_pl.prepare.world.subjects import PLACERS

PAINT_ORDER = ("field", "forest", "town", "garden", "river", "lake", "road", "sea", "beach", "island", "roof")


def painting_order(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """By kind, and the large before the small."""
    return tuple(sorted(things, key=lambda t: (PAINT_ORDER.index(t.kind), -extent(t))))


def compose(rng: np.random.Generator, label: str, focus: Sequence[tuple[str, float]]) -> Scene:
    """A place of archetype `label` that holds things of the given nouns and sizes (metres) around its centre.

    A thing that finds no room after `TRIES` attempts is left out, so `subjects` may be fewer than `focus`.
    """
    draft = Draft(rng, label)
    ground(draft, focus)
    for noun, size_m in sorted(focus, key=lambda pair: pair[1]):
        PLACERS[noun](draft, size_m)
    around(draft, {noun for noun, _ in focus})
    turn = rng.uniform(0, 2 * math.pi)
    archetype = ARCHETYPES[label]
    return Scene(
        seed=int(rng.integers(1 << 30)),
        label=label,
        base=archetype.base,
        sun=(math.cos(turn), math.sin(turn)),
        things=painting_order(draft.things),
        subjects=tuple(draft.subjects),
        trees=archetype.trees,
    )
