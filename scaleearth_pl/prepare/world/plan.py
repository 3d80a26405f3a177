"""Which places, which GSDs, where the camera points: everything that is decided before anything is drawn.

Tiers come in turn and GSDs log-uniform inside their tier, so every split holds equally many images of each tier to
within a few. A place is seen three or four times, from different heights, with its centre in or near every view.

The size of a subject is drawn *in pixels*, log-uniform in [SMALLEST_PX, LARGEST_PX], for one of the place's own GSDs:
a photographer frames what he finds. So knowing the GSD leaves a factor of twenty open, and knowing the pixels leaves
three decades.
"""

import math
from dataclasses import dataclass

import numpy as np

from scaleearth_pl.core.gsd import Tier, TierBoundaries
from scaleearth_pl.prepare.world.archetypes import ARCHETYPES, size_range
from scaleearth_pl.prepare.world.canvas import View
from scaleearth_pl.prepare.world.compose import compose
from scaleearth_pl.prepare.world.nouns import LARGEST_PX, SMALLEST_PX
from scaleearth_pl.prepare.world.scene import Blob, Building, Ribbon, Scene, Subject, Town
from scaleearth_pl.prepare.world.selfsimilar import BASES, compose_self_similar

LEAST_SPAN = 6.0
"""A noun is put in focus at a GSD only if the sizes it has there span this factor: else the GSD would tell the size."""
NOUNS_PER_GSD = 3
ONCE = ("beach", "town")
"""Nouns that a place has at most one of."""
APART = 8.0
"""Ratio of sizes from which two things of one noun do not compete for being "the" lake."""
SPLITS = {"train": 0, "val": 1, "test": 2, "stage1": 3}
"""Splits and their numbers in every seed; `stage1` gives the first stage regions of its own."""
PLACES_PER_REGION = 8
DEGREE_M = 111_320.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place and the GSDs it is seen at.

    Attributes:
        index: number of the place in its split.
        first_image: number of its first image.
        gsds_m: metres per pixel, in the order of the images.
        scene: what is there.
        lon: degrees east; made up, but consistent: regions of different splits lie degrees apart.
        lat: degrees north.
    """

    split: str
    index: int
    first_image: int
    gsds_m: tuple[float, ...]
    scene: Scene
    lon: float
    lat: float

    @property
    def place_id(self) -> str:
        """Unique in the corpus."""
        return f"{self.split}-{self.index:05d}"

    @property
    def region_id(self) -> str:
        """Groups of neighbouring places; never in two splits."""
        return f"{self.split}-r{self.index // PLACES_PER_REGION:04d}"


def visits(n_images: int) -> list[tuple[int, int]]:
    """(first image, number of images) of every place: 3, 3, 4, 3, 3, 4, ... until `n_images` are reached."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < n_images:
        count = min(4 if len(found) % 3 == 2 else 3, n_images - first)
        found.append((first, count))
        first += count
    return found


def draw_gsds(
    rng: np.random.Generator, first_image: int, count: int, range_m: tuple[float, float], boundaries: TierBoundaries
) -> tuple[float, ...]:
    """Tiers in turn by image number, GSDs log-uniform inside the tier, six significant digits."""
    edges = {
        Tier.HIGH: (range_m[0], boundaries.high_below_m),
        Tier.MID: (boundaries.high_below_m, boundaries.mid_below_m),
        Tier.LOW: (boundaries.mid_below_m, range_m[1]),
    }
    tiers = [tier for tier, (low, high) in edges.items() if max(low, range_m[0]) < min(high, range_m[1])]
    drawn = []
    for number in range(first_image, first_image + count):
        low, high = edges[tiers[number % len(tiers)]]
        low, high = max(low, range_m[0]), min(high, range_m[1])
        # Rounding must not lift a GSD over the upper edge of its tier, hence the hair's breadth below it.
        drawn.append(float(f"{low * (0.99999 * high / low) ** rng.uniform():.6g}"))
    return tuple(drawn)


