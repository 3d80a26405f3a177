"""What can be seen: exact truth, clipped to the footprint, by one stated rule of visibility.

The renderer leaves on every sample the object and the cover on top, where it covers more than half of the sample. So

- a cover or object is *present* if it shows on at least `PRESENT` of the samples, *absent* if it shows on none and no
  object that has it comes near the footprint; between the two nothing is asked;
- a subject is *measured* if it is between SMALLEST_PX and LARGEST_PX pixels in its asked dimension, shows as a whole
  (ribbons: both banks and most of a crossing; fields: on a quarter of the image) and no rival of its noun shows a
  quarter as much: then "the river" is one river, and a person with the GSD and a ruler can say how wide.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world.canvas import View
from scaleearth_pl.prepare.world.draft import gap
from scaleearth_pl.prepare.world.nouns import LARGEST_PX, SMALLEST_PX
from scaleearth_pl.prepare.world.render import Picture
from scaleearth_pl.prepare.world.scene import COVER, COVERS, Blob, Building, Mosaic, Ribbon, Scene, Subject, Thing, Town

PRESENT = 0.006
"""Smallest share of the image that counts as present."""
WHOLE = {"forest": 0.8, "town": 0.75}
"""Share of its area that a thing must show to be measured; 0.93 for the others, which nothing is painted over."""
RIVAL = 0.25
CROSSING = 0.6
"""Length of a ribbon that must show, in image sides."""
FIELD_LARGEST_PX = 42.0
"""Three strips must fit into the image."""
NOUN_OF_KIND = {"garden": "field"}


@dataclass(frozen=True)
class Sight:
    """What one image shows.

    Attributes:
        cover_share: share of the image by cover.
        code_share: share of the image by code of object.
        measured: subjects that may be asked about, with their size in pixels.
    """

    scene: Scene
    view: View
    cover_share: dict[str, float]
    code_share: NDArray[np.float64]
    measured: tuple[tuple[Subject, float], ...]

    def share_of_kind(self, *kinds: str) -> float:
        """Share of the image that shows things of these kinds."""
        return float(sum(self.code_share[t.code] for t in self.scene.things if t.kind in kinds))

    def near_thing(self, thing: Thing) -> bool:
        """Whether a thing reaches into the circle around the footprint, seen or not."""
        return gap(thing, self.view.x_m, self.view.y_m) < self.view.footprint_m * math.sqrt(0.5)

    def near(self, *kinds: str) -> bool:
        """Whether any thing of these kinds does."""
        return any(t.kind in kinds and self.near_thing(t) for t in self.scene.things)


def look(scene: Scene, picture: Picture) -> Sight:
    """Truth about `picture`, which shows `scene`."""
    n = picture.code_NN.size
    covers = np.bincount(picture.cover_NN.ravel(), minlength=len(COVERS)) / n
    codes = np.bincount(picture.code_NN.ravel(), minlength=len(scene.things) + 1) / n
    measured = tuple(
        (subject, subject.size_m / picture.view.gsd_m)
        for subject in scene.subjects
        if is_measured(scene, picture, codes, subject)
    )
    shares = {name: float(covers[i]) for i, name in enumerate(COVERS)}
    return Sight(scene=scene, view=picture.view, cover_share=shares, code_share=codes, measured=measured)


def is_measured(scene: Scene, picture: Picture, codes: NDArray[np.float64], subject: Subject) -> bool:
    """Whether this subject may be asked about in this picture."""
    size_px = subject.size_m / picture.view.gsd_m
    seen = float(codes[subject.thing.code])
    if not SMALLEST_PX <= size_px <= LARGEST_PX or seen == 0:
        return False
    if not shows_enough(subject.thing, picture, seen, size_px):
        return False
    return rival_share(scene, picture, codes, subject) < RIVAL * seen


def shows_enough(thing: Thing, picture: Picture, seen: float, size_px: float) -> bool:
    """Whether the thing shows as a whole, by the rule of its shape; `seen` is its share of the image."""
    view = picture.view
    match thing:
        case Mosaic():
            return size_px <= FIELD_LARGEST_PX and seen >= 0.25
        case Ribbon():
            return seen * view.n_px >= CROSSING * size_px and both_banks(thing, view)
        case Blob() | Building() | Town():
            area = (thing.blob if isinstance(thing, Town) else thing).area_m2
            return seen * view.footprint_m**2 >= WHOLE.get(thing.kind, 0.93) * area


def both_banks(ribbon: Ribbon, view: View) -> bool:
    """Whether at least a twentieth of the footprint lies beyond either edge."""
    axis = np.linspace(-0.5, 0.5, 24) * view.footprint_m
    x, y = (axis[None] + view.x_m).astype(np.float32), (axis[:, None] + view.y_m).astype(np.float32)
    c, s = np.float32(math.cos(ribbon.angle)), np.float32(math.sin(ribbon.angle))
    distance = ribbon.signed_distance(x * c + y * s, y * c - x * s)
    return bool(np.mean(distance < ribbon.low_m) > 0.05 and np.mean(distance > ribbon.high_m) > 0.05)


def rival_share(scene: Scene, picture: Picture, codes: NDArray[np.float64], subject: Subject) -> float:
    """Largest share of the image that another thing of the same noun shows; towns are full of roads and roofs."""
    others = [
        float(codes[t.code])
        for t in scene.things
        if NOUN_OF_KIND.get(t.kind, t.kind) == subject.noun and t.code != subject.thing.code
    ]
    if subject.noun in ("road", "roof"):
        towns = [t.code for t in scene.things if isinstance(t, Town)]
        if towns:
            within = np.isin(picture.code_NN, towns) & (picture.cover_NN == COVER[subject.noun])
            others.append(float(within.mean()))
    return max(others, default=0.0)
