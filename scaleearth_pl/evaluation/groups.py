"""The groups in which accuracies are reported: overall, by effective tier, by family, by type of question.

Masks over questions, so that every statistic (an accuracy, a floor, a difference with its interval) is one vector of
numbers and the same masks. Names are those of `core.metrics.GroupedAccuracy`: 'overall', 'by_tier/high', ...
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.core.run_files import Prediction

KINDS = ("by_tier", "by_family", "by_type")


def group_masks(rows: Sequence[Prediction]) -> dict[str, NDArray[np.bool_]]:
    """A mask over `rows` for every group that is not empty; tiers finest first, the rest by name."""
    masks = {"overall": np.ones(len(rows), dtype=bool)}
    orders = {"by_tier": [str(t) for t in Tier], "by_family": None, "by_type": None}
    for kind, order in orders.items():
        values = np.array([getattr(row, kind.removeprefix("by_")) for row in rows])
        present = set(values.tolist())
        for name in order or sorted(present):
            if name in present:
                masks[f"{kind}/{name}"] = values == name
    return masks


def group_means(value_N: NDArray[np.float64], masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Mean of `value_N` [N questions] inside every mask."""
    return {name: float(value_N[mask].mean()) for name, mask in masks.items()}


def correctness(rows: Sequence[Prediction]) -> NDArray[np.float64]:
    """1 where the model was right, else 0; [N questions]."""
    return np.array([row.correct for row in rows], dtype=np.float64)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"by_tier/high": x}` as `{"by_tier": {"high": x}}`, with every kind present: the shape of summary.json."""
    document: dict[str, Any] = {"overall": flat["overall"], **{kind: {} for kind in KINDS}}
    for name, value in flat.items():
        kind, _, group = name.partition("/")
        if group:
            document[kind][group] = value
    return document