def draw_focus(rng: np.random.Generator, label: str, gsds_m: tuple[float, ...]) -> list[tuple[str, float]]:
    """`NOUNS_PER_GSD` (noun, size in metres) for every GSD; a noun comes twice only in sizes that do not compete."""
    focus: list[tuple[str, float]] = []
    for gsd_m in gsds_m:
        here: set[str] = set()
        for _ in range(NOUNS_PER_GSD):
            spans = {noun: pixel_span(label, noun, gsd_m) for noun in ARCHETYPES[label].nouns if noun not in here}
            possible = [noun for noun, (low, high) in spans.items() if high >= LEAST_SPAN * low]
            if not possible:
                break
            noun = possible[int(rng.integers(len(possible)))]
            here.add(noun)
            low, high = spans[noun]
            size_m = gsd_m * low * (high / low) ** float(rng.uniform())
            taken = [size for other, size in focus if other == noun]
            apart = math.inf if noun in ONCE else APART
            if all(max(size / size_m, size_m / size) > apart for size in taken):
                focus.append((noun, size_m))
    return focus


def pixel_span(label: str, noun: str, gsd_m: float) -> tuple[float, float]:
    """Pixel sizes that a noun can have at a GSD, within what is asked about."""
    smallest_m, largest_m = size_range(label, noun)
    return max(SMALLEST_PX, smallest_m / gsd_m), min(LARGEST_PX, largest_m / gsd_m)


def make_place(
    seed: int,
    split: str,
    index: int,
    visit: tuple[int, int],
    *,
    range_m: tuple[float, float],
    cue_less_share: float,
    boundaries: TierBoundaries,
) -> Place:
    """The `index`-th place of a split: a pure function of its arguments."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    gsds_m = draw_gsds(rng, *visit, range_m, boundaries)
    if math.floor((index + 1) * cue_less_share) > math.floor(index * cue_less_share):
        number = math.floor(index * cue_less_share)
        scene = compose_self_similar(rng, tuple(BASES)[number % len(BASES)])
    else:
        weights = np.array([a.weight for a in ARCHETYPES.values()])
        label = str(rng.choice(list(ARCHETYPES), p=weights / weights.sum()))
        scene = compose(rng, label, draw_focus(rng, label, gsds_m))
    lon, lat = coordinates(rng, split, index // PLACES_PER_REGION)
    return Place(split=split, index=index, first_image=visit[0], gsds_m=gsds_m, scene=scene, lon=lon, lat=lat)


def coordinates(rng: np.random.Generator, split: str, region: int) -> tuple[float, float]:
    """Longitude and latitude of a place: splits own bands of latitude 10 degrees apart, regions half a degree."""
    lat = -45.0 + 25.0 * SPLITS[split] + 0.5 * (region // 600 % 30) + rng.uniform(-0.08, 0.08)
    lon = -150.0 + 0.5 * (region % 600) + rng.uniform(-0.08, 0.08)
    return lon, lat


def aim(rng: np.random.Generator, place: Place, number: int, n_px: int) -> View:
    """The camera of the `number`-th image: at one of the subjects that suit its GSD, with jitter in pixels.

    A subject of s pixels may lie anywhere in view where all of it, or both of its banks, are seen. The choice looks
    at sizes in pixels only, so on self-similar places it is no cue.
    """
    gsd_m = place.gsds_m[number]
    fits = [s for s in place.scene.subjects if SMALLEST_PX <= s.size_m / gsd_m <= LARGEST_PX]
    if not fits:
        x, y = rng.uniform(-0.15, 0.15, 2) * n_px * gsd_m
        return View(x_m=float(x), y_m=float(y), gsd_m=gsd_m, n_px=n_px)
    x, y = look_at(rng, fits[int(rng.integers(len(fits)))], gsd_m, n_px)
    return View(x_m=x, y_m=y, gsd_m=gsd_m, n_px=n_px)


def look_at(rng: np.random.Generator, subject: Subject, gsd_m: float, n_px: int) -> tuple[float, float]:
    """A point from which the subject is in view as a whole (ribbons: both banks)."""
    room = 0.45 * max(n_px - 1.1 * subject.size_m / gsd_m, 4.0) * gsd_m
    match subject.thing:
        case Blob() | Town() | Building():
            x, y = rng.uniform(-0.8, 0.8, 2) * room
            return subject.x_m + float(x), subject.y_m + float(y)
        case Ribbon() as ribbon:
            x, y, turn = ribbon.point(float(rng.uniform(-0.3, 0.3)) * n_px * gsd_m)
            aside = float(rng.uniform(-0.6, 0.6)) * room
            return x - aside * math.sin(turn), y + aside * math.cos(turn)
        case _:
            x, y = rng.uniform(-0.1, 0.1, 2) * n_px * gsd_m
            return subject.x_m + float(x), subject.y_m + float(y)
