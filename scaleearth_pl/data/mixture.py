"""Mixture by tier and source: how often each image is read in an epoch.

A weight is a number of repetitions per epoch: 1 reads every image of a tier once, 2 twice, 0.5 every other one. Weights
*repeat by design*: nothing is resampled at random, so the accounting can be exact. The images of a group (tier, source)
stand on a circle in a fixed random order; epoch e walks on from where epoch e - 1 stopped:

    positions  floor(e w n) ... floor((e + 1) w n)   modulo n

After any number of epochs two images of a group differ by at most one reading; sampling with replacement would miss
1/e of them in the first epoch (measured on webdataset's `resampled`: half).
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.data.shards import ShardIndex


def check_weights(weights: Mapping[str, float] | None, known: tuple[str, ...], field: str) -> dict[str, float]:
    """Weights with every name checked; `ConfigError` for an unknown name or a weight below 0 or not finite."""
    weights = dict(weights or {})
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError("weight for an unknown name", field=field, value=name, remedy=f"known: {list(known)}")
        if not 0 <= weight < math.inf:
            raise ConfigError(
                "weight must be a number of repetitions, at least 0", field=f"{field}.{name}", value=weight
            )
    return weights


class Mixture:
    """Groups of rows, each with its number of repetitions per epoch.

    Args:
        index: the corpus.
        rows: rows that may be read.
        seed: fixes the order on the circles.
        tier_weights: repetitions by native tier; absent tiers have 1.
        source_weights: likewise by source; the two multiply.
    """

    def __init__(
        self,
        index: ShardIndex,
        rows: NDArray[np.int64],
        *,
        seed: int,
        tier_weights: Mapping[str, float] | None = None,
        source_weights: Mapping[str, float] | None = None,
    ) -> None:
        sources = tuple(sorted({index.text["source"][row] for row in rows.tolist()}))
        by_tier = check_weights(tier_weights, tuple(Tier), "tier_weights")
        by_source = check_weights(source_weights, sources, "source_weights")
        names = [(str(index.tier_of_row(row)), index.text["source"][row]) for row in rows.tolist()]
        self.groups: list[tuple[tuple[str, str], float, NDArray[np.int64]]] = []
        for tier, source in sorted(set(names)):
            members = rows[np.array([name == (tier, source) for name in names])]
            # Named, not numbered: a new group does not reshuffle the others.
            circle = np.random.default_rng([seed, zlib.crc32(f"{tier}|{source}".encode())]).permutation(members)
            self.groups.append(((tier, source), by_tier.get(tier, 1.0) * by_source.get(source, 1.0), circle))

    @property
    def weight_of_row(self) -> dict[int, float]:
        """Mean number of readings per epoch of each row."""
        return {row: weight for _, weight, circle in self.groups for row in circle.tolist()}

    def draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that this epoch reads, with the number of the copy (0 for the first reading) beside each."""
        rows, copies = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for _, weight, circle in self.groups:
            start, stop = (math.floor(e * weight * len(circle) + 1e-6) for e in (epoch, epoch + 1))
            laps, places = np.divmod(np.arange(start, stop), len(circle))
            rows.append(circle[places])
            copies.append(laps - start // len(circle))
        return np.concatenate(rows), np.concatenate(copies)
