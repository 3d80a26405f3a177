"""What a component is worth: accuracy of the variant without it minus that of ours, on the same questions.

Both are told the same: the true GSD ("metadata"), or what their own SSE-U reads ("predicted"). The second matters because
some components (SSE-U, the uncertainty margin, training on predictions) can show themselves only where nobody knows the
GSD. Seeds are averaged per question; resamples are of places, the same ones for every variant.

Legend of shape suffixes: S seeds, N questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.bootstrap import Places
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.falsify.findings import mean_over_seeds
from scaleearth_pl.evaluation.falsify.plan import OURS
from scaleearth_pl.evaluation.falsify.verdicts import Statistic

ALL = "all questions"

Tables = Mapping[str, Sequence[ViewTable]]
"""One table a seed, by variant."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One variant on one group of questions, told one thing.

    Attributes:
        variant: its name in the plan.
        told: "metadata" or "predicted".
        group: "all questions", or the family of the plan.
        accuracy: share of right answers, mean over seeds.
        difference: accuracy minus that of ours told the same, with its resamples of places.
    """

    variant: str
    told: str
    group: str
    accuracy: float
    difference: Statistic


def effects_of(tables: Tables, *, group: str, n_resamples: int) -> tuple[Effect, ...]:
    """Effects of every variant, ours first (zero by definition); a view that a variant lacks gives none.

    Args:
        tables: of every variant, `ours` among them, in one order of seeds.
        group: "by_family/NAME", the questions shown beside all of them.
        n_resamples: of the bootstrap over places.

    Raises:
        ConfigError: other questions in one of the tables, another kind of group, or one without questions.
    """
    ours = tables[OURS]
    for table in (table for of_seeds in tables.values() for table in of_seeds):
        ours[0].same_questions(table)
    masks = _masks(ours[0], group)
    places = Places(ours[0].place_N.tolist(), n_resamples=n_resamples, at_least=2)
    return tuple(
        _effect(variant, told, name, mask_N, tables, places)
        for variant in sorted(tables, key=lambda v: v != OURS)
        for told in (view.name for view in tables[variant][0].views)
        for name, mask_N in masks.items()
    )


def _effect(variant: str, told: str, group: str, mask_N: NDArray[np.bool_], tables: Tables, places: Places) -> Effect:
    ours_SN, variant_SN = (_correct(tables[name], told)[:, mask_N] for name in (OURS, variant))
    of_row = tables[OURS][0].place_N[mask_N].tolist()
    name = f"{variant} - ours, {group}, told {told}"
    return Effect(
        variant=variant,
        told=told,
        group=group,
        accuracy=float(variant_SN.mean()),
        difference=mean_over_seeds(name, variant_SN - ours_SN, of_row, places),
    )


def _correct(tables: Sequence[ViewTable], told: str) -> NDArray[np.float64]:
    return np.stack([table.correct_VN[table.row(told)].astype(np.float64) for table in tables])


def _masks(table: ViewTable, group: str) -> dict[str, NDArray[np.bool_]]:
    kind, _, family = group.partition("/")
    if kind != "by_family" or not family:
        raise ConfigError("ablations are shown by family", field="group", value=group, remedy="by_family/NAME")
    masks = {ALL: table.mask(), family.replace("_", "-"): table.mask(family=family)}
    empty = [name for name, mask_N in masks.items() if not mask_N.any()]
    if empty:
        raise ConfigError("no question of this group was answered", field="group", value=empty[0])
    return masks
