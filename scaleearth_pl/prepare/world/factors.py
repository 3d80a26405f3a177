"""Known factors of an image, for probes: what is texture, what is geometry, what is semantics.

The paper's Figure 11 regresses such factors on single ranks. Here they are exact: texture from the delivered pixels,
geometry and semantics from the scene. All are plain numbers, rounded to four digits; every image has all of them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world.render import Picture
from scaleearth_pl.prepare.world.scene import Building, Ribbon
from scaleearth_pl.prepare.world.sight import PRESENT, Sight

COVER_GROUPS = {
    "water": ("water",),
    "trees": ("trees",),
    "field": ("field",),
    "grass": ("grass",),
    "bare": ("soil", "sand", "snow"),
    "built": ("roof", "road", "town", "car"),
}


def factors_of(levels: NDArray[np.uint8], picture: Picture, sight: Sight) -> dict[str, dict[str, float]]:
    """Factors by group.

    Args:
        levels: the delivered image [P, P, 3].
        picture: what was rendered.
        sight: what is visible.
    """
    groups = {
        "texture": texture_factors(levels),
        "geometry": geometry_factors(picture, sight),
        "semantic": {name: sum(sight.cover_share[c] for c in covers) for name, covers in COVER_GROUPS.items()},
    }
    return {group: {name: round(float(v), 4) for name, v in row.items()} for group, row in groups.items()}


def texture_factors(levels: NDArray[np.uint8]) -> dict[str, float]:
    """Contrast, energy by wavelength in pixels (log10 of variance), share of edges, and how directed they are."""
    light = levels.astype(np.float32).mean(axis=2)
    dx, dy = np.diff(light, axis=1)[:-1], np.diff(light, axis=0)[:, :-1]
    slope = np.hypot(dx, dy)
    energy, directed = np.sum(dx**2 + dy**2), np.hypot(np.sum(dx**2 - dy**2), 2 * np.sum(dx * dy))
    n = light.shape[0] // 8 * 8
    coarse = light[:n, :n].reshape(n // 8, 8, n // 8, 8).mean(axis=(1, 3))
    fine = light[:n, :n] - np.repeat(np.repeat(coarse, 8, 0), 8, 1)
    return {
        "contrast": float(light.std()),
        "fine_energy": math.log10(float(fine.var()) + 0.1),
        "coarse_energy": math.log10(float(coarse.var()) + 0.1),
        "edge_share": float(np.mean(slope > 20)),
        "directedness": float(directed / (energy + 1e-6)),
    }


def geometry_factors(picture: Picture, sight: Sight) -> dict[str, float]:
    """Outlines, numbers and directions of objects; sizes in pixels, zero where nothing is measured."""
    code = picture.code_NN
    outline = np.mean(code[1:] != code[:-1]) + np.mean(code[:, 1:] != code[:, :-1])
    seen = [t for t in sight.scene.things if sight.code_share[t.code] >= PRESENT]
    ribbons = [s.thing for s, _ in sight.measured if isinstance(s.thing, Ribbon)]
    turn = 2 * ribbons[0].angle if ribbons else 0.0
    return {
        "outline": float(outline),
        "n_objects": float(len(seen)),
        "n_buildings": float(sum(isinstance(t, Building) for t in seen)),
        "log10_largest_px": math.log10(max((px for _, px in sight.measured), default=1.0)),
        "ribbon_cos2": math.cos(turn) if ribbons else 0.0,
        "ribbon_sin2": math.sin(turn) if ribbons else 0.0,
    }
