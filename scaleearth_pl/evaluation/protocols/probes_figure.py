"""Figure 11: what each rank dimension knows of each factor, tiers and factor groups parted by lines, and the null."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.figures import BLUE, SEQUENTIAL, VERMILION, new_figure
from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.evaluation.protocols.probes import EXPECTED, ProbeResult
from scaleearth_pl.model.gate import rank_tier_slices


def save_probe_figure(path: Path, result: ProbeResult, *, title: str = "") -> None:
    """Heat map of rank dimensions (mean over modules) by factors, tier means, and block-diagonality in its null."""
    figure, (heat, means, null) = new_figure(3, panel_size=(5.0, 4.6))
    picture = _draw_ranks(heat, result)
    figure.colorbar(picture, ax=heat, label="partial R² given scale, mean over modules")
    _draw_means(means, result)
    _draw_null(null, result)
    figure.suptitle(title or f"{result.n_images} images, {len(result.modules)} modules", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_ranks(ax: Any, result: ProbeResult) -> Any:
    """Rank dimensions by factors; returns the picture, for its colour bar."""
    order = [f for group in EXPECTED for f, name in enumerate(result.factors) if name.startswith(f"{group}/")]
    groups, names = zip(*(result.factors[f].split("/", 1) for f in order), strict=True)
    r2_rF = np.clip(result.r2_MrF, 0, None).mean(0)[:, order]
    picture = ax.imshow(r2_rF, aspect="auto", cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
    slices = rank_tier_slices(r2_rF.shape[0])
    ax.set_yticks([(s.start + s.stop - 1) / 2 for s in slices.values()], RANK_TIERS)
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    for (i, a), (_, b) in pairwise(enumerate(groups)):
        if a != b:
            ax.axvline(i + 0.5, color="white", linewidth=1.5)
    for tier in list(slices.values())[1:]:
        ax.axhline(tier.start - 0.5, color="white", linewidth=1.5)
    ax.grid(visible=False)
    ax.set(xlabel="factor: texture | geometry | semantic", ylabel="rank dimension, by rank tier")
    return picture


def _draw_means(ax: Any, result: ProbeResult) -> None:
    """Rank tiers by groups of factors."""
    present = [group for group in EXPECTED if any(name.startswith(f"{group}/") for name in result.factors)]
    table = np.array([[result.matrix[tier][group] for group in present] for tier in RANK_TIERS])
    ax.imshow(table / table.sum(0, keepdims=True).clip(min=1e-12), cmap=SEQUENTIAL, vmin=0, vmax=1)
    for (t, g), value in np.ndenumerate(table):
        ax.annotate(f"{value:.3f}", (g, t), ha="center", va="center", color="white", fontweight="bold")
    ax.set_xticks(range(len(present)), present)
    ax.set_yticks(range(len(RANK_TIERS)), RANK_TIERS)
    ax.set(xlabel="factor group", ylabel="rank tier", title="mean R² (colour: share of the column)")
    ax.grid(visible=False)


def _draw_null(ax: Any, result: ProbeResult) -> None:
    """Where the block-diagonality lies among those of permuted tier labels; room above the bars for the legend."""
    ax.hist(result.null, bins=40, color=BLUE, alpha=0.6, label="permuted tier labels")
    ax.set_ylim(top=1.25 * ax.get_ylim()[1])
    ax.axvline(result.block_diagonality, color=VERMILION, linewidth=2, label=f"observed, p = {result.p_value:.3f}")
    ax.set(xlabel="block-diagonality (1/3: tiers mean nothing)", ylabel="permutations")
    ax.legend(frameon=False)
