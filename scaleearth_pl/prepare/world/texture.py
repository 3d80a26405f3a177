"""Texture of ground, water and canopy: what betrays the scale of a place that has one.

Every wavelength has its own cause, and so its own colour: tufts and gravel of 0.1 m are light and shade, plants and
gaps of 1 m green and grey, moisture over 10 m ochre and blue, soil over 100 m red and green, haze in valleys of 1 km
blue. In which direction of colour space neighbouring pixels differ therefore tells the GSD. Hills of 0.7 and 2.6 km are
lit from one side; crowns are 7 m wide, stands 130 m. Self-similar places have one colour for all wavelengths. Heights
are in levels of 255.

The price: on Earth the cue is subtler. Here it has to be learnt by a tiny model from two thousand images.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from scaleearth_pl.prepare.world.canvas import F32, Canvas, Window, cell_hash, unit
from scaleearth_pl.prepare.world.palette import TEXTURE_OF_COVER
from scaleearth_pl.prepare.world.scene import Scene
from scaleearth_pl.prepare.world.waves import F64, Waves

CROWN_CELL_M = 7.5
CROWN_HEIGHT = 44.0
CAUSES: dict[float, tuple[float, float, float]] = {
    -1.2: (1.0, 1.0, 0.9),
    0.0: (0.1, 1.2, 0.2),
    1.0: (1.2, 0.2, -0.8),
    2.0: (1.2, -0.6, 0.1),
    3.0: (0.1, 0.3, 1.3),
    3.8: (0.6, 0.8, 1.0),
}
"""log10 of a wavelength in metres, and the colour in which the ground varies at it; between them interpolated."""
GROUND_HEIGHT = 4.0
DRY = (1.0, 0.1, -0.5)


@dataclass(frozen=True)
class Textures:
    """The wave fields of one place; `ground` has three colours, the others are grey."""

    ground: Waves
    stands: Waves
    crowns: Waves


def cause_of(length_K: F64) -> F64:
    """Colour [3, K] of the texture at wavelengths in metres."""
    at = np.log10(length_K)
    anchors = list(CAUSES)
    return np.stack([np.interp(at, anchors, [colour[c] for colour in CAUSES.values()]) for c in range(3)])


def textures_of(scene: Scene) -> Textures:
    """The fields, from the scene's seed."""
    rng = np.random.default_rng([scene.seed, 1])
    if not scene.has_scale_cue:
        light, dry = (Waves.self_similar(rng, 0.02, 2e5, per_octave=n) for n in (14, 8))
        ground = light.times(4.5, 4.5, 4.5) + dry.times(*(2.5 * c for c in DRY))
        return Textures(ground, light, light)
    sun, strong = scene.sun, GROUND_HEIGHT * float(rng.uniform(0.8, 1.2))
    hills = Waves.bump(rng, 700, n=28, spread=0.3).times(7.0) + Waves.bump(rng, 2600, n=28).times(5.0)
    ground = Waves.series(rng, 0.05, 9000, cause_of).times(strong, strong, strong)
    stands = Waves.bump(rng, 130).times(5.0) + Waves.bump(rng, 700, n=28, spread=0.3).lit(*sun).times(6.0)
    return Textures(ground + hills.lit(*sun).times(1.0, 1.0, 1.0), stands, Waves.bump(rng, CROWN_CELL_M, spread=0.12))


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
        """Adds the texture to everything painted, weighted by cover."""
        field = self.textures.ground.sample(self.canvas.x_N, self.canvas.y_N, self.canvas.step)
        self.canvas.rgb_CNN += TEXTURE_OF_COVER[self.canvas.cover_NN] * field

    def _sample(self, waves: Waves) -> F32:
        grey: F32 = waves.sample(self.canvas.x_N, self.canvas.y_N, self.canvas.step)[0]
        return grey


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
