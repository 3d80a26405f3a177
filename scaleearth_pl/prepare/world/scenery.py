"""What a landscape has anyway: its ground before the subjects are placed, and the surroundings after.

Surroundings lie away from the centre, and are left out for nouns that are in focus, so that "the river" stays the
only one that counts. They have the sizes of our world (roads of 5 to 9 m, houses of 9 to 15 m, villages of 200 to 500
m) and so are scale cues.
"""

import math
from collections.abc import Sequence

from scaleearth_pl.prepare.world.archetypes import ARCHETYPES
from scaleearth_pl.prepare.world.draft import Draft
from scaleearth_pl.prepare.world.scene import Ribbon
from scaleearth_pl.prepare.world.subjects import GARDEN_BELOW_M, WATER

HALF_PLACE_M = 4200.0
"""Half the side of the land around a place that holds scenery: a little more than the largest footprint."""


def ground(draft: Draft, focus: Sequence[tuple[str, float]]) -> None:
    """Lays the unbounded things: parcels, sea and beach, the city."""
    rng = draft.rng
    if ARCHETYPES[draft.label].base == "field":
        asked = max((size_m for noun, size_m in focus if noun == "field"), default=0.0)
        draft.things.append(draft.mosaic(asked if asked >= GARDEN_BELOW_M else float(rng.uniform(90, 190)), None))
    if draft.label == "coast":
        shore(draft, dict(focus).get("beach", float(10 ** rng.uniform(0.7, 1.8))))
    if draft.label == "city":
        size = float(rng.uniform(2500, 6500))
        turn, away = rng.uniform(0, 2 * math.pi), size * rng.uniform(0.05, 0.3)
        draft.things.append(draft.town(size, away * math.cos(turn), away * math.sin(turn)))


def shore(draft: Draft, beach_m: float) -> None:
    """Sea beyond a line that bends at every scale, and a beach of constant width before it."""
    rng = draft.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    lengths = [60 * 4**k * rng.uniform(0.7, 1.4) for k in range(5) if 60 * 4**k > 4 * beach_m]
    bends = tuple((float(0.035 * x), float(x), float(rng.uniform(0, 6.28))) for x in lengths)
    # Whatever the bends do, the shore passes the centre at about two widths of the beach.
    offset = beach_m * float(rng.uniform(1.5, 2.5)) - sum(a * math.sin(p) for a, _, p in bends)
    for kind, low, high in (("sea", 0.0, 1e5), ("beach", -beach_m, 0.0)):
        draft.things.append(
            Ribbon(code=draft.code(), kind=kind, angle=angle, offset_m=offset, low_m=low, high_m=high, bends=bends)
        )


def around(draft: Draft, focus: set[str]) -> None:
    """Adds roads, houses, woods, villages and lakes away from the centre."""
    rng, label = draft.rng, draft.label
    if label == "islands":
        return
    if "road" not in focus and label != "city" and rng.uniform() < 0.7:
        for _ in range(int(rng.integers(1, 3))):
            offset = float(rng.choice([-1, 1]) * 10 ** rng.uniform(1.0, 3.2))
            road = draft.road(float(rng.uniform(5, 9)), offset)
            if draft.clear(*road.point(0.0)[:2], road.width_m, of=("roof", "lake", "garden")):
                draft.things.append(road)
    if "roof" not in focus and label in ("village", "farmland", "coast", "heath", "desert"):
        hamlet(draft, int(rng.integers(0, 6)))
    if "forest" not in focus and label in ("farmland", "village", "heath", "coast"):
        scatter(draft, "forest", int(rng.integers(3, 12)), 120, 2400)
    if "town" not in focus and label in ("farmland", "village", "coast", "heath"):
        scatter(draft, "town", int(rng.integers(0, 4)), 220, 700)
    if "lake" not in focus and label in ("forest", "heath", "farmland"):
        scatter(draft, "lake", int(rng.integers(0, 4)), 40, 300)
    if "river" not in focus and label in ("farmland", "forest", "heath", "city") and rng.uniform() < 0.3:
        river = draft.river(float(10 ** rng.uniform(1.0, 1.9)), float(rng.uniform(700, 2500)))
        draft.things.append(river)


def hamlet(draft: Draft, n: int) -> None:
    """A few houses within shouting distance of the centre, along one direction."""
    rng = draft.rng
    angle = float(rng.uniform(0, math.pi))
    for _ in range(n):
        away, turn, length = rng.uniform(12, 110), rng.uniform(0, 2 * math.pi), float(rng.uniform(9, 15))
        x, y = away * math.cos(turn), away * math.sin(turn)
        if draft.clear(x, y, 0.9 * length, of=("road", "roof", "garden", *WATER)):
            draft.things.append(draft.building(length, x, y, angle + (math.pi / 2 if rng.uniform() < 0.5 else 0.0)))


def scatter(draft: Draft, kind: str, n: int, smallest_m: float, largest_m: float) -> None:
    """Blobs of log-uniform size, at least their own length away from the centre."""
    rng = draft.rng
    for _ in range(n):
        size = float(smallest_m * (largest_m / smallest_m) ** rng.uniform())
        x, y = (float(rng.uniform(-HALF_PLACE_M, HALF_PLACE_M)) for _ in range(2))
        if math.hypot(x, y) < 1.2 * size + 60 or not draft.clear(
            x, y, 0.55 * size, of=("lake", "sea", "beach", "roof")
        ):
            continue
        draft.things.append(draft.town(size, x, y) if kind == "town" else draft.blob(kind, size, x, y, rough=0.2))
