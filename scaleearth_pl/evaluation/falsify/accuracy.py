"""Accuracy of every variant beside the floors of the same questions, as rows and as a figure.

Points, not bars: a bar is read by its length, so its axis must begin at zero; a point is read by its place. The interval
is over places, of the mean over seeds, as in the verdicts; those of two variants may overlap where their difference,
which is paired, is sure. *Image only*, the fourth floor, is plain LoRA's own row.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from scaleearth_pl.core.figures import BLACK, BLUE, GREY, ORANGE, PURPLE, VERMILION, LineStyle, new_figure
from scaleearth_pl.evaluation.bootstrap import Interval, place_bootstrap
from scaleearth_pl.evaluation.falsify.plan import OURS
from scaleearth_pl.evaluation.floors import Floors
from scaleearth_pl.evaluation.groups import correctness, group_masks
from scaleearth_pl.evaluation.pairing import in_order, refuse_other_questions
from scaleearth_pl.evaluation.predictions import RunFolder

Runs = Mapping[str, Sequence[RunFolder]]
GROUPS = ("overall", "by_family/scale_specific", "by_family/discriminative", "by_family/identification")
FLOOR_STYLES = {
    "majority": LineStyle(colour=VERMILION, dash="-"),
    "question only": LineStyle(colour=PURPLE, dash="--"),
    "question + GSD": LineStyle(colour=ORANGE, dash="-."),
}
CAPTION = (
    "Accuracy by variant: mean of the seeds with its 95 % interval over places, small dots are seeds, lines are floors. "
    "The axes do not begin at zero. The verdict's differences are paired: they may be sure where intervals overlap."
)
READING = (
    "Floors answer the same questions unseen. Image only, the fourth floor, is plain LoRA: it is not told the GSD."
)


def accuracy_rows(runs: Runs, floors: Floors) -> list[list[str]]:
    """Head, a row a variant with a number a seed, a row a floor; in per cent, a dash for what was not measured."""
    rows = [["variant", *(_title(group) for group in GROUPS)]]
    rows += [
        [name, *(" / ".join(_percent(accuracy(run, group)) for run in of_seeds) for group in GROUPS)]
        for name, of_seeds in runs.items()
    ]
    for name, of_group in _by_name(floors).items():
        rows.append([f"floor: {name}", *(_percent(of_group.get(group)) for group in GROUPS)])
    return rows


def accuracy(run: RunFolder, group: str) -> float | None:
    """Share of right answers in a group of `group_masks`; None where it is empty."""
    mask = group_masks(run.predictions).get(group)
    return None if mask is None else float(correctness(run.predictions)[mask].mean())


def save_accuracy_figure(path: Path, runs: Runs, floors: Floors) -> None:
    """A panel a group; a variant is a point with its interval and a dot a seed, a floor a line across the panel."""
    figure, axes = new_figure(len(GROUPS), panel_size=(3.4, 4.2))
    found = {name: seed_means(of_seeds, runs[OURS][0]) for name, of_seeds in runs.items()}
    for ax, group in zip(axes, GROUPS, strict=True):
        for name, of_group in _by_name(floors).items():
            if group in of_group:
                style = FLOOR_STYLES[name]
                ax.axhline(100 * of_group[group], color=style.colour, linestyle=style.dash, label=f"floor: {name}")
        for x, (name, of_seeds) in enumerate(runs.items()):
            if group in found[name]:
                _point(ax, x, found[name][group], [accuracy(run, group) for run in of_seeds], ours=name == OURS)
        ax.set_xticks(range(len(runs)), list(runs), rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
        ax.set(title=_title(group), xlim=(-0.6, len(runs) - 0.4))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.grid(visible=False, axis="x")
        ax.margins(y=0.06)
    axes[0].set_ylabel("accuracy, %")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def seed_means(of_seeds: Sequence[RunFolder], reference: RunFolder) -> dict[str, Interval]:
    """Mean over seeds of every question of `reference`, by group, with intervals over places.

    Raises:
        ConfigError: a run answered other questions.
    """
    rows = reference.predictions
    for run in of_seeds:
        refuse_other_questions(rows, run.predictions, file=run.path, remedy="test all on the same corpus and split")
    keys = [row.key for row in rows]
    right_N = np.mean([correctness(in_order(run.predictions, keys)) for run in of_seeds], axis=0)
    return place_bootstrap(right_N, [row.place_id for row in rows], group_masks(rows))


def _point(ax: Any, x: float, mean: Interval, seeds: Sequence[float | None], *, ours: bool) -> None:
    colour, marker = (BLUE, "D") if ours else (BLACK, "o")
    # A percentile interval may miss its estimate in tiny samples; an error bar cannot be negative.
    reach = 100 * np.array([[mean.estimate - mean.low], [mean.high - mean.estimate]]).clip(min=0)
    label = f"{'ours' if ours else 'others'}: mean of seeds, 95 % over places"
    ax.errorbar(x, 100 * mean.estimate, reach, fmt=marker, color=colour, markersize=6, capsize=4, label=label)
    values = [100 * value for value in seeds if value is not None]
    ax.plot([x + 0.25] * len(values), values, "o", color=GREY, markersize=3, label="a seed")


def _by_name(floors: Floors) -> dict[str, dict[str, float]]:
    measured = zip(FLOOR_STYLES, (floors.majority, floors.question_only, floors.question_gsd), strict=True)
    return {name: of_group or {} for name, of_group in measured}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _title(group: str) -> str:
    return group.rpartition("/")[2]
