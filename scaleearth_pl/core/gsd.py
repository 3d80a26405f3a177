"""Ground sampling distance: units, tiers, provenance.

The scale signal of ScaleEarth is `s = log10(GSD in metres per pixel)`. Two GSDs belong to an image: `gsd_m_native`,
of the file's pixels, and `gsd_m`, of the pixels that the model sees after resizing. Everything that touches the gate
uses the second.
"""

import math
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError, GsdError

RANK_TIERS = ("object", "structure", "semantic")
"""Tiers of LoRA rank dimensions, finest first."""

RANK_TIER_BANDS = {"object": (-0.8, 0.2), "structure": (0.2, 1.2), "semantic": (1.5, 2.5)}
"""Initial band of the gate thresholds tau of each rank tier, in log10 metres.

Ours: the paper says only that 0.1 m keeps all three tiers and about 20 m mostly the semantic one. Below 0.16 m (-0.8)
every rank is open; object and structure ranks close between 0.16 and 16 m, and the gap before 32 m (1.5) keeps the
semantic ranks open at 20 m.
"""

_UNITS_M = {"": 1.0, "m": 1.0, "cm": 0.01, "km": 1000.0}
_LENGTH = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([a-zA-Z]*)\s*")


class Tier(StrEnum):
    """Image tiers by GSD, finest first; `UNKNOWN` if and only if the GSD is null."""

    HIGH = "high"
    MID = "mid"
    LOW = "low"
    UNKNOWN = "unknown"


class Provenance(StrEnum):
    """How a GSD is known; decides its sigma and its weight in the NLL."""

    EXACT = "exact"
    NOMINAL = "nominal"
    IMPRECISE = "imprecise"
    UNKNOWN = "unknown"

    @property
    def nll_weight(self) -> float:
        """Trust of SSE-U's loss in this GSD."""
        return {"exact": 1.0, "nominal": 0.5, "imprecise": 0.0, "unknown": 0.0}[self]

    @property
    def default_sigma_log10(self) -> float | None:
        """Sigma in decades; None where the sample must state its own (imprecise) or has none (unknown)."""
        return {"exact": 0.01, "nominal": 0.05, "imprecise": None, "unknown": None}[self]


@dataclass(frozen=True, kw_only=True)
class TierBoundaries:
    """high < `high_below_m` <= mid < `mid_below_m` <= low, in metres per pixel."""

    high_below_m: float = 1.0
    mid_below_m: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.high_below_m < self.mid_below_m < math.inf:
            raise ConfigError(
                "tier boundaries must satisfy 0 < high_below_m < mid_below_m",
                value=(self.high_below_m, self.mid_below_m),
                remedy="the defaults are 1.0 and 10.0 metres",
            )

    def tier_of(self, gsd_m: float | None) -> Tier:
        """Tier of a GSD in metres per pixel; `UNKNOWN` for None."""
        if gsd_m is None:
            return Tier.UNKNOWN
        gsd_m = check_gsd_m(gsd_m)
        if gsd_m < self.high_below_m:
            return Tier.HIGH
        return Tier.MID if gsd_m < self.mid_below_m else Tier.LOW


def check_gsd_m(value: object, *, field: str = "gsd_m", file: Path | str | None = None) -> float:
    """Returns `value` as metres per pixel; raises `GsdError` unless it is a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GsdError("GSD is not a number", file=file, field=field, value=value, remedy="give metres per pixel")
    if not 0 < value <= sys.float_info.max:  # an int may be larger than any float
        raise GsdError(
            "GSD must be finite and positive",
            file=file,
            field=field,
            value=value,
            remedy="give metres per pixel, or null with provenance 'unknown'",
        )
    return float(value)


def parse_gsd_text(text: object, *, field: str = "gsd_m", file: Path | str | None = None) -> float:
    """Metres per pixel from a number or a text such as ".1524m", "10m" or "30 cm"."""
    if not isinstance(text, str):
        return check_gsd_m(text, field=field, file=file)
    match = _LENGTH.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS_M:
        raise GsdError(
            "GSD text is not a length",
            file=file,
            field=field,
            value=text,
            remedy="write a number with unit m, cm or km, such as '.1524m'",
        )
    return check_gsd_m(float(match[1]) * _UNITS_M[match[2].lower()], field=field, file=file)


def effective_gsd_m(gsd_m_native: float, native_size: tuple[int, int], seen_size: tuple[int, int]) -> float:
    """GSD of the pixels the model sees: native x sqrt(W0 H0 / (W H)); sizes in the same order, in pixels."""
    (a0, b0), (a1, b1) = native_size, seen_size
    return check_gsd_m(gsd_m_native) * math.sqrt((a0 * b0) / (a1 * b1))


def log10_gsd(gsd_m: float) -> float:
    """The scale signal s of the paper."""
    return math.log10(check_gsd_m(gsd_m))


def rank_tier_sizes(rank: int) -> tuple[int, int, int]:
    """Rank dimensions per rank tier, remainder to the finest first: 64 -> (22, 21, 21)."""
    if rank < len(RANK_TIERS):
        raise ConfigError(
            f"rank must be at least the number of rank tiers ({len(RANK_TIERS)})",
            field="rank",
            value=rank,
            remedy="the paper uses 64",
        )
    base, rest = divmod(rank, len(RANK_TIERS))
    sizes = [base + (i < rest) for i in range(len(RANK_TIERS))]
    return sizes[0], sizes[1], sizes[2]
