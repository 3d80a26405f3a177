"""Paired bootstrap over places: how sure a mean, or a difference of accuracies, is.

Questions about one place are not independent (one unreadable image spoils forty answers), so whole places are drawn
with replacement (cluster bootstrap). With d_p the sum over the questions of place p of (correct_ours - correct_twin)
and n_p their number, a resample with counts c_p has

    difference = sum_p c_p d_p / sum_p c_p n_p,        c ~ Multinomial(P; 1/P, ..., 1/P)

The pairing is in d: what makes a question hard makes it hard for both. The interval is the percentile one, and its
price is that below some twenty places it is too narrow; with one place it has no width and means nothing.

    Places             the resamples themselves: distributions of means and of any other statistic (a rank correlation)
    place_bootstrap    an interval for every group of questions
    place_means        means under several views, whose resamples may be subtracted from each other

Legend of shape suffixes: N rows (questions or images), P places, G groups or views, R resamples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError

N_RESAMPLES = 2000
_CHUNK = 250

Floats = NDArray[np.float64]
Counts = NDArray[np.float32]
"""How often each place is drawn in each resample [R, P]: whole numbers, exact at half the memory."""

Weights = Floats
"""How often each row counts in one resample [N]."""


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


class Places:
    """Places to draw from. Equal places, R and seed give the same resamples, so that everything made of them is paired.

    Args:
        names: the place of every row, repeated or not; more places than a statistic's own rows have are no harm.
        n_resamples: R.
        seed: same seed, same resamples.
        at_least: fewer places are refused.

    Raises:
        ConfigError: fewer than `at_least` places.
    """

    def __init__(
        self, names: Iterable[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0, at_least: int = 1
    ) -> None:
        self.order = {name: i for i, name in enumerate(sorted(set(names)))}
        if len(self.order) < at_least:
            raise ConfigError(f"intervals need {at_least} places", field="place_id", value=sorted(self.order))
        self._drawn = (len(self.order), n_resamples, seed)

    @property
    def count_RP(self) -> Counts:
        """All resamples at once; kept, because every group of a split asks for the same."""
        return _kept(*self._drawn)

    def chunks(self) -> Iterator[Counts]:
        """The same, some at a time and drawn anew: memory does not grow with R."""
        return _draws(*self._drawn)

    def rows(self, places: Iterable[str]) -> NDArray[np.intp]:
        """The place of every row as an index."""
        return np.array([self.order[name] for name in places], dtype=np.intp)

    def sums(self, value_GN: NDArray[Any], place_N: NDArray[np.intp]) -> Floats:
        """Sums of `value_GN` over the rows of every place [P, G]."""
        n_places = len(self.order)
        return np.stack([np.bincount(place_N, value_N, n_places).astype(np.float64) for value_N in value_GN], axis=1)

    def means(self, value_GN: NDArray[Any], places: Iterable[str]) -> Floats:
        """The mean of every `value_N` in every resample [R, G]; NaN where a resample holds none of these rows."""
        place_N = self.rows(places)
        return _ratio(self.count_RP, self.sums(value_GN, place_N), self.sums(np.ones((1, len(place_N))), place_N))

    def apply(self, statistic: Callable[[Weights], float], places: Iterable[str]) -> Floats:
        """`statistic(weight_N)` of every resample."""
        place_N = self.rows(places)
        return np.array([statistic(count_P[place_N].astype(np.float64)) for count_P in self.count_RP])


def place_bootstrap(
    value_N: Floats,
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
    drawn = Places(places, n_resamples=n_resamples, seed=seed)
    place_N = drawn.rows(places)
    names = [name for name, mask in groups.items() if mask.any()]
    mask_GN = np.stack([groups[g] for g in names]).astype(np.float64)
    sum_PG, count_PG = drawn.sums(mask_GN * value_N, place_N), drawn.sums(mask_GN, place_N)
    # A group that a resample happens to miss has no mean in it: NaN, left out by nanquantile. The estimate itself is
    # made of all places, so at least the resamples that hit the group remain.
    mean_RG = np.concatenate([_ratio(count_RP, sum_PG, count_PG) for count_RP in drawn.chunks()])
    low_G, high_G = np.nanquantile(mean_RG, [0.025, 0.975], axis=0)
    estimate_G = sum_PG.sum(0) / count_PG.sum(0)
    in_group_G = (count_PG > 0).sum(0)
    return {
        name: Interval(
            estimate=float(estimate_G[i]), low=float(low_G[i]), high=float(high_G[i]), n_places=int(in_group_G[i])
        )
        for i, name in enumerate(names)
    }


def place_means(
    value_VN: NDArray[Any], place_N: NDArray[np.str_], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """(means [V], means of resampled places [R, V]): every row meets the same resamples, so differences are paired."""
    if not value_VN.shape[1]:
        raise ConfigError("no question is left to average", field="mask", remedy="the group is empty in this split")
    places = place_N.tolist()
    drawn = Places(places, n_resamples=n_resamples, seed=seed)
    return value_VN.mean(1, dtype=np.float64), drawn.means(value_VN, places)


def interval(value_R: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled numbers."""
    low, high = np.quantile(value_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draws(n_places: int, n_resamples: int, seed: int) -> Iterator[Counts]:
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        yield rng.multinomial(n_places, np.full(n_places, 1 / n_places), size=size).astype(np.float32)


@lru_cache(maxsize=4)
def _kept(n_places: int, n_resamples: int, seed: int) -> Counts:
    return np.concatenate(list(_draws(n_places, n_resamples, seed)))


def _ratio(count_RP: Counts, sum_PG: Floats, count_PG: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray((count_RP @ sum_PG) / (count_RP @ count_PG))


def _check(value_N: Floats, places: Sequence[str], groups: Mapping[str, NDArray[np.bool_]], n_resamples: int) -> None:
    lengths = {"value": len(value_N), "places": len(places), **{g: len(mask) for g, mask in groups.items()}}
    if len(set(lengths.values())) != 1 or not len(value_N):
        raise ConfigError("one value, place and mask per question, and at least one question", value=lengths)
    if n_resamples < 100:
        raise ConfigError(
            "too few resamples for a 95 % interval", field="n_resamples", value=n_resamples, remedy="2000"
        )
