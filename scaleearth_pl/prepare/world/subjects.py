"""One placer for every noun: finds room for a thing of a given size near the centre and makes it a subject.

Water goes around roofs; roofs go beside roads and water; woods and towns may be crossed by anything, because the
painting order puts water over woods and roads over water. A noun that finds no room is left out.
"""

import math
from collections.abc import Callable

from scaleearth_pl.prepare.world.draft import NEGLIGIBLE, TRIES, Draft, gap
from scaleearth_pl.prepare.world.scene import Blob, Building, Mosaic, Ribbon, Subject, Thing, Town

GARDEN_BELOW_M = 25.0
"""Parcels narrower than this never cover the land; they lie in a plot of limited size."""
WATER = ("river", "lake", "sea", "beach", "island")
SOLID = ("roof", "lake", "river", "garden", "sea", "beach", "island")


def place_blob(draft: Draft, noun: str, size_m: float, *, of: tuple[str, ...], rough: float) -> None:
    """A blob that touches nothing of the kinds `of`."""
    spot = draft.spot(size_m, 0.62 * size_m, of)
    if spot is not None:
        blob = draft.blob(noun, size_m, *spot, rough=rough)
        draft.things.append(blob)
        add_subject(draft, noun, size_m, blob, *spot)


def place_lake(draft: Draft, size_m: float) -> None:
    """A lake, in every archetype on land."""
    place_blob(draft, "lake", size_m, of=SOLID, rough=0.16)


def place_forest(draft: Draft, size_m: float) -> None:
    """A wood; water and roads may run through it."""
    place_blob(draft, "forest", size_m, of=("roof", "sea", "beach", "garden"), rough=0.2)


def place_island(draft: Draft, size_m: float) -> None:
    """An island in the sea."""
    place_blob(draft, "island", size_m, of=("island",), rough=0.2)


def place_town(draft: Draft, size_m: float) -> None:
    """A town; smaller subjects near the centre stay outside it."""
    spot = draft.spot(size_m, 0.56 * size_m, ("roof", "sea", "beach", "garden", "lake"))
    if spot is not None:
        town = draft.town(size_m, *spot)
        draft.things.append(town)
        add_subject(draft, "town", town.blob.length_m, town, *spot)


def place_roof(draft: Draft, size_m: float) -> None:
    """A building clear of roads and water, parallel to the first road if there is one."""
    spot = draft.spot(size_m, 0.62 * size_m, ("road", *WATER, "roof"))
    if spot is not None:
        roads = [t for t in draft.things if isinstance(t, Ribbon) and t.kind == "road"]
        angle = roads[0].angle if roads else float(draft.rng.uniform(0, math.pi))
        roof = draft.building(size_m, *spot, angle)
        draft.things.append(roof)
        add_subject(draft, "roof", size_m, roof, *spot)


def place_ribbon(draft: Draft, noun: str, size_m: float) -> None:
    """A road or river that passes the centre at about its width and avoids what was placed before."""
    make = draft.road if noun == "road" else draft.river
    for _ in range(TRIES):
        ribbon = make(size_m, size_m * float(draft.rng.uniform(0.9, 1.7)))
        if gap(ribbon, 0.0, 0.0) > 0.2 * size_m and not any(blocks(ribbon, thing) for thing in draft.things):
            draft.things.append(ribbon)
            x, y, _ = ribbon.point(0.0)
            add_subject(draft, noun, size_m, ribbon, x, y)
            return


def blocks(ribbon: Ribbon, thing: Thing) -> bool:
    """Whether a ribbon would run over a thing that it must not."""
    if isinstance(thing, Building):
        return gap(ribbon, thing.x_m, thing.y_m) < 1.05 * thing.reach_m
    body = thing.inside if isinstance(thing, Mosaic) else thing
    if isinstance(body, Blob) and body.kind in ("lake", "garden") and body.reach_m > ribbon.width_m / NEGLIGIBLE:
        return gap(ribbon, body.x_m, body.y_m) < body.reach_m
    return False


def place_field(draft: Draft, size_m: float) -> None:
    """A plot of a dozen strips; on farmland wide parcels are the ground itself (`scenery.ground`)."""
    grounds = [t for t in draft.things if isinstance(t, Mosaic) and t.inside is None]
    if grounds and size_m >= GARDEN_BELOW_M:
        if grounds[0].width_m == size_m:
            add_subject(draft, "field", size_m, grounds[0], 0.0, 0.0)
        return
    extent = 22 * size_m
    spot = draft.spot(0.35 * extent, 0.4 * extent, ("roof", "lake", "sea"))
    if spot is not None:
        mosaic = draft.mosaic(size_m, draft.blob("garden", extent, *spot, rough=0.05))
        draft.things.append(mosaic)
        add_subject(draft, "field", size_m, mosaic, *spot)


def place_beach(draft: Draft, size_m: float) -> None:
    """The beach along the shore that `scenery.ground` laid out."""
    shore = next(t for t in draft.things if isinstance(t, Ribbon) and t.kind == "beach")
    x, y, _ = shore.point(0.0)
    add_subject(draft, "beach", size_m, shore, x, y)


def add_subject(draft: Draft, noun: str, size_m: float, thing: Thing, x_m: float, y_m: float) -> None:
    """Registers a thing as one that may be asked about."""
    body = thing.blob if isinstance(thing, Town) else thing
    area = body.area_m2 if isinstance(body, Blob) else None
    draft.subjects.append(Subject(noun=noun, size_m=size_m, area_m2=area, thing=thing, x_m=x_m, y_m=y_m))


PLACERS: dict[str, Callable[[Draft, float], None]] = {
    "road": lambda draft, size_m: place_ribbon(draft, "road", size_m),
    "river": lambda draft, size_m: place_ribbon(draft, "river", size_m),
    "lake": place_lake,
    "roof": place_roof,
    "field": place_field,
    "forest": place_forest,
    "town": place_town,
    "island": place_island,
    "beach": place_beach,
}
