"""A place under construction: makes things with the proportions of their kind and finds room for them."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from scaleearth_pl.prepare.world.scene import Blob, Building, Mosaic, Ribbon, Subject, Thing, Town

TRIES = 40
"""Attempts at finding room for a thing."""
NEGLIGIBLE = 16.0
"""A thing this many times smaller than another is no obstacle to it."""


@dataclass
class Draft:
    """A place under construction."""

    rng: np.random.Generator
    label: str
    things: list[Thing] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)

    def code(self) -> int:
        """A code that nothing has yet."""
        return 1 + len(self.things)

    def blob(self, kind: str, length_m: float, x_m: float, y_m: float, *, rough: float = 0.14) -> Blob:
        """A blob of a given length; `rough` is the height of its wobble."""
        rng = self.rng
        wobble = tuple(float(rng.normal(0, rough / (1 + k // 2))) for k in range(8))
        shape = (1.0, float(rng.uniform(0.55, 0.95)))
        angle = float(rng.uniform(0, math.pi))
        made = Blob(code=self.code(), kind=kind, x_m=x_m, y_m=y_m, half_m=shape, angle=angle, wobble=wobble)
        scale = length_m / made.length_m
        half = (shape[0] * scale, shape[1] * scale)
        return Blob(code=made.code, kind=kind, x_m=x_m, y_m=y_m, half_m=half, angle=angle, wobble=wobble)

    def river(self, width_m: float, offset_m: float) -> Ribbon:
        """Meanders of eleven widths, as rivers of every size have: a river betrays no scale."""
        rng, w = self.rng, width_m
        bends = (
            (w * rng.uniform(0.3, 0.9), w * rng.uniform(9, 13), rng.uniform(0, 6.28)),
            (w * rng.uniform(0.4, 1.2), w * rng.uniform(17, 26), rng.uniform(0, 6.28)),
            (w * rng.uniform(0.5, 1.8), w * rng.uniform(40, 75), rng.uniform(0, 6.28)),
        )
        return self._ribbon("river", width_m, offset_m, bends)

    def road(self, width_m: float, offset_m: float) -> Ribbon:
        """Nearly straight; wide ones are always paved."""
        length = self.rng.uniform(400, 2000)
        bends = ((length * self.rng.uniform(0.002, 0.02), length, self.rng.uniform(0, 6.28)),)
        road = self._ribbon("road", width_m, offset_m, bends)
        shores = [t.angle for t in self.things if isinstance(t, Ribbon) and t.kind == "sea"]
        # Along a shore, on the land side (v < 0): elsewhere it would end in the sea.
        return replace(road, angle=shores[0], offset_m=-abs(offset_m)) if shores else road

    def _ribbon(
        self, kind: str, width_m: float, offset_m: float, bends: tuple[tuple[float, float, float], ...]
    ) -> Ribbon:
        return Ribbon(
            code=self.code(),
            kind=kind,
            angle=float(self.rng.uniform(0, 2 * math.pi)),
            offset_m=offset_m,
            low_m=-width_m / 2,
            high_m=width_m / 2,
            bends=tuple((float(a), float(b), float(c)) for a, b, c in bends),
            paved=bool(width_m > 9 or (self.rng.uniform() < 0.5 and width_m > 2.5)),
        )

    def building(self, length_m: float, x_m: float, y_m: float, angle: float) -> Building:
        """A box; large ones have flat roofs."""
        rng = self.rng
        return Building(
            code=self.code(),
            x_m=x_m,
            y_m=y_m,
            length_m=length_m,
            breadth_m=length_m * float(rng.uniform(0.45, 0.85)),
            height_m=float(np.clip(0.4 * length_m, 1.5, 14) * rng.uniform(0.8, 1.2)),
            angle=angle,
            tint=int(rng.integers(8)),
            gabled=bool(length_m < 22 or rng.uniform() < 0.25),
        )

    def town(self, length_m: float, x_m: float, y_m: float) -> Town:
        """Blocks of 70 to 130 m, lots of about 20 m: like cars, towns betray the scale."""
        rng = self.rng
        dense = self.label == "city"
        return Town(
            blob=self.blob("town", length_m, x_m, y_m, rough=0.1),
            block_m=(float(rng.uniform(75, 130)), float(rng.uniform(48, 68))),
            street_m=float(rng.uniform(8, 13)),
            lots=int(rng.integers(4, 6)) if not dense else int(rng.integers(3, 5)),
            built=float(rng.uniform(0.72, 0.9) if dense else rng.uniform(0.42, 0.58)),
            angle=float(rng.uniform(0, math.pi)),
            seed=int(rng.integers(1 << 30)),
        )

    def mosaic(self, width_m: float, inside: Blob | None) -> Mosaic:
        """Parcels; plants stand in rows of 0.6 to 0.9 m wherever parcels are wide enough."""
        rng = self.rng
        return Mosaic(
            code=self.code(),
            width_m=width_m,
            length_m=width_m * float(rng.uniform(1.4, 3.2)),
            angle=float(rng.uniform(0, math.pi)),
            rows_m=float(rng.uniform(0.6, 0.9)),
            seed=int(rng.integers(1 << 30)),
            inside=inside,
            kind="field" if inside is None else "garden",
        )

    def clear(self, x_m: float, y_m: float, radius_m: float, *, of: tuple[str, ...]) -> bool:
        """Whether a circle touches none of the things of these kinds; ditches are no obstacle to a sea."""
        return not any(
            t.kind in of and extent(t) > radius_m / NEGLIGIBLE and gap(t, x_m, y_m) < radius_m for t in self.things
        )

    def spot(self, size_m: float, radius_m: float, of: tuple[str, ...]) -> tuple[float, float] | None:
        """A place about `size_m` from the centre that is clear of `of`, or None after `TRIES`."""
        for attempt in range(TRIES):
            away = size_m * self.rng.uniform(0.7, 1.2) * (1 + attempt / TRIES)
            turn = self.rng.uniform(0, 2 * math.pi)
            x, y = away * math.cos(turn), away * math.sin(turn)
            if self.clear(x, y, radius_m, of=of):
                return x, y
        return None


def extent(thing: Thing) -> float:
    """Size that decides what is painted over what: width of a ribbon, radius of the rest."""
    if isinstance(thing, Ribbon):
        return thing.width_m
    if isinstance(thing, Mosaic):
        return math.inf if thing.inside is None else thing.inside.reach_m
    return (thing.blob if isinstance(thing, Town) else thing).reach_m


def gap(thing: Thing, x_m: float, y_m: float) -> float:
    """Metres from a point to a thing (to its circumscribed circle where it has one), negative inside."""
    if isinstance(thing, Ribbon):
        d = thing.at(x_m, y_m)
        return max(thing.low_m - d, d - thing.high_m)
    if isinstance(thing, Mosaic):
        return math.inf if thing.inside is None else gap(thing.inside, x_m, y_m)
    body = thing.blob if isinstance(thing, Town) else thing
    return math.hypot(x_m - body.x_m, y_m - body.y_m) - body.reach_m
