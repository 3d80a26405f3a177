"""Identification questions: what the image alone decides, at any GSD."""

import math
from collections.abc import Iterator

import numpy as np

from scaleearth_pl.prepare.world.questions import Candidate, gsd_bin
from scaleearth_pl.prepare.world.render import Picture
from scaleearth_pl.prepare.world.scene import COVER, Ribbon
from scaleearth_pl.prepare.world.sight import PRESENT, Sight
from scaleearth_pl.prepare.world.wording import say

CARS_BELOW_M = 0.9
"""GSD up to which a car, 1.8 m wide, covers two pixels: only there is its absence a fact about the place."""
THINGS = {
    "a road": (("road",), ("road", "town")),
    "a building": (("roof",), ("roof", "town")),
    "water": (("water",), ("river", "lake", "sea")),
    "a tree": (("trees",), ("forest", "town")),
    "a field": (("field",), ("field", "garden")),
    "sand": (("sand",), ("beach", "island")),
    "bare soil": (("soil",), ()),
    "snow": (("snow",), ()),
}
"""Covers that show a thing, and the kinds of objects that might hide some of it."""
TREES_BELOW_M = 3.0
"""GSD up to which a tree, 4 to 9 m wide, is seen; above, only woods are."""
OBJECTS = {"a river": "river", "a lake": "lake", "a town": "town", "an island": "island", "a beach": "beach"}
LOOKALIKES = {"sand": ("soil",), "a beach": ("soil", "sand"), "bare soil": ("sand", "field")}
"""Covers on which no person would swear that the thing is absent: a ploughed field is bare, a desert is sandy."""
TOWN_FROM_M = 0.7
"""GSD from which a footprint holds a block with its streets; below, a lawn in town is a lawn."""
WAYS = ("east-west", "northwest-southeast", "north-south", "northeast-southwest")


def identify(sight: Sight, picture: Picture, image_id: str) -> Iterator[Candidate]:
    """All identification candidates of an image."""
    yield from land_cover(sight, image_id)
    yield from presence(sight, image_id)
    yield from sides(sight, picture, image_id)
    yield from orientation(sight, image_id)
    town, land = sight.share_of_kind("town"), sight.cover_share["water"] < 0.8
    if sight.view.gsd_m >= TOWN_FROM_M and land and (town > 0.35 or (town == 0 and not sight.near("town"))):
        yield candidate(sight, "setting", say("setting", image_id), "urban" if town > 0 else "rural", "")


def candidate(sight: Sight, kind: str, question: str, answer: str, about: str) -> Candidate:
    """An identification question, balanced per thing and GSD bin."""
    cell = (kind, about, gsd_bin(sight.view.gsd_m))
    return Candidate(type=kind, family="identification", question=question, answer=answer, cell=cell, value=answer)


def land_cover(sight: Sight, image_id: str) -> Iterator[Candidate]:
    """The commonest cover, where it is clear; a town seen from afar is one cover, from near it is what it consists
    of.
    """
    shares = dict(sight.cover_share)
    if sight.view.gsd_m >= 1.0:
        town = sight.share_of_kind("town")
        for cover in ("roof", "road", "grass", "car", "town"):
            shares[cover] = max(0.0, shares[cover] - town) if cover != "town" else town
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    if shares[first] >= 0.4 and shares[second] <= 0.7 * shares[first] and first != "car":
        yield candidate(sight, "land_cover", say("land_cover", image_id), first, "")


def presence(sight: Sight, image_id: str) -> Iterator[Candidate]:
    """Is there ...? Asked where it clearly is or is not."""
    for thing, (covers, kinds) in THINGS.items():
        share = sum(sight.cover_share[c] for c in covers)
        if thing == "a tree" and sight.view.gsd_m > TREES_BELOW_M:
            continue
        yield from yes_or_no(sight, thing, share, sight.near(*kinds), image_id)
    for thing, kind in OBJECTS.items():
        if kind != "town" or sight.view.gsd_m >= TOWN_FROM_M:
            yield from yes_or_no(sight, thing, sight.share_of_kind(kind), sight.near(kind), image_id)
    if sight.view.gsd_m > TREES_BELOW_M:
        woods = sight.cover_share["trees"]  # Trees that are painted one by one end at TREES_BELOW_M.
        yield from yes_or_no(sight, "woodland", woods, sight.near("forest"), image_id)
    if sight.view.gsd_m <= CARS_BELOW_M:
        yield from yes_or_no(sight, "a car", 4 * sight.cover_share["car"], False, image_id)


def yes_or_no(sight: Sight, thing: str, share: float, hidden: bool, image_id: str) -> Iterator[Candidate]:
    """Yes from `PRESENT` on, no if nothing shows or could show."""
    doubtful = hidden or any(sight.cover_share[c] > 0 for c in LOOKALIKES.get(thing, ()))
    if share >= PRESENT or (share == 0 and not doubtful):
        question = say("presence", f"{image_id}|{thing}", thing=thing)
        yield candidate(sight, "presence", question, "yes" if share else "no", thing)


def sides(sight: Sight, picture: Picture, image_id: str) -> Iterator[Candidate]:
    """On which side the water, forest, town or field lies, where it is clearly on one."""
    woods = [t.code for t in sight.scene.things if t.kind == "forest"] + [0] * (sight.scene.base == "trees")
    seen = {thing: picture.cover_NN == COVER[thing] for thing in ("water", "town", "field")}
    seen["forest"] = (picture.cover_NN == COVER["trees"]) & np.isin(picture.code_NN, woods)
    for thing, there in seen.items():
        if not 0.06 <= there.mean() <= 0.55:
            continue
        rows, columns = np.nonzero(there)
        n = picture.cover_NN.shape[0]
        right, low = 2 * columns.mean() / (n - 1) - 1, 2 * rows.mean() / (n - 1) - 1
        if max(abs(right), abs(low)) >= 0.3 and min(abs(right), abs(low)) <= 0.5 * max(abs(right), abs(low)):
            answer = ("right" if right > 0 else "left") if abs(right) > abs(low) else ("bottom" if low > 0 else "top")
            yield candidate(sight, "side", say("side", f"{image_id}|{thing}", thing=thing), answer, thing)


def orientation(sight: Sight, image_id: str) -> Iterator[Candidate]:
    """Does the road run north-south? About a right direction and about the one square to it."""
    for subject, _ in sight.measured:
        if isinstance(subject.thing, Ribbon) and subject.noun in ("road", "river"):
            ribbon, view = subject.thing, sight.view
            u = view.x_m * math.cos(ribbon.angle) + view.y_m * math.sin(ribbon.angle)
            turn = math.degrees(ribbon.point(u)[2]) % 180
            way = round(turn / 45)
            # Where a meander leaves the direction of the whole, both could be meant.
            apart = abs((math.degrees(ribbon.angle) - 45 * way + 90) % 180 - 90)
            if abs(turn - 45 * way) <= 14 and apart <= 30:
                for answer, index in (("yes", way % 4), ("no", (way + 2) % 4)):
                    question = say("orientation", f"{image_id}|{index}", noun=subject.noun, way=WAYS[index])
                    yield candidate(sight, "orientation", question, answer, f"{subject.noun} {WAYS[index]}")
