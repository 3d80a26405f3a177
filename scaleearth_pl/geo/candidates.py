"""What is known about a file's GSD: every candidate, the one chosen, and who disagrees.

Several sources speak about one image and they are not equally near to its pixels. A transform describes these very
pixels; a record's `gsd` describes the sensor (STAC's maintainers say so), which a resampled product no longer has; a
file name describes the product as ordered; a sensor table and a dataset constant describe many images at once. So
nearness decides, not the stated precision, and nothing is thrown away: a loser that contradicts the winner is the
cheapest sign of a broken import.

Price: a wrong transform beats a right record. The disagreement is then in the log and in the sample's history.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Self

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance, check_gsd_m
from scaleearth_pl.geo.ground import GroundPixel, is_anisotropic

AGREEMENT_LOG10 = math.log10(1.05)
"""Two candidates that differ by less than five percent agree."""

_DOUBTS = ("not used", "not measured", "is unknown", "no GSD on Earth")
"""In the notes of what a file or record states and nobody can use; others say what it lacks, or how it was read."""


class Stage(IntEnum):
    """Nearness to the pixels; smaller wins."""

    TRANSFORM = 0
    PIXEL_RECORD = 1
    RECORD = 2
    FILE_NAME = 3
    SENSOR = 4
    DATASET = 5


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One source's word on the GSD, in metres per pixel of the file.

    `sigma_log10` is in decades; left out, it is the provenance's own, which an imprecise candidate does not have.
    `source` reads like "transform", "stac:gsd", "name:naip", "sensor:worldview-2/pan".

    Raises:
        GsdError: the GSD is not positive and finite, the provenance is unknown, or an imprecise one lacks its sigma.
    """

    gsd_m: float
    provenance: Provenance
    stage: Stage
    source: str
    sigma_log10: float = math.nan
    gsd_x_m: float | None = None
    gsd_y_m: float | None = None
    lon: float | None = None
    lat: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_gsd_m(self.gsd_m, field=self.source)
        sigma = self.provenance.default_sigma_log10 if math.isnan(self.sigma_log10) else self.sigma_log10
        if sigma is None or not 0 < sigma < math.inf:
            raise GsdError(
                "a GSD candidate needs a provenance other than unknown, and imprecise needs its sigma",
                field=self.source,
                value=(str(self.provenance), self.sigma_log10),
            )
        object.__setattr__(self, "sigma_log10", sigma)

    @classmethod
    def measured(cls, pixel: GroundPixel, *, stage: Stage, source: str, notes: tuple[str, ...] = ()) -> Self:
        """From a pixel measured on the ground; imprecise where the image spans scales too unlike for one number."""
        provenance, sigma = Provenance.EXACT, math.nan
        if pixel.spread_log10 / math.sqrt(3) > (Provenance.NOMINAL.default_sigma_log10 or 0.0):
            provenance, sigma = Provenance.IMPRECISE, pixel.spread_log10 / math.sqrt(3)
        return cls(
            gsd_m=pixel.gsd_m,
            provenance=provenance,
            stage=stage,
            source=source,
            sigma_log10=sigma,
            gsd_x_m=pixel.gsd_x_m,
            gsd_y_m=pixel.gsd_y_m,
            lon=pixel.lon,
            lat=pixel.lat,
            notes=(*notes, *_pixel_notes(pixel)),
        )

    @classmethod
    def interval(cls, low_m: float, high_m: float, *, stage: Stage, source: str) -> Self:
        """Somewhere in [low, high] metres: geometric mean, sigma of the uniform law = half-width / sqrt(3)."""
        low_m, high_m = check_gsd_m(low_m, field=source), check_gsd_m(high_m, field=source)
        if not low_m < high_m:
            raise GsdError("GSD interval must rise", field=source, value=(low_m, high_m))
        return cls(
            gsd_m=math.sqrt(low_m * high_m),
            provenance=Provenance.IMPRECISE,
            stage=stage,
            source=source,
            sigma_log10=math.log10(high_m / low_m) / 2 / math.sqrt(3),
            notes=(f"between {low_m:g} and {high_m:g} m",),
        )

    @property
    def anisotropic(self) -> bool:
        """True if both pixel edges are known and differ by more than ten percent."""
        return self.gsd_x_m is not None and self.gsd_y_m is not None and is_anisotropic(self.gsd_x_m, self.gsd_y_m)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; stage by name."""
        keys = ("gsd_m", "sigma_log10", "source", "gsd_x_m", "gsd_y_m")
        row = {key: getattr(self, key) for key in keys}
        return row | {"provenance": str(self.provenance), "stage": self.stage.name.lower(), "notes": list(self.notes)}

    def _rescaled(self, factor_x: float, factor_y: float) -> "Candidate":
        return replace(
            self,
            gsd_m=self.gsd_m * math.sqrt(factor_x * factor_y),
            gsd_x_m=None if self.gsd_x_m is None else self.gsd_x_m * factor_x,
            gsd_y_m=None if self.gsd_y_m is None else self.gsd_y_m * factor_y,
        )


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The chosen candidate (None: unknown), all candidates nearest first, and notes of the search."""

    chosen: Candidate | None
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gsd_m(self) -> float | None:
        """Native GSD in metres per pixel; None if and only if the provenance is unknown."""
        return None if self.chosen is None else self.chosen.gsd_m

    @property
    def sigma_log10(self) -> float | None:
        """Sigma in decades; None where unknown."""
        return None if self.chosen is None else self.chosen.sigma_log10

    @property
    def provenance(self) -> Provenance:
        """Of the chosen candidate."""
        return Provenance.UNKNOWN if self.chosen is None else self.chosen.provenance

    @property
    def disagreeing(self) -> tuple[Candidate, ...]:
        """The candidates that contradict the chosen one: more than five percent apart, intervals considered."""
        chosen = self.chosen
        return () if chosen is None else tuple(c for c in self.candidates if _disagree(chosen, c))

    @property
    def disagreements(self) -> tuple[str, ...]:
        """One sentence for each disagreeing candidate."""
        chosen = self.chosen
        return () if chosen is None else tuple(_sentence(chosen, other) for other in self.disagreeing)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes of the search and of the chosen candidate, then the disagreements."""
        own = () if self.chosen is None else self.chosen.notes
        return (*self.notes, *own, *self.disagreements)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What was stated of this very image and not used, or contradicts what was: the notes that are worth keeping.

        Constants of a sensor or a data set are left out: one that contradicts does so for all images alike.
        """
        own = zip(self.disagreeing, self.disagreements, strict=True)
        unused = tuple(note for note in self.notes if any(word in note for word in _DOUBTS))
        return (*unused, *(sentence for other, sentence in own if other.stage <= Stage.FILE_NAME))

    def resized(self, size: tuple[int, int], new_size: tuple[int, int]) -> "Resolution":
        """The GSD follows a resize from `size` to `new_size` (width, height): times old over new, per axis."""
        factors = size[0] / new_size[0], size[1] / new_size[1]
        candidates = tuple(c._rescaled(*factors) for c in self.candidates)
        chosen = None if self.chosen is None else self.chosen._rescaled(*factors)
        note = f"resized from {size[0]}x{size[1]} to {new_size[0]}x{new_size[1]}"
        return replace(self, chosen=chosen, candidates=candidates, notes=(*self.notes, note))


