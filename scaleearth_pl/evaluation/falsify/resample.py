"""The same resamples of places for every statistic of a report.

`bootstrap.place_bootstrap` gives intervals of means; the tests here need whole distributions, of means and of other
statistics (an argmax, a ratio, a rank correlation). A resample is a vector of counts c over places: a mean weighs every
row by the count of its place, any other statistic is a function of those weights.

Legend of shape suffixes: N rows (questions or images), P places, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError

Weights = NDArray[np.float64]


class Places:
    """Resampled counts of places, drawn once.

    Args:
        names: every place of the split, repeated or not.
        n_resamples: R.
        seed: same seed, same resamples.

    Raises:
        ConfigError: fewer than two places, of which no interval can be made.
    """

    def __init__(self, names: Sequence[str], *, n_resamples: int, seed: int = 0) -> None:
        self.order = {name: i for i, name in enumerate(sorted(set(names)))}
        if len(self.order) < 2:
            raise ConfigError("intervals over places need two places", field="place_id", value=sorted(self.order))
        n_places = len(self.order)
        rng = np.random.default_rng(seed)
        self.count_RP = rng.multinomial(n_places, np.full(n_places, 1 / n_places), size=n_resamples).astype(np.float32)

    def means(self, value_N: NDArray[np.float64], places: Sequence[str]) -> NDArray[np.float64]:
        """The mean of `value_N` in every resample [R]; NaN where a resample holds none of its places."""
        of_row_N = self.rows(places)
        n_places = len(self.order)
        sum_P = np.bincount(of_row_N, value_N, n_places)
        count_P = np.bincount(of_row_N, minlength=n_places).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray((self.count_RP @ sum_P) / (self.count_RP @ count_P))

    def apply(
        self, statistic: Callable[[Weights], float], places: Sequence[str], *, limit: int | None = None
    ) -> NDArray[np.float64]:
        """`statistic(weight_N)` of the first `limit` resamples."""
        of_row_N = self.rows(places)
        return np.array([statistic(count_P[of_row_N].astype(np.float64)) for count_P in self.count_RP[:limit]])

    def rows(self, places: Sequence[str]) -> NDArray[np.intp]:
        """The place of every row as an index."""
        return np.array([self.order[name] for name in places], dtype=np.intp)
