"""Decoupling (the paper's Figure 11, hypothesis H8): does a rank tier carry the factors that its scale suggests?

A *unit* is one rank of one adapted module. Its reading of an image is the mean over the image's tokens of the *ungated*
A x: with the gate on, a closed rank would look decoupled from everything merely because it is closed. A factor is a known
property of the image: texture, geometry or semantic (the procedural world knows them exactly).

**Probe.** One unit, one factor, linear, cross-validated over folds of *places*. The scale itself is taken out of both
first: unit and factor are regressed on (1, s, s^2, s^3) within the training folds and what is left is probed,

    partial R^2 = 1 - sum (f - f_hat(unit))^2 / sum (f - f_bar)^2      on held-out places, of residuals

else every tier would "know" every factor that changes with s. It may be slightly negative: a useless unit loses to
the mean.

**Block-diagonality.** The paper expects object ranks to carry texture, structure ranks geometry, semantic ranks semantics. Per
factor, the clipped R^2 of the three tiers (means over units) are divided by their sum, so that an easy factor counts no
more than a hard one; the number is the mean over factors of its own tier's share: 1/3 if tiers mean nothing, 1 if each
factor lives in its own tier alone. Its null permutes the tier labels of the ranks within each module.

Legend: I images, M modules, r ranks, U = M x r units, F factors, K folds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.evaluation.protocols.probes_read import UnitReadings
from scaleearth_pl.model.gate import rank_tier_slices

Floats = NDArray[np.float64]

EXPECTED = {"texture": "object", "geometry": "structure", "semantic": "semantic"}
"""Which rank tier the paper expects to carry which group of factors."""

SCALE_DEGREE = 3
"""Degree of the polynomial in s that is taken out of unit and factor."""

MIN_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """What every unit knows of every factor.

    Attributes:
        r2_MrF: cross-validated partial R^2.
        modules: names, M of them.
        factors: "group/name", F of them; factors that do not vary are left out.
        matrix: mean clipped R^2 of rank tier (row of the dict) and factor group.
        block_diagonality: see the module's text.
        null: its values under permuted tier labels.
        p_value: share of the null at least as large, with the observed one among them.
        n_images: that were read.
    """

    r2_MrF: Floats
    modules: tuple[str, ...]
    factors: tuple[str, ...]
    matrix: Mapping[str, Mapping[str, float]]
    block_diagonality: float
    null: Floats
    p_value: float
    n_images: int

    def as_json(self) -> dict[str, Any]:
        """Numbers without the big array."""
        low, high = np.quantile(self.null, [0.025, 0.975])
        return {
            "images": self.n_images,
            "modules": len(self.modules),
            "factors": list(self.factors),
            "matrix": {tier: dict(row) for tier, row in self.matrix.items()},
            "block_diagonality": self.block_diagonality,
            "null_mean": float(self.null.mean()),
            "null_ci95": [float(low), float(high)],
            "p_value": self.p_value,
            "best_r2": {name: float(self.r2_MrF[..., f].max()) for f, name in enumerate(self.factors)},
        }


def probe(
    readings: UnitReadings, *, n_folds: int = 5, n_permutations: int = 2000, partial: bool = True, seed: int = 0
) -> ProbeResult:
    """Probes every unit for every factor.

    Args:
        readings: from `read_units`.
        n_folds: of places.
        n_permutations: of tier labels, for the null.
        partial: take the scale out first (H8); False is the paper's plain R^2.
        seed: of folds and permutations.

    Raises:
        ConfigError: fewer places than folds, no factor that varies, or images without GSD.
    """
    factor_IF, names = _varying(readings)
    n_images, n_modules, rank = readings.unit_IMr.shape
    unit_IU = readings.unit_IMr.reshape(n_images, -1).astype(np.float64)
    fold_I = _folds(readings.place_I, n_folds, seed)
    scale_IS = _design(readings.log10_gsd_I, partial)
    r2_UF = partial_r2(unit_IU, factor_IF, scale_IS, fold_I)
    r2_MrF = r2_UF.reshape(n_modules, rank, -1)
    tiers_r = _tier_of_rank(rank)
    groups = np.array([name.partition("/")[0] for name in names])
    rng = np.random.default_rng(seed)
    labels_Mr = np.tile(tiers_r, (n_modules, 1))
    observed = block_diagonality(r2_MrF, labels_Mr, groups)
    null = np.array([block_diagonality(r2_MrF, rng.permuted(labels_Mr, axis=1), groups) for _ in range(n_permutations)])
    return ProbeResult(
        r2_MrF=r2_MrF,
        modules=readings.modules,
        factors=tuple(names),
        matrix=_matrix(r2_MrF, labels_Mr, groups),
        block_diagonality=observed,
        null=null,
        p_value=float((1 + (null >= observed).sum()) / (1 + n_permutations)),
        n_images=n_images,
    )


def partial_r2(unit_IU: Floats, factor_IF: Floats, scale_IS: Floats, fold_I: NDArray[np.int64]) -> Floats:
    """Cross-validated R^2 [U, F] of one-unit probes, after `scale_IS` is regressed out of both sides.

    All coefficients (of the scale, and of the probe) come from the training folds. With one predictor the fit is a
    covariance over a variance, so that all U x F probes of a fold are one matrix product.
    """
    squared_UF = np.zeros((unit_IU.shape[1], factor_IF.shape[1]))
    total_F = np.zeros(factor_IF.shape[1])
    for fold in np.unique(fold_I):
        train, test = fold_I != fold, fold_I == fold
        (u_train, u_test), (f_train, f_test) = (_without_scale(x, scale_IS, train, test) for x in (unit_IU, factor_IF))
        variance_U = (u_train**2).sum(0)
        slope_UF = (u_train.T @ f_train) / np.maximum(variance_U, MIN_VARIANCE)[:, None]
        cross_UF = u_test.T @ f_test
        energy_F, energy_U = (f_test**2).sum(0), (u_test**2).sum(0)
        squared_UF += energy_F - 2 * slope_UF * cross_UF + slope_UF**2 * energy_U[:, None]
        total_F += energy_F
    return 1 - squared_UF / np.maximum(total_F, MIN_VARIANCE)


def block_diagonality(r2_MrF: Floats, labels_Mr: NDArray[np.int64], groups_F: NDArray[np.str_]) -> float:
    """Mean over factors of the share of their own tier; 1/3 by chance. Factors that no unit knows do not count."""
    clipped = np.clip(r2_MrF, 0, None).reshape(-1, r2_MrF.shape[-1])
    labels_U = labels_Mr.reshape(-1)
    onehot_UT = (labels_U[:, None] == np.arange(len(RANK_TIERS))).astype(np.float64)
    mean_TF = (onehot_UT.T @ clipped) / np.maximum(onehot_UT.sum(0), 1)[:, None]
    known_F = mean_TF.sum(0) > MIN_VARIANCE
    own_F = np.array([RANK_TIERS.index(EXPECTED[group]) for group in groups_F])
    shares = mean_TF[own_F, np.arange(len(own_F))][known_F] / mean_TF.sum(0)[known_F]
    return float(shares.mean()) if len(shares) else 1 / len(RANK_TIERS)


def _matrix(r2_MrF: Floats, labels_Mr: NDArray[np.int64], groups_F: NDArray[np.str_]) -> dict[str, dict[str, float]]:
    clipped = np.clip(r2_MrF, 0, None)
    return {
        tier: {
            group: float(clipped[labels_Mr == t][:, groups_F == group].mean())
            for group in EXPECTED
            if (groups_F == group).any()
        }
        for t, tier in enumerate(RANK_TIERS)
    }


def _without_scale(
    x_IX: Floats, scale_IS: Floats, train: NDArray[np.bool_], test: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Residuals of both parts, coefficients from the training part."""
    coefficients_SX, *_ = np.linalg.lstsq(scale_IS[train], x_IX[train], rcond=None)
    return x_IX[train] - scale_IS[train] @ coefficients_SX, x_IX[test] - scale_IS[test] @ coefficients_SX


