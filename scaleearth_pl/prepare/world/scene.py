"""A place as objects with physical sizes in metres. Knows nothing of pixels, colours or questions.

    Mosaic   a lattice of field parcels, unbounded or inside a blob
    Blob     a star-shaped outline: lake, island, wood, town, garden
    Ribbon   what lies between two parallels of a wandering line: road, river, beach, sea
    Building a box with a roof and a height

x points east and y south, both in metres from the place's centre. Every object has a `code`, which the renderer
leaves on the samples where it is on top, and from which the questions learn what is visible.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world.canvas import F32

COVERS = ("field", "grass", "soil", "snow", "water", "trees", "sand", "road", "roof", "town", "car")
"""What the ground can be covered with."""
COVER = {name: i for i, name in enumerate(COVERS)}


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Ellipse with a wobbling rim: radius(t) = 1 + sum_k c_k cos kt + s_k sin kt, k = 2..5, in units of the half
    axes.
    """

    code: int
    kind: str
    x_m: float
    y_m: float
    half_m: tuple[float, float]
    angle: float
    wobble: tuple[float, ...]

    def signed_distance(self, along: F32, across: F32) -> F32:
        """Metres to the rim, negative inside, measured along the ray from the centre.

        Args:
            along: coordinates in the blob's own axes, from its centre.
            across: the other one.
        """
        p, q = along / np.float32(self.half_m[0]), across / np.float32(self.half_m[1])
        radius = np.hypot(p, q) + np.float32(1e-6)
        c1, s1 = p / radius, q / radius
        rim = np.ones_like(radius)
        c, s = c1, s1
        for k in range(0, len(self.wobble), 2):
            c, s = c * c1 - s * s1, s * c1 + c * s1
            rim += np.float32(self.wobble[k]) * c + np.float32(self.wobble[k + 1]) * s
        ray: F32 = np.hypot(along, across) * (1 - rim / radius)
        return ray

    @property
    def reach_m(self) -> float:
        """Radius of a circle around the centre that holds the whole blob."""
        return max(self.half_m) * (1 + sum(map(abs, self.wobble)))

    @cached_property
    def outline(self) -> NDArray[np.float64]:
        """Rim as [128, 2] points in the blob's own axes."""
        t = np.linspace(0, 2 * math.pi, 128, endpoint=False)
        rim = 1 + sum(
            self.wobble[2 * k] * np.cos((k + 2) * t) + self.wobble[2 * k + 1] * np.sin((k + 2) * t)
            for k in range(len(self.wobble) // 2)
        )
        return np.stack([self.half_m[0] * rim * np.cos(t), self.half_m[1] * rim * np.sin(t)], axis=1)

    @cached_property
    def length_m(self) -> float:
        """Largest distance between two points of the rim."""
        apart = self.outline[:, None] - self.outline[None]
        return float(np.sqrt((apart**2).sum(-1)).max())

    @cached_property
    def area_m2(self) -> float:
        """Area inside the rim (shoelace formula)."""
        x, y = self.outline.T
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(frozen=True, kw_only=True)
class Ribbon:
    """Ground between `low_m` and `high_m` beside the line v = offset_m + sum_i a_i sin(2 pi u / l_i + p_i).

    u runs along `angle`, v across it. Width is measured square to the line, exact to first order in its curvature.
    """

    code: int
    kind: str
    angle: float
    offset_m: float
    low_m: float
    high_m: float
    bends: tuple[tuple[float, float, float], ...] = ()
    paved: bool = True

    @property
    def width_m(self) -> float:
        """Distance between the two edges."""
        return self.high_m - self.low_m

    def line(self, u: F32) -> tuple[F32, F32]:
        """V of the line at u, and its slope dv/du."""
        v, slope = np.full_like(u, self.offset_m), np.zeros_like(u)
        for height, length, phase in self.bends:
            k = 2 * math.pi / length
            t = u * np.float32(k) + np.float32(phase)
            v += np.float32(height) * np.sin(t)
            slope += np.float32(height * k) * np.cos(t)
        return v, slope

    def signed_distance(self, u: F32, v: F32) -> F32:
        """Metres from the line, negative on its left, square to it."""
        line, slope = self.line(u)
        distance: F32 = (v - line) / np.sqrt(1 + slope * slope)
        return distance

    def at(self, x_m: float, y_m: float) -> float:
        """Signed distance of one point."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        u, v = np.array([x_m * c + y_m * s], np.float32), np.array([y_m * c - x_m * s], np.float32)
        return float(self.signed_distance(u, v)[0])

    def point(self, u_m: float) -> tuple[float, float, float]:
        """x, y and direction of the ribbon's middle at u."""
        v, slope = self.line(np.array([u_m], np.float32))
        turn = math.atan(float(slope[0]))
        middle = (self.low_m + self.high_m) / 2
        u, w = u_m - middle * math.sin(turn), float(v[0]) + middle * math.cos(turn)
        c, s = math.cos(self.angle), math.sin(self.angle)
        return u * c - w * s, u * s + w * c, self.angle + turn


@dataclass(frozen=True, kw_only=True)
class Building:
    """A box: long side, short side, height of the eaves (decides the shadow), and whether the roof is a gable."""

    code: int
    x_m: float
    y_m: float
    length_m: float
    breadth_m: float
    height_m: float
    angle: float
    tint: int
    gabled: bool
    kind: str = "roof"

    @property
    def area_m2(self) -> float:
        """Ground plan."""
        return self.length_m * self.breadth_m

    @property
    def reach_m(self) -> float:
        """Radius of a circle around the centre that holds the whole plan."""
        return math.hypot(self.length_m, self.breadth_m) / 2


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Parcels `width_m` wide in strips, `length_m` long along them, each strip shifted; rows of plants along the
    strips.
    """

    code: int
    width_m: float
    length_m: float
    angle: float
    rows_m: float
    seed: int
    inside: Blob | None = None
    kind: str = "field"


@dataclass(frozen=True, kw_only=True)
class Town:
    """Streets in a grid around lots, inside a blob."""

    blob: Blob
    block_m: tuple[float, float]
    street_m: float
    lots: int
    built: float
    angle: float
    seed: int
    kind: str = "town"

    @property
    def code(self) -> int:
        """The blob's."""
        return self.blob.code


Thing = Blob | Ribbon | Building | Mosaic | Town


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An object that may be asked about: its noun, the asked dimension, its area if it has one, and where to look.

    `thing` is the object; `x_m, y_m` a point in its middle.
    """

    noun: str
    size_m: float
    area_m2: float | None
    thing: Thing
    x_m: float
    y_m: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A place.

    Attributes:
        label: archetype, stored as the class of the sample.
        base: cover of ground that belongs to no object.
        sun: direction of shadows, unit vector.
        things: in painting order.
        subjects: the things that may be asked about.
        has_scale_cue: False for self-similar places, on which nothing betrays the GSD.
        trees: share of 26 m cells of open ground with a tree.
    """

    seed: int
    label: str
    base: str
    sun: tuple[float, float]
    things: tuple[Thing, ...]
    subjects: tuple[Subject, ...]
    has_scale_cue: bool = True
    trees: float = 0.0
