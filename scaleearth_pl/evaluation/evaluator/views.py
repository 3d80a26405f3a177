"""Views: what the model is told of the GSD while everything else stays the same.

    policy      the gate (or B3's text) gets
    metadata    the file's GSD; refused where it is unknown
    predicted   SSE-U's word
    fused       both, as a product of Gaussians
    spoof       `spoof_gsd_m`, whatever the truth

`shift_decades` moves the *metadata* of every image by the same factor: spoofing relative to each image's own truth, for
splits that hold many GSDs. `noise_decades` moves it by z x noise_decades, z standard normal and hashed from image and
seed: the same z at every level, so that levels differ by one number only. The model goes on believing the sigma of its
metadata, unless `tell_noise` adds the noise to it: the difference is what the uncertainty margin is worth.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import check_gsd_m

Policy = Literal["metadata", "predicted", "fused", "spoof"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

SPOOF_GRID_M = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""The paper's pseudo-GSDs of Figure 10, metres per pixel."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One way of telling the GSD; see the module's table. `name` is the series in tables and the folder of results."""

    policy: Policy
    spoof_gsd_m: float | None = None
    noise_decades: float = 0.0
    shift_decades: float = 0.0
    tell_noise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError("no such policy", field="policy", value=self.policy, remedy=f"one of {POLICIES}")
        if (self.policy == "spoof") != (self.spoof_gsd_m is not None):
            raise ConfigError("spoof_gsd_m belongs to policy 'spoof', and only there", value=self.spoof_gsd_m)
        if self.spoof_gsd_m is not None:
            check_gsd_m(self.spoof_gsd_m, field="spoof_gsd_m")
        if not 0 <= self.noise_decades < math.inf:
            raise ConfigError("noise is a deviation in decades", field="noise_decades", value=self.noise_decades)
        if not math.isfinite(self.shift_decades):
            raise ConfigError("a shift is a number of decades", field="shift_decades", value=self.shift_decades)
        if (self.noise_decades or self.shift_decades) and self.policy not in ("metadata", "fused"):
            raise ConfigError("noise and shift move the metadata, which this policy does not read", value=self.policy)

    @property
    def plan(self) -> dict[str, Any]:
        """What identifies it: its name, and the GSD where nine digits are not the whole of it."""
        gsd_m = self.spoof_gsd_m
        exact = gsd_m is None or float(_digits(gsd_m)) == gsd_m
        return {"view": self.name} if exact else {"view": self.name, "spoof_gsd_m": gsd_m}

    @property
    def name(self) -> str:
        """Unique among views, but for GSDs equal to nine digits: metadata, spoof-0.3m, metadata-noise-0.5, ..."""
        words = [self.policy if self.spoof_gsd_m is None else f"spoof-{_digits(self.spoof_gsd_m)}m"]
        if self.shift_decades:
            words.append(f"shift{self.shift_decades:+g}")
        if self.noise_decades:
            words.append(f"noise-{self.noise_decades:g}{'-told' if self.tell_noise else ''}-seed{self.seed}")
        return "-".join(words)


def _digits(number: float) -> str:
    """Four digits where they are the number itself, else nine."""
    short = f"{number:.4g}"
    return short if float(short) == number else f"{number:.9g}"


def spoof_views(grid_m: Sequence[float] = SPOOF_GRID_M) -> tuple[View, ...]:
    """One view per pseudo-GSD, metres per pixel seen by the model."""
    return tuple(View(policy="spoof", spoof_gsd_m=float(gsd_m)) for gsd_m in grid_m)


def shift_views(shifts_decades: Sequence[float]) -> tuple[View, ...]:
    """One view per shift of the metadata; positive is coarser than the truth."""
    return tuple(View(policy="metadata", shift_decades=float(shift)) for shift in shifts_decades)


def standard_normal(image_id: str, seed: int) -> float:
    """Draw z of one image: the same for every model, level and machine."""
    digest = hashlib.blake2b(f"{seed}|{image_id}".encode(), digest_size=8).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2**64)