def resolve(candidates: Iterable[Candidate], *, notes: Iterable[str] = (), veto: str | None = None) -> Resolution:
    """Chooses the nearest candidate, the more certain one within a stage, the earlier one after that.

    Args:
        candidates: in any order.
        notes: of the search so far.
        veto: why no GSD may be stated at all (another planet); every candidate is kept, none is chosen.
    """
    ordered = tuple(sorted(candidates, key=lambda c: (c.stage, c.sigma_log10)))
    if veto is not None or not ordered:
        return Resolution(chosen=None, candidates=ordered, notes=(*notes, *([veto] if veto else [])))
    return Resolution(chosen=ordered[0], candidates=ordered, notes=tuple(notes))


def _disagree(a: Candidate, b: Candidate) -> bool:
    """More than five percent apart, or outside the interval of an imprecise one (half-width = sqrt(3) sigma)."""
    slack = [math.sqrt(3) * c.sigma_log10 for c in (a, b) if c.provenance is Provenance.IMPRECISE]
    return abs(math.log10(a.gsd_m / b.gsd_m)) > AGREEMENT_LOG10 + sum(slack)


def _sentence(chosen: Candidate, other: Candidate) -> str:
    return f"{other.source} says {other.gsd_m:.4g} m, {chosen.source} says {chosen.gsd_m:.4g} m: {chosen.source} taken"


def _pixel_notes(pixel: GroundPixel) -> tuple[str, ...]:
    found = []
    if is_anisotropic(pixel.gsd_x_m, pixel.gsd_y_m):
        found.append(f"anisotropic pixels: {pixel.gsd_x_m:.4g} m by {pixel.gsd_y_m:.4g} m")
    if pixel.spread_log10 > AGREEMENT_LOG10:
        found.append(f"GSD varies over the image by up to {10**pixel.spread_log10 - 1:.0%} from its centre")
    if pixel.sheared:
        found.append("pixels are sheared on the ground")
    if pixel.off_map:
        found.append("part of the image lies off the map")
    return tuple(found)
