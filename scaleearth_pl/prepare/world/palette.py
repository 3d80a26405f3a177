"""Colours of the world, levels 0 to 255, and how strongly each cover shows the texture of the ground."""

import numpy as np

from scaleearth_pl.prepare.world.canvas import F32, Colour
from scaleearth_pl.prepare.world.scene import COVERS

GROUND: dict[str, Colour] = {
    "field": (134, 134, 84),
    "grass": (104, 122, 70),
    "soil": (176, 146, 108),
    "snow": (203, 209, 218),
    "water": (38, 66, 88),
    "trees": (54, 78, 44),
    "sand": (206, 190, 152),
}
CROPS: F32 = np.array(
    [
        (96, 128, 58),  # young cereals
        (78, 108, 56),  # maize
        (178, 162, 98),  # ripe wheat
        (192, 176, 128),  # stubble
        (128, 100, 72),  # ploughed
        (112, 88, 66),  # wet plough
        (120, 138, 70),  # pasture
        (174, 168, 82),  # rapeseed
        (150, 150, 92),  # fallow
        (88, 116, 66),  # beet
    ],
    np.float32,
)
CROP_ROWS: F32 = np.array([5, 13, 7, 6, 9, 8, 0, 3, 2, 12], np.float32)
"""Height of the plant rows on every crop."""
ROOFS: F32 = np.array(
    [
        (150, 92, 72),
        (162, 112, 90),
        (128, 84, 70),
        (122, 118, 116),
        (96, 94, 98),
        (172, 166, 158),
        (200, 198, 194),
        (144, 130, 116),
    ],
    np.float32,
)
CARS: F32 = np.array(
    [(228, 228, 230), (42, 42, 46), (150, 30, 30), (40, 62, 120), (170, 172, 176), (96, 98, 104)], np.float32
)
WATER: dict[str, Colour] = {"river": (58, 80, 84), "lake": (36, 62, 78), "sea": (28, 64, 98)}
ASPHALT: Colour = (108, 108, 110)
DIRT: Colour = (172, 150, 116)
PAINT: Colour = (224, 224, 218)
HEDGE: Colour = (66, 84, 46)
LAWN: Colour = (98, 122, 66)
ISLAND: Colour = (96, 112, 64)
CROWN: Colour = (62, 88, 46)

TEXTURE_OF_COVER: F32 = np.array(
    [
        {"field": 1.2, "snow": 0.8, "water": 0.6, "trees": 0.6, "road": 0.5, "roof": 0.5, "town": 0.6, "car": 0.0}.get(
            name, 1.0
        )
        for name in COVERS
    ],
    np.float32,
)
"""Share of the place's texture that a cover shows."""
