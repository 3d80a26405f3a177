"""Figure 6 as bars: what each variant loses or gains against ours, zero marked, one panel for each thing that is told.

The two groups of questions differ in colour (blue and orange, which all eyes part) and in hatching, for grey prints.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.figures import BLACK, BLUE, GREY, ORANGE, new_figure
from scaleearth_pl.evaluation.falsify.ablation_effects import Effect

_STYLES = ((BLUE, ""), (ORANGE, "///"))
_THICK = 0.38


def save_ablation_figure(
    path: Path, effects: Sequence[Effect], *, labels: Mapping[str, str], told: Mapping[str, str]
) -> None:
    """Draws a PNG: rows are the variants of `labels` in their order, from the top.

    Args:
        path: of the file.
        effects: all of them; those of variants without a label are passed over.
        labels: what to call each variant.
        told: titles of the panels, by what the models were told.
    """
    figure, axes = new_figure(len(told), panel_size=(4.6, 1.5 + 0.42 * len(labels)))
    groups = list(dict.fromkeys(effect.group for effect in effects))
    for ax, (view, title) in zip(axes, told.items(), strict=True):
        for i, group in enumerate(groups):
            found = {e.variant: e for e in effects if (e.told, e.group) == (view, group)}
            _bars(ax, found, list(labels), group, i)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_yticks(range(len(labels)), list(labels.values()) if ax is axes[0] else [""] * len(labels))
        ax.set(title=title, xlabel="variant minus ours, percentage points", ylim=(len(labels) - 0.5, -0.5))
    _same_limits(axes)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bars(ax: Any, found: Mapping[str, Effect], variants: Sequence[str], group: str, number: int) -> None:
    shown = [(y, found[name].difference) for y, name in enumerate(variants) if name in found]
    middle = np.array([100 * d.estimate for _, d in shown])
    ends = 100 * np.array([d.interval(0.05) for _, d in shown]).reshape(-1, 2).T
    colour, hatch = _STYLES[number % len(_STYLES)]
    ax.barh(
        np.array([y for y, _ in shown]) + (number - 0.5) * _THICK,
        middle,
        height=0.95 * _THICK,
        # A percentile interval may miss its estimate in tiny samples; an error bar cannot be negative.
        xerr=np.stack([middle - ends[0], ends[1] - middle]).clip(min=0),
        color=colour,
        hatch=hatch,
        edgecolor="white",
        error_kw={"elinewidth": 1.0, "ecolor": BLACK, "capsize": 2},
        label=f"{group} (95 % over places)",
    )
    for y, name in enumerate(variants):
        if name not in found and number == 0:
            ax.text(0, y, " has no SSE-U", va="center", color=GREY, fontsize=8)


def _same_limits(axes: Sequence[Any]) -> None:
    limits = np.array([ax.get_xlim() for ax in axes])
    for ax in axes:
        ax.set_xlim(limits[:, 0].min(), limits[:, 1].max())
