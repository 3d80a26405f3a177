"""A town is a function of the ground point: a thousand houses cost as much as one.

Street grid, lot, house, garden tree and parked car all follow from the hash of the cell that a point lies in. Where a
lot is smaller than a sample, the town is its own mean colour by blocks, measured once on the same function. Edges
against samples as large as a house are only first order (`canvas.covered`), so what they err in the mean is measured
likewise and taken back: a town is as bright at 50 m as at 1 m.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world import palette
from scaleearth_pl.prepare.world.built import CAR_BREADTH_M, CARS_BELOW_M, box_distance
from scaleearth_pl.prepare.world.canvas import F32, Canvas, Colour, cell_hash, covered, unit
from scaleearth_pl.prepare.world.land import blob_distance
from scaleearth_pl.prepare.world.nouns import CAR_M
from scaleearth_pl.prepare.world.scene import COVER, Scene, Town

LOT_M = 20.0
"""Side of a lot, about; decides how much of its detail a sample can show."""
PARKING_CELL_M = 8.0
PARK_SHARE = 0.09
"""Share of blocks without houses."""
MEASURED_M = 2.0
"""Side of the samples on which a town's mean colour is measured: coarse for parked cars, fine for houses."""
BLOCKS, POINTS = 12, 181
"""Blocks and points along either axis of that measurement."""
HEIGHT_M = 6.0
"""Height of houses, for their shadows."""


def paint_town(canvas: Canvas, town: Town, scene: Scene) -> None:
    """Lots, fading into the mean of their block as they become smaller than a sample."""
    blob = town.blob
    window = canvas.window(blob.x_m, blob.y_m, blob.reach_m)
    if window is None:
        return
    alpha = canvas.coverage(blob_distance(window, blob))
    if not alpha.any():
        return
    u, v = window.rotated(town.angle)
    turn = np.array(scene.sun) @ turned(town.angle)
    sun = (float(turn[0]), float(turn[1]))
    colour, cover = blocks(canvas.step, town, u, v, sun), np.full(u.shape, COVER["town"], np.uint8)
    near = np.float32(np.clip((LOT_M / canvas.step - 0.6) / 0.9, 0, 1))
    if near > 0:
        detail, detail_cover = lots(u, v, canvas.step, town, sun)
        if canvas.step > MEASURED_M:
            detail += (1 - parks_of(block_word(town, u, v))) * mean_error(town, sun, canvas.step)
        colour += near * (detail - colour)
        cover = detail_cover if near == 1 else cover
    canvas.paint(window, alpha, colour, cover=COVER["town"], code=town.code)
    claimed = alpha > 0.5
    canvas.cover_NN[window.rows, window.columns][claimed] = cover[claimed]


def turned(angle: float) -> NDArray[np.float64]:
    """Matrix that takes a direction, as a row, into axes turned by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def blocks(step: float, town: Town, u: F32, v: F32, sun: tuple[float, float]) -> F32:
    """Town from afar [3, H, W]: its mean, with brightness and parks that vary by block."""
    word = block_word(town, u, v)
    colour: F32 = np.array(mean_colour(town, sun, MEASURED_M), np.float32)[:, None, None] + block_light(word)
    parks = parks_of(word)
    seen = np.float32(min(1.0, town.block_m[1] / (3 * step)))
    lawn = np.array(palette.LAWN, np.float32)[:, None, None]
    return colour + (seen * parks + (1 - seen) * PARK_SHARE) * (lawn - colour)


def block_word(town: Town, u: F32, v: F32) -> NDArray[np.uint32]:
    """The hash of the block that a point lies in."""
    return cell_hash(np.floor(u / np.float32(town.block_m[0])), np.floor(v / np.float32(town.block_m[1])), town.seed)


def block_light(word: NDArray[np.uint32]) -> F32:
    """Brightness that a block has on top of its houses', from the block's hash."""
    return np.float32(22) * (unit(word, 0) - np.float32(0.498))


def parks_of(word: NDArray[np.uint32]) -> F32:
    """1 for blocks that are parks, from the block's hash."""
    return (unit(word, 2) < PARK_SHARE).astype(np.float32)


