"""Painters of open land: parcels with rows and tramlines, scattered trees, woods, water, islands, shore."""

import math

import numpy as np

from scaleearth_pl.prepare.world import palette
from scaleearth_pl.prepare.world.canvas import F32, Canvas, Colour, Window, cell_hash, unit
from scaleearth_pl.prepare.world.scene import COVER, Blob, Mosaic, Ribbon, Scene
from scaleearth_pl.prepare.world.texture import Surface

TRAMLINE_M, WHEEL_M, GAUGE_M = 24.0, 0.5, 1.8
LEAST_ROWS = 4.0
"""Parcels with fewer rows than this are beds without rows."""
TREE_CELL_M = 26.0
TREE_COVER = math.pi * 3.25**2 / TREE_CELL_M**2
"""Share of a cell that its tree covers, in the mean."""


def paint_mosaic(canvas: Canvas, mosaic: Mosaic) -> None:
    """Parcels in strips; fades to their mean colour as strips become thinner than a sample."""
    region = mosaic.inside
    window = canvas.everything() if region is None else canvas.window(region.x_m, region.y_m, region.reach_m)
    if window is None:
        return
    u, v = window.rotated(mosaic.angle)
    width, length = np.float32(mosaic.width_m), np.float32(mosaic.length_m)
    j = np.floor(v / width)
    shifted = u + unit(cell_hash(j, j, mosaic.seed), 1) * length
    i = np.floor(shifted / length)
    word = cell_hash(i, j, mosaic.seed)
    # Even crops on even strips, odd on odd: neighbours across a strip's edge always differ, so that its width is seen.
    crop = 2 * (word % np.uint32(5)).astype(np.intp) + (j.astype(np.intp) & 1)
    to_edge = np.minimum(v - j * width, (j + 1) * width - v)
    to_end = np.minimum(shifted - i * length, (i + 1) * length - shifted)
    light = palette.CROP_ROWS[crop] * plant_rows(canvas, mosaic, v) + 10 * (unit(word, 3) - 0.5)
    edge = edge_cover(canvas, mosaic, np.minimum(to_edge, to_end))
    near = np.float32(np.clip((mosaic.width_m / canvas.step - 1) / 2, 0, 1))
    colour = np.moveaxis(palette.CROPS, 1, 0)[:, crop] + light * (1 - edge)
    hedge = np.array(palette.HEDGE if mosaic.seed % 2 else palette.DIRT, np.float32)[:, None, None]
    colour += edge * (hedge - colour)
    mean = palette.CROPS.mean(0)[:, None, None]
    alpha = np.ones_like(u) if region is None else canvas.coverage(blob_distance(window, region))
    canvas.paint(window, alpha, mean + near * (colour - mean), cover=COVER["field"], code=mosaic.code)


def plant_rows(canvas: Canvas, mosaic: Mosaic, v: F32) -> F32:
    """Rows as a cosine, averaged over the sample; wheel tracks every 24 m on parcels that machines work."""
    c, s = abs(math.cos(mosaic.angle)), abs(math.sin(mosaic.angle))
    ratio = canvas.step / mosaic.rows_m
    rows = np.zeros_like(v)
    if ratio < 1 and mosaic.width_m > LEAST_ROWS * mosaic.rows_m:
        rows = np.cos(v * np.float32(2 * math.pi / mosaic.rows_m)) * np.float32(np.sinc(ratio * c) * np.sinc(ratio * s))
    if mosaic.width_m > 2 * TRAMLINE_M and canvas.step < WHEEL_M * 4:
        middle = np.abs(v - TRAMLINE_M * np.round(v / np.float32(TRAMLINE_M)))
        rows -= 2.5 * canvas.band(middle - np.float32(GAUGE_M / 2), -WHEEL_M / 2, WHEEL_M / 2)
    elif mosaic.width_m > 2 * TRAMLINE_M:
        rows -= np.float32(2.5 * 2 * WHEEL_M / TRAMLINE_M)
    return rows


def edge_cover(canvas: Canvas, mosaic: Mosaic, distance: F32) -> F32:
    """Covered share of the balk, hedge or track around every parcel."""
    half = 0.5 * (min(0.012 * mosaic.width_m + 0.8, 3.5) if mosaic.inside is None else 0.12 * mosaic.width_m)
    return canvas.band(distance, -half, half)


def blob_distance(window: Window, blob: Blob, dx: float = 0.0, dy: float = 0.0) -> F32:
    """Signed distance of the window's samples to a blob, moved by (dx, dy)."""
    return blob.signed_distance(*window.rotated(blob.angle, blob.x_m + dx, blob.y_m + dy))