def _design(log10_gsd_I: Floats, partial: bool) -> Floats:
    if not partial:
        return np.ones((len(log10_gsd_I), 1))
    if not np.isfinite(log10_gsd_I).all():
        raise ConfigError("partial probes need the GSD of every image", field="log10_gsd", value="NaN")
    centred = log10_gsd_I - log10_gsd_I.mean()
    return np.stack([centred**k for k in range(SCALE_DEGREE + 1)], axis=1)


def _folds(place_I: NDArray[np.str_], n_folds: int, seed: int) -> NDArray[np.int64]:
    names, place = np.unique(place_I, return_inverse=True)
    if len(names) < n_folds:
        raise ConfigError("fewer places than folds", field="n_folds", value=(len(names), n_folds))
    return np.random.default_rng(seed).permutation(np.arange(len(names)) % n_folds)[place]


def _tier_of_rank(rank: int) -> NDArray[np.int64]:
    tiers = np.zeros(rank, np.int64)
    for t, ranks in enumerate(rank_tier_slices(rank).values()):
        tiers[ranks] = t
    return tiers


def _varying(readings: UnitReadings) -> tuple[Floats, list[str]]:
    """Standardised factors that vary, of the groups that the paper names."""
    keep = [
        f
        for f, name in enumerate(readings.factors)
        if name.partition("/")[0] in EXPECTED and readings.factor_IF[:, f].std() > 1e-9
    ]
    if not keep:
        raise ConfigError("no factor varies over these images", field="factors", value=list(readings.factors))
    factor_IF = readings.factor_IF[:, keep]
    return (factor_IF - factor_IF.mean(0)) / factor_IF.std(0), [readings.factors[f] for f in keep]
