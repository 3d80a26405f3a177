"""The referee's protocols: what is lost when the GSD is predicted, noisy, or was predicted in training already.

    1. oracle against predicted: policy metadata against predicted and fused, the same questions, paired.
    2. noise of 0 to 1 decade on the metadata, told to the gate (through sigma) and not told.
    3. trained on oracle or on predicted GSDs, evaluated on predicted: two rows of `scaleearth ablations`.
    4. SSE-U itself: `sse_u_report` of this package's sse_u.py, by tier and by scale cue.

The rest is computed from one `ViewTable` per subject: 1 + 2 + 2 x levels LLM passes. Differences are paired over
questions and resample places. Where an image shows no cue to its scale only metadata can answer, so every number is also
given apart by cue: hypothesis H7 speaks of images with cues.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.bootstrap import interval, place_means
from scaleearth_pl.evaluation.evaluator.table import Bools, ViewTable
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.sse_u import sse_u_report

NOISE_DECADES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
ORACLE = "metadata"


def referee_views(
    *, levels_decades: Sequence[float] = NOISE_DECADES, told: bool = True, seed: int = 0
) -> tuple[View, ...]:
    """Views of protocols 1 and 2: oracle, predicted and fused, then noise by level, untold and told."""
    views = [View(policy="metadata"), View(policy="predicted"), View(policy="fused")]
    for level in (x for x in levels_decades if x > 0):
        views.append(View(policy="metadata", noise_decades=level, seed=seed))
        if told:
            views.append(View(policy="metadata", noise_decades=level, tell_noise=True, seed=seed))
    return tuple(views)


def referee_report(table: ViewTable, *, n_resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything the table says, by group ("all", "cue", "no_cue", "high", ..., "scale_specific", ...)."""
    groups = referee_groups(table)
    return {
        "subject": table.subject,
        "groups": {
            name: {
                "questions": int(keep.sum()),
                "views": {view.name: versus_oracle(table, view.name, keep, n_resamples, seed) for view in table.views},
            }
            for name, keep in groups.items()
        },
        "sse_u": sse_u_report(table.readings),
    }


def referee_groups(table: ViewTable) -> dict[str, Bools]:
    """Masks over questions, empty ones left out."""
    masks = {
        "all": table.mask(),
        "cue": table.mask(cue=True),
        "no_cue": table.mask(cue=False),
        **{str(tier): table.mask(tier=str(tier)) for tier in np.unique(table.tier_N)},
        **{str(family): table.mask(family=str(family)) for family in np.unique(table.family_N)},
    }
    return {name: keep for name, keep in masks.items() if keep.any()}


def versus_oracle(table: ViewTable, view: str, keep_N: Bools, n_resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Accuracy of a view and its paired difference to the oracle's, both with 95 % intervals over places."""
    if ORACLE not in [v.name for v in table.views]:
        raise ConfigError("the table has no oracle view", field="views", value=ORACLE, remedy="see referee_views")
    pair_2N = table.correct_VN[[table.row(view), table.row(ORACLE)]][:, keep_N]
    mean_2, resampled_R2 = place_means(pair_2N, table.place_N[keep_N], n_resamples=n_resamples, seed=seed)
    return {
        "estimate": float(mean_2[0]),
        "ci95": list(interval(resampled_R2[:, 0])),
        "minus_oracle": {
            "estimate": float(mean_2[0] - mean_2[1]),
            "ci95": list(interval(resampled_R2[:, 0] - resampled_R2[:, 1])),
        },
        "answer_nll": float(table.nll_VN[table.row(view), keep_N].mean()),
    }
