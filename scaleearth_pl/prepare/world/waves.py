"""Natural texture as a sum of plane waves, averaged over the sample exactly.

A wave a sin(k.x + p) averaged over a square of side g is the same wave times sinc(kx g / 2) sinc(ky g / 2). So a
texture costs one matrix product, sin(kx x + ky y + p) being separable, and has the right mean at any GSD without
supersampling:

    field[H, W] = [cos(ky y), sin(ky y)] @ [a sin(kx x + p); a cos(kx x + p)]

A *bump* of waves around one wavelength is a scale cue: grass tufts, crowns, stands, hills. A *self-similar* field has
equally many waves in every octave, so that no magnification looks different from another. Its waves all cross zero in
one point: else the number of waves too long to be seen would show as a random offset, and with it the GSD.

Shape suffixes: K waves, C colours, N samples along the canvas.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.prepare.world.canvas import F32

F64 = NDArray[np.float64]
ColourOf = Callable[[F64], F64]
"""Wavelengths in metres [K] to heights [C, K]."""

LONGEST_FOOTPRINTS = 6.0
"""Waves longer than this many footprints are dropped: they are flat in view."""
SHORTEST_STEPS = 1.0
"""Waves shorter than this many samples are dropped: their mean over a sample is below a fifth of their height."""


@dataclass(frozen=True)
class Waves:
    """Wave vectors in radians per metre, phase, and height in each of C colours, of K waves."""

    kx_K: F64
    ky_K: F64
    phase_K: F64
    height_CK: F64

    @classmethod
    def bump(cls, rng: np.random.Generator, wavelength_m: float, *, n: int = 24, spread: float = 0.22) -> Self:
        """Isotropic grey texture of unit deviation around one wavelength; `spread` is in decades, to both sides."""
        length_K = wavelength_m * 10 ** rng.uniform(-spread, spread, n)
        return cls._isotropic(rng, length_K, np.full((1, n), math.sqrt(2 / n)), rng.uniform(0, 2 * math.pi, n))

    @classmethod
    def series(
        cls, rng: np.random.Generator, low_m: float, high_m: float, colour_of: ColourOf, *, per_octave: int = 11
    ) -> Self:
        """Texture at all wavelengths, of unit deviation an octave, coloured by wavelength."""
        n = round(per_octave * math.log2(high_m / low_m))
        length_K = low_m * (high_m / low_m) ** rng.uniform(0, 1, n)
        height_CK = colour_of(length_K) * math.sqrt(2 / per_octave)
        return cls._isotropic(rng, length_K, height_CK, rng.uniform(0, 2 * math.pi, n))

    @classmethod
    def self_similar(cls, rng: np.random.Generator, low_m: float, high_m: float, *, per_octave: int = 14) -> Self:
        """Scale-free grey texture: equal heights at all wavelengths, all waves zero at the place's centre."""
        n = round(per_octave * math.log2(high_m / low_m))
        length_K = low_m * (high_m / low_m) ** rng.uniform(0, 1, n)
        height_CK = np.full((1, n), math.sqrt(2 / per_octave))
        return cls._isotropic(rng, length_K, height_CK, rng.choice([0.0, math.pi], n))

    @classmethod
    def _isotropic(cls, rng: np.random.Generator, length_K: F64, height_CK: F64, phase_K: F64) -> Self:
        angle_K = rng.uniform(0, 2 * math.pi, len(length_K))
        k_K = 2 * math.pi / length_K
        return cls(k_K * np.cos(angle_K), k_K * np.sin(angle_K), phase_K, height_CK)

    def times(self, *factors: float) -> "Waves":
        """The same texture, higher; several factors colour a grey one."""
        return replace(self, height_CK=np.array(factors, np.float64)[:, None] * self.height_CK)

    def lit(self, sun_x: float, sun_y: float) -> "Waves":
        """Hill shading: the slope towards the sun, height for height; waves along the light vanish into its shade."""
        facing_K = (self.kx_K * sun_x + self.ky_K * sun_y) / np.hypot(self.kx_K, self.ky_K)
        height_CK = self.height_CK * facing_K * math.sqrt(2)
        return replace(self, height_CK=height_CK, phase_K=self.phase_K + math.pi / 2)

    def __add__(self, other: "Waves") -> "Waves":
        return Waves(
            np.concatenate([self.kx_K, other.kx_K]),
            np.concatenate([self.ky_K, other.ky_K]),
            np.concatenate([self.phase_K, other.phase_K]),
            np.concatenate([self.height_CK, other.height_CK], axis=1),
        )

    def sample(self, x_N: F64, y_N: F64, step: float) -> F32:
        """Mean of the texture over every sample.

        Args:
            x_N: centres of the columns, metres.
            y_N: centres of the rows, metres.
            step: side of a sample, metres.

        Returns:
            Heights [C, N, N]. Only waves between `SHORTEST_STEPS` and `LONGEST_FOOTPRINTS` count: a rule in samples,
            the same at every GSD.
        """
        per_m_K = np.hypot(self.kx_K, self.ky_K) / (2 * math.pi)
        seen_K = (per_m_K * step < 1 / SHORTEST_STEPS) & (per_m_K * step * len(x_N) > 1 / LONGEST_FOOTPRINTS)
        kx_K, ky_K = self.kx_K[seen_K], self.ky_K[seen_K]
        mean_K = np.sinc(kx_K * step / (2 * math.pi)) * np.sinc(ky_K * step / (2 * math.pi))
        along_NK = np.outer(x_N, kx_K) + self.phase_K[seen_K]
        across_NK = np.outer(y_N, ky_K)
        left = np.concatenate([np.cos(across_NK), np.sin(across_NK)], axis=1).astype(np.float32)
        right = np.concatenate([np.sin(along_NK), np.cos(along_NK)], axis=1).astype(np.float32)
        height_CK = (self.height_CK[:, seen_K] * mean_K).astype(np.float32)
        rows = [(left * np.concatenate([height_K, height_K])) @ right.T for height_K in height_CK]
        return np.stack(rows)
