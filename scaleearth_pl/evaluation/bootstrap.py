"""Paired bootstrap over places: how sure a difference of accuracies is.

Questions about one place are not independent (one unreadable image spoils forty answers), so whole places are drawn
with replacement (cluster bootstrap). With d_p the sum over the questions of place p of (correct_ours - correct_twin)
and n_p their number, a resample with counts c_p has

    difference = sum_p c_p d_p / sum_p c_p n_p,        c ~ Multinomial(P; 1/P, ..., 1/P)

The pairing is in d: what makes a question hard makes it hard for both. The interval is the percentile one, and its
price is that below some twenty places it is too narrow; with one place it has no width and means nothing.

Legend of shape suffixes: N questions, P places, G groups (overall, a family, a tier), R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError

N_RESAMPLES = 2000
_CHUNK = 250


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float
    n_places: int

    def as_json(self) -> dict[str, Any]:
        """`{estimate, ci95}` of contracts.md."""
        return {"estimate": self.estimate, "ci95": [self.low, self.high]}


def place_bootstrap(
    value_N: NDArray[np.float64],
    places: Sequence[str],
    groups: Mapping[str, NDArray[np.bool_]],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Mean of `value_N` in every group, with intervals; all groups share the same resamples.

    Args:
        value_N: a number per question: 0 or 1 for an accuracy, -1, 0 or 1 for a difference.
        places: the place of every question.
        groups: masks over questions by name; an empty group is left out of the result.
        n_resamples: resamples R.
        seed: same seed, same intervals.

    Raises:
        ConfigError: lengths that differ, no question, or fewer than 100 resamples.
    """
    _check(value_N, places, groups, n_resamples)
    _, place_N = np.unique(np.asarray(places), return_inverse=True)
    n_places = int(place_N.max()) + 1
    names = [name for name, mask in groups.items() if mask.any()]
    mask_GN = np.stack([groups[g] for g in names]).astype(np.float64)
    sum_PG = _sum_by_place(mask_GN * value_N, place_N, n_places)
    count_PG = _sum_by_place(mask_GN, place_N, n_places)
    mean_RG = _resampled_means(sum_PG, count_PG, n_resamples, np.random.default_rng(seed))
    low_G, high_G = np.nanquantile(mean_RG, [0.025, 0.975], axis=0)
    estimate_G = sum_PG.sum(0) / count_PG.sum(0)
    in_group_G = (count_PG > 0).sum(0)
    return {
        name: Interval(
            estimate=float(estimate_G[i]), low=float(low_G[i]), high=float(high_G[i]), n_places=int(in_group_G[i])
        )
        for i, name in enumerate(names)
    }


def _sum_by_place(value_GN: NDArray[np.float64], place_N: NDArray[np.intp], n_places: int) -> NDArray[np.float64]:
    sums = [np.bincount(place_N, value_N, n_places).astype(np.float64) for value_N in value_GN]
    return np.stack(sums, axis=1)


def _resampled_means(
    sum_PG: NDArray[np.float64], count_PG: NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    # A group that a resample happens to miss has no mean in it: NaN, left out by nanquantile. The estimate itself is
    # made of all places, so at least the resamples that hit the group remain.
    n_places = len(sum_PG)
    means = []
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        draw_RP = rng.multinomial(n_places, np.full(n_places, 1 / n_places), size=size).astype(np.float64)
        count_RG = draw_RP @ count_PG
        with np.errstate(invalid="ignore"):
            means.append(np.where(count_RG > 0, (draw_RP @ sum_PG) / count_RG, np.nan))
    return np.concatenate(means)


def _check(
    value_N: NDArray[np.float64], places: Sequence[str], groups: Mapping[str, NDArray[np.bool_]], n_resamples: int
) -> None:
    lengths = {"value": len(value_N), "places": len(places), **{g: len(mask) for g, mask in groups.items()}}
    if len(set(lengths.values())) != 1 or not len(value_N):
        raise ConfigError("one value, place and mask per question, and at least one question", value=lengths)
    if n_resamples < 100:
        raise ConfigError(
            "too few resamples for a 95 % interval", field="n_resamples", value=n_resamples, remedy="2000"
        )
