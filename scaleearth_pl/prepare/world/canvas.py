"""A square of ground under the camera, and how shapes in metres become pixels by area averaging.

A pixel shows the mean radiance of its ground square. Two exact tools make that cheap:

- the *coverage* of a sample of side `step` by a straight edge at signed distance d is clip(1/2 - d/step, 0, 1), so an
  object is a signed distance function and its alpha is its covered area;
- samples are `oversample` times finer than pixels and averaged last, which mends corners and overlaps.

Price: coverage is exact for edges along the pixel grid and first order elsewhere (about 2 % of a sample at 45 degrees),
a tenth of what a point-sampled edge errs.

Shape suffixes: H, W samples of a window; N samples along the canvas; P pixels along the picture; C colours.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class View:
    """A nadir camera: centre of the footprint in metres from the place's centre (x east, y south), and its pixels."""

    x_m: float
    y_m: float
    gsd_m: float
    n_px: int = 128

    @property
    def footprint_m(self) -> float:
        """Side of the ground square that is seen."""
        return self.gsd_m * self.n_px


@dataclass(frozen=True)
class Window:
    """A rectangle of the canvas: index ranges, and sample coordinates in metres as a row and a column."""

    rows: slice
    columns: slice
    x_1W: F32
    y_H1: F32

    def rotated(self, angle: float, x_m: float = 0.0, y_m: float = 0.0) -> tuple[F32, F32]:
        """Coordinates [H, W] along and across a direction, from the origin (x_m, y_m)."""
        c, s = math.cos(angle), math.sin(angle)
        x, y = self.x_1W - np.float32(x_m), self.y_H1 - np.float32(y_m)
        return x * np.float32(c) + y * np.float32(s), y * np.float32(c) - x * np.float32(s)


class Canvas:
    """Colour and the code of the topmost object at every sample.

    Attributes:
        step: side of a sample in metres.
        rgb_CNN: levels 0 to 255.
        code_NN: code of the object on top of the sample, covering more than half of it; 0 for none.
        cover_NN: what the sample is covered with, an index into `scene.COVERS`.
    """

    def __init__(self, view: View, oversample: int = 2) -> None:
        self.view, self.oversample = view, oversample
        n = view.n_px * oversample
        self.step = view.gsd_m / oversample
        axis = ((np.arange(n) - (n - 1) / 2) * self.step).astype(np.float64)
        self.x_N: NDArray[np.float64] = axis + view.x_m
        self.y_N: NDArray[np.float64] = axis + view.y_m
        self.rgb_CNN: F32 = np.zeros((3, n, n), np.float32)
        self.code_NN: NDArray[np.int16] = np.zeros((n, n), np.int16)
        self.cover_NN: NDArray[np.uint8] = np.zeros((n, n), np.uint8)

    def everything(self) -> Window:
        """The window that is the whole canvas."""
        n = len(self.x_N)
        return Window(slice(0, n), slice(0, n), self._x(slice(0, n)), self._y(slice(0, n)))

    def window(self, x_m: float, y_m: float, radius_m: float) -> Window | None:
        """Samples within a square around a point, or None where the camera does not look."""
        rows, columns = self._range(self.y_N, y_m, radius_m), self._range(self.x_N, x_m, radius_m)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return Window(rows, columns, self._x(columns), self._y(rows))

    def coverage(self, distance_HW: F32) -> F32:
        """Share of each sample inside a shape, from the signed distance to its edge (negative inside)."""
        return covered(distance_HW, self.step)

    def band(self, distance_HW: F32, low_m: float, high_m: float) -> F32:
        """Share of each sample between two parallel edges; keeps its mean when the band is thinner than a sample."""
        step = np.float32(self.step)
        upper = np.clip((np.float32(high_m) - distance_HW) / step + 0.5, 0.0, 1.0)
        lower = np.clip((np.float32(low_m) - distance_HW) / step + 0.5, 0.0, 1.0)
        return np.asarray(upper - lower, np.float32)

    def paint(
        self, window: Window, alpha_HW: F32, colour: Colour | F32, *, cover: int | None = None, code: int | None = None
    ) -> None:
        """Lays a colour over the window, a triple or an array [C, H, W]; claims the samples covered over one half.

        Args:
            window: where.
            alpha_HW: covered share of every sample.
            colour: levels 0 to 255.
            cover: what the claimed samples become; None leaves it.
            code: the object that they become; None leaves it.
        """
        target = self.rgb_CNN[:, window.rows, window.columns]
        for channel in range(3):
            target[channel] += alpha_HW * (np.float32(colour[channel]) - target[channel])
        claimed = alpha_HW > 0.5 if code is not None or cover is not None else None
        if code is not None:
            self.code_NN[window.rows, window.columns][claimed] = code
        if cover is not None:
            self.cover_NN[window.rows, window.columns][claimed] = cover

    def shade(self, window: Window, alpha_HW: F32, strength: float) -> None:
        """Darkens by `strength` where alpha is one: shadows."""
        self.rgb_CNN[:, window.rows, window.columns] *= 1.0 - np.float32(strength) * alpha_HW

    def pixels_PPC(self) -> F32:
        """The picture: mean of the samples of every pixel."""
        k = self.oversample
        total = sum(self.rgb_CNN[:, i::k, j::k] for i in range(k) for j in range(k))
        return (np.asarray(total, np.float32) / np.float32(k * k)).transpose(1, 2, 0)

    def _range(self, axis_N: NDArray[np.float64], centre: float, radius: float) -> slice:
        n = len(axis_N)
        low = math.floor((centre - radius - axis_N[0]) / self.step)
        high = math.ceil((centre + radius - axis_N[0]) / self.step) + 1
        return slice(min(max(low, 0), n), min(max(high, 0), n))

    def _x(self, columns: slice) -> F32:
        return self.x_N[None, columns].astype(np.float32)

    def _y(self, rows: slice) -> F32:
        return self.y_N[rows, None].astype(np.float32)


def covered(distance_HW: F32, step: float) -> F32:
    """Share of a sample of side `step` inside a shape, from the signed distance of its edge."""
    return np.asarray(np.clip(0.5 - distance_HW / np.float32(step), 0.0, 1.0), np.float32)


def cell_hash(i: F32, j: F32, seed: int) -> NDArray[np.uint32]:
    """A random word for every lattice cell: what makes a thousand houses cost no more than one.

    Integer mixing (multiply, xor, shift), equal on every machine.
    """
    word = i.astype(np.int32).view(np.uint32) * np.uint32(374761393)
    word = word + (j.astype(np.int32).view(np.uint32) * np.uint32(668265263) + np.uint32(seed * 2654435761 % 2**32))
    word ^= word >> np.uint32(15)
    word *= np.uint32(2246822519)
    word ^= word >> np.uint32(13)
    word *= np.uint32(3266489917)
    mixed: NDArray[np.uint32] = word ^ (word >> np.uint32(16))
    return mixed


def unit(word: NDArray[np.uint32], draw: int) -> F32:
    """Uniform number in [0, 1) from the `draw`-th byte of a hash (0 to 3)."""
    return ((word >> np.uint32(8 * draw)) & np.uint32(255)).astype(np.float32) * np.float32(1 / 256)
