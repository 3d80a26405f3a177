"""Any place at any GSD: `render(scene, view)` paints objects onto a canvas, adds texture, averages to pixels.

    picture = render(scene, View(x_m=0, y_m=0, gsd_m=0.5))     linear levels, and what is where
    levels = expose(picture, rng, noise_levels=2)              uint8, as a sensor would deliver it

Objects outside the footprint are culled by their windows. Level of detail keeps the mean: what is smaller than a sample
is painted as its covered share, so rendering at g and averaging 2 x 2 agrees with rendering at 2 g (tested).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world import palette
from scaleearth_pl.prepare.world.built import paint_building, paint_road
from scaleearth_pl.prepare.world.canvas import F32, Canvas, View
from scaleearth_pl.prepare.world.land import (
    paint_beach,
    paint_canopy,
    paint_forest,
    paint_island,
    paint_lake,
    paint_mosaic,
    paint_trees,
    paint_water_band,
)
from scaleearth_pl.prepare.world.scene import COVER, Blob, Building, Mosaic, Ribbon, Scene, Thing, Town
from scaleearth_pl.prepare.world.texture import Surface
from scaleearth_pl.prepare.world.town import paint_town

THINNEST_SHARE = 0.04
"""Ribbons and blobs smaller than this share of a sample are not painted."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the camera sees.

    Attributes:
        view: the camera.
        levels_PPC: area means, 0 to 255 but not clipped.
        code_NN: code of the object on top of every sample (`oversample` per pixel side).
        cover_NN: cover of every sample, an index into `scene.COVERS`.
        step: side of a sample in metres.
    """

    view: View
    levels_PPC: F32
    code_NN: NDArray[np.int16]
    cover_NN: NDArray[np.uint8]
    step: float


def render(scene: Scene, view: View, *, oversample: int = 2) -> Picture:
    """Paints `scene` as seen by `view`; the same arguments give the same array."""
    canvas = Canvas(view, oversample)
    surface = Surface(canvas, scene)
    paint_base(canvas, surface)
    trees_painted = scene.trees == 0
    for thing in scene.things:
        if not trees_painted and thing.kind not in ("field", "forest"):
            paint_trees(canvas, scene)
            trees_painted = True
        paint_thing(canvas, surface, thing)
    if not trees_painted:
        paint_trees(canvas, scene)
    surface.apply()
    return Picture(
        view=view,
        levels_PPC=canvas.pixels_PPC(),
        code_NN=canvas.code_NN,
        cover_NN=canvas.cover_NN,
        step=canvas.step,
    )


def paint_base(canvas: Canvas, surface: Surface) -> None:
    """The ground that belongs to no object."""
    base, window = surface.scene.base, canvas.everything()
    canvas.cover_NN[:] = COVER[base]
    if base == "trees":
        paint_canopy(canvas, surface, window, np.ones_like(canvas.rgb_CNN[0]), None)
    else:
        canvas.rgb_CNN += np.array(palette.GROUND[base], np.float32)[:, None, None]


def paint_thing(canvas: Canvas, surface: Surface, thing: Thing) -> None:
    """Dispatches to the painter of the thing's kind."""
    scene = surface.scene
    match thing:
        case Mosaic():
            paint_mosaic(canvas, thing)
        case Town():
            paint_town(canvas, thing, scene)
        case Building():
            paint_building(canvas, thing, scene)
        case Blob() if thing.reach_m < THINNEST_SHARE * canvas.step:
            return
        case Blob(kind="forest"):
            paint_forest(canvas, surface, thing)
        case Blob(kind="island"):
            paint_island(canvas, thing)
        case Blob():
            paint_lake(canvas, thing, bank_of(scene))
        case Ribbon() if thing.width_m < THINNEST_SHARE * canvas.step:
            return
        case Ribbon(kind="road"):
            paint_road(canvas, thing, scene)
        case Ribbon(kind="beach"):
            paint_beach(canvas, thing)
        case Ribbon():
            paint_water_band(canvas, thing, bank_of(scene))


def bank_of(scene: Scene) -> tuple[float, float, float]:
    """Colour of wet ground beside water: the ground's own, darker."""
    red, green, blue = palette.GROUND["soil" if scene.base == "soil" else scene.base]
    return (0.8 * red, 0.84 * green, 0.8 * blue)


def expose(picture: Picture, rng: np.random.Generator, *, noise_levels: float) -> NDArray[np.uint8]:
    """Levels as delivered: gain, contrast and colour cast of the day, then sensor noise, then rounding.

    All are drawn independently of the GSD, and the noise has the same deviation at every GSD: neither tells the scale.
    """
    gain = rng.normal(1.0, 0.06) * rng.normal(1.0, 0.02, 3)
    haze = rng.uniform(0, 14)
    contrast = rng.uniform(0.85, 1.1)
    levels = ((picture.levels_PPC - 110) * contrast + 110) * gain.astype(np.float32) + np.float32(haze)
    levels += rng.standard_normal(levels.shape, dtype=np.float32) * np.float32(noise_levels)
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)
