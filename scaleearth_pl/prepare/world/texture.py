"""Texture of ground, water and canopy: waves around the wavelengths that such surfaces have.

Tufts of 0.3 m, clumps of 2 m, moisture of 100 m, hills of 0.7 and 2.6 km (lit from one side), ripples and swell, crowns of 7 m,
stands of 130 m: at any GSD some of them are seen, and which ones tells the scale. Self-similar places have none of
them. Heights are in levels of 255.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from scaleearth_pl.prepare.world.canvas import F32, Canvas, Window, cell_hash, unit
from scaleearth_pl.prepare.world.palette import GRAIN_OF_COVER, RIPPLES_OF_COVER
from scaleearth_pl.prepare.world.scene import Scene
from scaleearth_pl.prepare.world.waves import Waves

CROWN_CELL_M = 7.5
CROWN_HEIGHT = 44.0
TINT = np.array([1.0, 0.1, -0.5], np.float32)
"""Direction of the ground's second texture: dry (ochre) against moist (green)."""


@dataclass(frozen=True)
class Textures:
    """The wave fields of one place."""

    light: Waves
    tint: Waves
    ripples: Waves
    stands: Waves
    crowns: Waves


def textures_of(scene: Scene) -> Textures:
    """The fields, from the scene's seed."""
    rng = np.random.default_rng([scene.seed, 1])
    if not scene.has_scale_cue:
        field, tint = (Waves.self_similar(rng, 0.02, 2e5) for _ in range(2))
        return Textures(field.times(5), tint.times(2.5), field.times(4), field.times(4), field)
    bump, sun = Waves.bump, scene.sun
    strong = float(rng.uniform(0.8, 1.2))
    light = (
        bump(rng, 0.3, n=44, spread=0.3).times(7)
        + bump(rng, 2.2, n=32, spread=0.28).times(4)
        + bump(rng, 22).times(2.5)
        + bump(rng, 700, n=28, spread=0.3).lit(*sun).times(9)
        + bump(rng, 2600, n=28).lit(*sun).times(6)
    )
    tint = bump(rng, 2.0, n=32).times(4) + bump(rng, 100, n=32, spread=0.3).times(4.5)
    ripples = bump(rng, 1.1).times(3.5) + bump(rng, 11).times(2) + bump(rng, 65).times(3) + bump(rng, 900).times(4)
    stands = bump(rng, 130).times(6) + bump(rng, 700, n=28, spread=0.3).lit(*sun).times(7)
    crowns = bump(rng, CROWN_CELL_M, spread=0.12)
    return Textures(light.times(strong), tint.times(strong), ripples.times(strong), stands, crowns)


class Surface:
    """The textures of one scene under one camera, computed when first needed."""

    def __init__(self, canvas: Canvas, scene: Scene) -> None:
        self.canvas, self.scene = canvas, scene
        self.textures = textures_of(scene)

    @cached_property
    def canopy_NN(self) -> F32:
        """Light on a closed canopy: crowns one by one where a pixel is below half of one, else as waves."""
        canvas, mean_deviation = self.canvas, crown_statistics()
        stands = self._sample(self.textures.stands)
        if canvas.view.gsd_m > CROWN_CELL_M / 2.5:
            return stands + self._sample(self.textures.crowns) * np.float32(CROWN_HEIGHT * mean_deviation[1])
        crowns = crown_light(canvas.everything(), self.scene.sun, self.scene.seed)
        return stands + (crowns - np.float32(mean_deviation[0])) * np.float32(CROWN_HEIGHT)

    def apply(self) -> None:
        """Adds ground and water texture to everything painted, weighted by cover."""
        rgb, cover = self.canvas.rgb_CNN, self.canvas.cover_NN
        wet = RIPPLES_OF_COVER[cover]
        if not wet.all():
            grain = GRAIN_OF_COVER[cover]
            light, tint = self._sample(self.textures.light), self._sample(self.textures.tint)
            for channel in range(3):
                rgb[channel] += grain * (light + TINT[channel] * tint)
        if wet.any():
            rgb += wet * self._sample(self.textures.ripples)

    def _sample(self, waves: Waves) -> F32:
        return waves.sample(self.canvas.x_N, self.canvas.y_N, self.canvas.step)


def crown_light(window: Window, sun: tuple[float, float], seed: int) -> F32:
    """Two interlocking lattices of domes, each lit on its sunny side; about 0 between crowns, 1 on top."""
    light = np.zeros((window.y_H1.shape[0], window.x_1W.shape[1]), np.float32)
    for layer in range(2):
        shift = np.float32(layer * CROWN_CELL_M / 2)
        x, y = (window.x_1W + shift) / np.float32(CROWN_CELL_M), (window.y_H1 + shift) / np.float32(CROWN_CELL_M)
        i, j = np.floor(x), np.floor(y)
        word = cell_hash(i, j, seed + layer)
        dx, dy = x - i - (0.35 + 0.3 * unit(word, 0)), y - j - (0.35 + 0.3 * unit(word, 1))
        radius = 0.34 + 0.22 * unit(word, 2)
        dome = np.clip(1 - (dx * dx + dy * dy) / (radius * radius), 0, 1)
        side = (dx * np.float32(sun[0]) + dy * np.float32(sun[1])) / radius
        np.maximum(light, np.sqrt(dome) * (0.75 - 0.4 * side) * (0.75 + 0.25 * unit(word, 3)), out=light)
    return light


@lru_cache(maxsize=1)
def crown_statistics() -> tuple[float, float]:
    """Mean and standard deviation of `crown_light`, so that distant forest has the brightness of near forest."""
    axis = (np.arange(600) * 0.4).astype(np.float32)
    window = Window(slice(0, 600), slice(0, 600), axis[None], axis[:, None])
    light = crown_light(window, (0.8, 0.6), 1)
    return float(light.mean()), float(light.std())