def lots(
    u: F32, v: F32, step: float, town: Town, sun: tuple[float, float], *, with_parks: bool = True
) -> tuple[F32, NDArray[np.uint8]]:
    """Colour [3, H, W] and cover [H, W] of a town at points in its own axes.

    Args:
        u: metres along the streets.
        v: metres across.
        step: side of a sample in metres.
        town: its grid.
        sun: direction of shadows in the town's axes.
        with_parks: False for the mean of built blocks.
    """
    block_u, block_v, street = np.float32(town.block_m[0]), np.float32(town.block_m[1]), np.float32(town.street_m)
    i, j = np.floor(u / block_u), np.floor(v / block_v)
    p, q = u - i * block_u, v - j * block_v
    wide, deep = (block_u - street) / town.lots, (block_v - street) / 2
    column, row = np.floor((p - street) / wide), np.floor((q - street) / deep)
    word = cell_hash(i * 8 + column, j * 4 + row, town.seed)
    x, y = p - street - (column + 0.5) * wide, q - street - (row + 0.5) * deep
    block = cell_hash(i, j, town.seed)
    green = parks_of(block) if with_parks else np.zeros_like(u)
    side = np.float32(math.sqrt(town.built) / 2) * (1 - green) - 99 * green
    half_x = wide * side * (0.78 + 0.22 * unit(word, 0))
    half_y = deep * side * (0.7 + 0.3 * unit(word, 1))
    dense = town.built > 0.65
    yard = np.array((118, 120, 106) if dense else palette.LAWN, np.float32)[:, None, None]
    colour = yard + 26 * (unit(word, 2) - 0.5)
    colour += green * (np.array(palette.LAWN, np.float32)[:, None, None] - colour)
    if not dense:
        plant(colour, x + 0.38 * wide, y - 0.34 * deep, 1.5 + 2 * unit(word, 3), step)
    height = HEIGHT_M * (2.0 if dense else 1.0)
    shadow = house(x - np.float32(0.55 * height * sun[0]), y - np.float32(0.55 * height * sun[1]), half_x, half_y, step)
    colour *= 1 - 0.45 * shadow
    roof = house(x, y, half_x, half_y, step)
    tint = palette.ROOFS[((word >> np.uint32(9)) & np.uint32(7)).astype(np.intp)]
    gable = np.float32(0 if dense else -16 * sun[1]) * np.sign(y)
    colour += roof * (np.moveaxis(tint, -1, 0) + gable - colour)
    asphalt = covered(np.minimum(p, q) - street, step)
    colour += asphalt * (np.array(palette.ASPHALT, np.float32)[:, None, None] - colour)
    colour += block_light(block)
    cover = np.where(roof > 0.5, COVER["roof"], COVER["town" if dense else "grass"])
    cover = np.where(asphalt > 0.5, COVER["road"], cover).astype(np.uint8)
    if step <= CARS_BELOW_M / 2:
        park(colour, cover, u, q, p > street, town, step)
    return colour, cover


def house(x: F32, y: F32, half_x: F32, half_y: F32, step: float) -> F32:
    """Covered share of a box around the middle of the lot."""
    return covered(np.maximum(np.abs(x) - half_x, np.abs(y) - half_y), step)


def plant(colour: F32, x: F32, y: F32, radius: F32, step: float) -> None:
    """A garden tree, onto `colour`."""
    crown = covered(np.hypot(x, y) - radius, step)
    colour += crown * (np.array(palette.CROWN, np.float32)[:, None, None] - colour)


def park(
    colour: F32, cover: NDArray[np.uint8], u: F32, q: F32, between: NDArray[np.bool_], town: Town, step: float
) -> None:
    """Cars parked along both kerbs of the streets that run along u, onto `colour` and `cover`."""
    cell = np.floor(u / np.float32(PARKING_CELL_M))
    far = (q > town.street_m / 2).astype(np.float32)
    kerb = np.where(far > 0, np.float32(town.street_m - 1.5), np.float32(1.5))
    word = cell_hash(cell, far, town.seed + 7)
    there = between & (q < town.street_m) & (unit(word, 0) < 0.45)
    if there.any():
        along = u - (cell + 0.5) * np.float32(PARKING_CELL_M)
        car = covered(box_distance(along, q - kerb, CAR_M, CAR_BREADTH_M), step) * there
        tint = palette.CARS[(word >> np.uint32(20)) % np.uint32(len(palette.CARS))]
        colour += car * (np.moveaxis(tint, -1, 0) - colour)
        cover[car > 0.5] = COVER["car"]
        glass = covered(box_distance(along - np.float32(0.75), q - kerb, 0.6, 1.4), step) * there
        colour += 0.8 * glass * (40 - colour)


@lru_cache(maxsize=64)
def mean_colour(town: Town, sun: tuple[float, float], step: float) -> Colour:
    """Mean of `lots` over many built blocks, without their light, at samples of side `step`.

    Whole blocks, and a number of points that shares no factor with theirs: every part of a block counts by its area.
    """
    axis = (np.arange(POINTS) + 0.5) * (BLOCKS / POINTS)
    u, v = np.meshgrid((axis * town.block_m[0]).astype(np.float32), (axis * town.block_m[1]).astype(np.float32))
    colour, _ = lots(u, v, step, town, sun, with_parks=False)
    light = block_light(block_word(town, u, v)).mean()
    red, green, blue = (float(c - light) for c in colour.mean(axis=(1, 2)))
    return red, green, blue


def mean_error(town: Town, sun: tuple[float, float], step: float) -> F32:
    """What has to be added to `lots` at `step` to have the mean colour of the town [3, 1, 1]."""
    true, found = (np.array(mean_colour(town, sun, s), np.float32) for s in (MEASURED_M, step))
    return np.asarray(true - found, np.float32)[:, None, None]
