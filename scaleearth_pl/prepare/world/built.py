"""Painters of single things that people build: roads with cars, buildings with shadows."""

import math

import numpy as np

from scaleearth_pl.prepare.world import palette
from scaleearth_pl.prepare.world.canvas import F32, Canvas, cell_hash, unit
from scaleearth_pl.prepare.world.nouns import CAR_M
from scaleearth_pl.prepare.world.scene import COVER, Building, Ribbon, Scene

CAR_BREADTH_M = 1.8
CARS_BELOW_M = 1.6
"""GSD up to which cars on roads are painted; above they cover less than 0.2 % of a road."""
CAR_CELL_M = 21.0


def paint_road(canvas: Canvas, ribbon: Ribbon, scene: Scene) -> None:
    """Asphalt with markings or a dirt track, and the cars on it."""
    window = canvas.everything()
    u, v = window.rotated(ribbon.angle)
    distance = ribbon.signed_distance(u, v)
    alpha = canvas.band(distance, ribbon.low_m, ribbon.high_m)
    if not alpha.any():
        return
    verge = 0.12 * ribbon.width_m
    canvas.paint(window, 0.35 * canvas.band(distance, ribbon.low_m - verge, ribbon.high_m + verge), (138, 130, 96))
    colour = palette.ASPHALT if ribbon.paved else palette.DIRT
    canvas.paint(window, alpha, colour, cover=COVER["road"], code=ribbon.code)
    if not ribbon.paved:
        canvas.paint(window, 0.4 * canvas.band(distance, -0.14 * ribbon.width_m, 0.14 * ribbon.width_m), (138, 136, 92))
        return
    if canvas.view.gsd_m < 1.0:
        dashes = canvas.band(distance, -0.08, 0.08) * (np.mod(u, np.float32(12)) < 4)
        canvas.paint(window, 0.8 * dashes, palette.PAINT)
    edge = 0.45 * ribbon.width_m
    for side in (-edge, edge):
        canvas.paint(window, 0.6 * canvas.band(distance - np.float32(side), -0.08, 0.08), palette.PAINT)
    if ribbon.width_m >= 5 and canvas.view.gsd_m <= CARS_BELOW_M:
        for x, y, turn, draw in cars_on(ribbon, canvas, scene.seed):
            paint_car(canvas, x, y, turn, draw, scene.sun)


def cars_on(ribbon: Ribbon, canvas: Canvas, seed: int) -> list[tuple[float, float, float, float]]:
    """x, y, direction and colour draw of the cars on the visible stretch of a road."""
    view = canvas.view
    middle = view.x_m * math.cos(ribbon.angle) + view.y_m * math.sin(ribbon.angle)
    reach = 0.75 * view.footprint_m + CAR_CELL_M
    cells = np.arange(math.floor((middle - reach) / CAR_CELL_M), math.ceil((middle + reach) / CAR_CELL_M))
    found = []
    for lane in (-1, 1):
        word = cell_hash(cells.astype(np.float32), np.full(len(cells), lane, np.float32), seed)
        for cell, present, place, draw in zip(cells, unit(word, 0), unit(word, 1), unit(word, 2)):
            if present < 0.4:
                x, y, turn = ribbon.point((cell + 0.2 + 0.6 * float(place)) * CAR_CELL_M)
                aside = lane * 0.25 * ribbon.width_m
                found.append((x - aside * math.sin(turn), y + aside * math.cos(turn), turn, float(draw)))
    return found


def paint_car(canvas: Canvas, x: float, y: float, turn: float, draw: float, sun: tuple[float, float]) -> None:
    """A body of 4.5 by 1.8 m with dark glass and a shadow."""
    window = canvas.window(x, y, CAR_M)
    if window is None:
        return
    shadow = box_distance(*window.rotated(turn, x + 0.8 * sun[0], y + 0.8 * sun[1]), CAR_M, CAR_BREADTH_M)
    canvas.shade(window, canvas.coverage(shadow), 0.4)
    u, v = window.rotated(turn, x, y)
    colour = palette.CARS[int(draw * len(palette.CARS))]
    canvas.paint(window, canvas.coverage(box_distance(u, v, CAR_M, CAR_BREADTH_M)), colour, cover=COVER["car"])
    for at in (-1.15, 0.75):
        canvas.paint(window, 0.8 * canvas.coverage(box_distance(u - np.float32(at), v, 0.6, 1.4)), (40, 44, 50))


def box_distance(u: F32, v: F32, length_m: float, breadth_m: float) -> F32:
    """Signed distance to a rectangle around the origin (largest of the two axes; exact at its edges)."""
    return np.maximum(np.abs(u) - np.float32(length_m / 2), np.abs(v) - np.float32(breadth_m / 2))


def paint_building(canvas: Canvas, building: Building, scene: Scene) -> None:
    """Shadow, then a gable lit from one side or a flat roof with a parapet."""
    b, height = building, building.height_m
    window = canvas.window(b.x_m, b.y_m, b.reach_m + height)
    if window is None or b.length_m < canvas.step:
        return
    shadow = np.zeros((window.y_H1.shape[0], window.x_1W.shape[1]), np.float32)
    for share in (0.2, 0.45, 0.7):
        dx, dy = (share * height * s for s in scene.sun)
        box = box_distance(*window.rotated(b.angle, b.x_m + dx, b.y_m + dy), b.length_m, b.breadth_m)
        np.maximum(shadow, canvas.coverage(box), out=shadow)
    canvas.shade(window, shadow, 0.45)
    u, v = window.rotated(b.angle, b.x_m, b.y_m)
    alpha = canvas.coverage(box_distance(u, v, b.length_m, b.breadth_m))
    colour = palette.ROOFS[b.tint]
    lit = scene.sun[1] * math.cos(b.angle) - scene.sun[0] * math.sin(b.angle)
    light = np.sign(v) * np.float32(-22 * lit) if b.gabled else np.zeros_like(v)
    canvas.paint(window, alpha, colour[:, None, None] + light, cover=COVER["roof"], code=b.code)
    if b.gabled:
        ridge = box_distance(u, v, b.length_m, 0.03 * b.length_m)
        canvas.paint(window, 0.4 * canvas.coverage(ridge), (70, 60, 56))
    else:
        inner = canvas.coverage(box_distance(u, v, 0.94 * b.length_m, b.breadth_m - 0.06 * b.length_m))
        canvas.paint(window, 0.35 * (alpha - inner), (70, 70, 72))