def paint_trees(canvas: Canvas, scene: Scene) -> None:
    """Single trees on open ground, at most one in a cell; far away only their mean."""
    window = canvas.everything()
    mosaics = [t.code for t in scene.things if isinstance(t, Mosaic) and t.inside is None]
    open_ground = np.isin(canvas.code_NN, [0, *mosaics]) & np.isin(canvas.cover_NN, [COVER["field"], COVER["grass"]])
    if scene.base == "soil":
        open_ground |= canvas.cover_NN == COVER["soil"]
    if not open_ground.any():
        return
    if canvas.view.gsd_m > 3.0:
        canvas.paint(window, open_ground * np.float32(scene.trees * TREE_COVER), palette.CROWN)
        return
    cell = np.float32(TREE_CELL_M)
    i, j = np.floor(window.x_1W / cell), np.floor(window.y_H1 / cell)
    word = cell_hash(i, j, scene.seed)
    there = open_ground & (unit(word, 0) < scene.trees)
    if not there.any():
        return
    radius = 2 + 2.5 * unit(word, 1)
    dx = window.x_1W - (i * cell + 7 + 12 * unit(word, 2))
    dy = window.y_H1 - (j * cell + 7 + 12 * unit(word, 3))
    sx, sy = (np.float32(s) * radius for s in scene.sun)
    shadow = canvas.coverage(np.hypot(dx - sx, dy - sy) - radius) * there
    canvas.shade(window, shadow, 0.4)
    crown = canvas.coverage(np.hypot(dx, dy) - radius) * there
    light = -16 * (dx * sx + dy * sy) / (radius * radius)
    colour = np.stack([channel + light for channel in palette.CROWN])
    canvas.paint(window, crown, colour, cover=COVER["trees"])


def paint_forest(canvas: Canvas, surface: Surface, blob: Blob) -> None:
    """A wood with the shadow of its rim."""
    window = canvas.window(blob.x_m, blob.y_m, blob.reach_m + 9)
    if window is None:
        return
    reach = min(9.0, 0.25 * blob.length_m)
    if canvas.view.gsd_m < reach:
        sun = surface.scene.sun
        canvas.shade(window, canvas.coverage(blob_distance(window, blob, sun[0] * reach, sun[1] * reach)), 0.35)
    paint_canopy(canvas, surface, window, canvas.coverage(blob_distance(window, blob)), blob.code)


def paint_canopy(canvas: Canvas, surface: Surface, window: Window, alpha: F32, code: int | None) -> None:
    """Closed forest."""
    light = surface.canopy_NN[window.rows, window.columns]
    red, green, blue = palette.GROUND["trees"]
    canvas.paint(
        window, alpha, np.stack([red + light, green + 1.1 * light, blue + 0.8 * light]), cover=COVER["trees"], code=code
    )


def paint_lake(canvas: Canvas, blob: Blob, bank: Colour) -> None:
    """Bank, shallow rim and deep middle, all in proportion to the lake."""
    window = canvas.window(blob.x_m, blob.y_m, 1.1 * blob.reach_m)
    if window is not None:
        distance = blob_distance(window, blob)
        dry = canvas.cover_NN[window.rows, window.columns] != COVER["water"]
        canvas.paint(window, 0.7 * dry * canvas.coverage(distance - np.float32(0.02 * blob.length_m)), bank)
        canvas.paint(window, canvas.coverage(distance), palette.WATER["lake"], cover=COVER["water"], code=blob.code)
        deep = np.clip(-distance / np.float32(0.2 * blob.length_m), 0, 1)
        canvas.paint(window, 0.4 * deep, (18, 40, 58))


def paint_island(canvas: Canvas, blob: Blob) -> None:
    """A sandy rim around green, in proportion to the island."""
    window = canvas.window(blob.x_m, blob.y_m, 1.2 * blob.reach_m)
    if window is not None:
        distance = blob_distance(window, blob)
        shoal = np.clip(0.8 - distance / np.float32(0.12 * blob.length_m), 0, 1)
        canvas.paint(window, 0.35 * shoal, (96, 140, 140))
        canvas.paint(window, canvas.coverage(distance), palette.GROUND["sand"], cover=COVER["sand"], code=blob.code)
        inner = canvas.coverage(distance + np.float32(0.06 * blob.length_m))
        canvas.paint(window, inner, palette.ISLAND, cover=COVER["grass"])


def paint_water_band(canvas: Canvas, ribbon: Ribbon, bank: Colour) -> None:
    """A river between its banks, where no larger water is, or the sea beyond its shore."""
    window = canvas.everything()
    distance = ribbon.signed_distance(*window.rotated(ribbon.angle))
    low, high = ribbon.low_m, ribbon.high_m
    cover, code = COVER["water"], ribbon.code
    if ribbon.kind == "river":
        rim = 0.14 * ribbon.width_m
        dry = canvas.cover_NN != COVER["water"]
        water = dry * canvas.band(distance, low, high)
        canvas.paint(window, 0.6 * dry * canvas.band(distance, low - rim, high + rim), bank)
        canvas.paint(window, water, palette.WATER["river"], cover=cover, code=code)
        deep = np.clip(1 - np.abs(distance) / np.float32(0.5 * ribbon.width_m), 0, 1)
        canvas.paint(window, 0.35 * deep * water, (30, 48, 58))
        return
    sea = canvas.band(distance, low, high)
    canvas.paint(window, sea, palette.WATER["sea"], cover=cover, code=code)
    shallow: F32 = (0.55 * sea * np.exp(-np.abs(distance) / 45)).astype(np.float32)
    canvas.paint(window, shallow, (92, 150, 152))
    for line in (0.5, 11.0):
        canvas.paint(window, 0.7 * canvas.band(distance, line, line + 2.0), (226, 232, 232))


def paint_beach(canvas: Canvas, ribbon: Ribbon) -> None:
    """Dry sand, wet towards the sea."""
    window = canvas.everything()
    distance = ribbon.signed_distance(*window.rotated(ribbon.angle))
    sand = canvas.band(distance, ribbon.low_m, ribbon.high_m)
    canvas.paint(window, sand, palette.GROUND["sand"], cover=COVER["sand"], code=ribbon.code)
    canvas.paint(window, 0.5 * canvas.band(distance, -0.2 * ribbon.width_m, 0.0), (160, 142, 110))
