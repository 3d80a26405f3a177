"""Figure 11: what each rank dimension knows of each factor, tiers and factor groups parted by lines, and the null."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from scaleearth_pl.core.figures import BLUE, SEQUENTIAL, VERMILION, new_figure
from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.evaluation.protocols.probes import EXPECTED, ProbeResult
from scaleearth_pl.model.gate import rank_tier_slices


def save_probe_figure(path: Path, result: ProbeResult, *, title: str = "") -> None:
    """Heat map of rank dimensions (mean over modules) by factors, tier means, and block-diagonality in its null."""
    figure, (heat, means, null) = new_figure(3, panel_size=(5.0, 4.6))
    order = [f for group in EXPECTED for f, name in enumerate(result.factors) if name.startswith(f"{group}/")]
    names = [result.factors[f] for f in order]
    r2_rF = np.clip(result.r2_MrF, 0, None).mean(0)[:, order]
    picture = heat.imshow(r2_rF, aspect="auto", cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
    figure.colorbar(picture, ax=heat, label="partial R² given scale, mean over modules")
    slices = rank_tier_slices(r2_rF.shape[0])
    heat.set_yticks([(s.start + s.stop - 1) / 2 for s in slices.values()], RANK_TIERS)
    heat.set_xticks(range(len(names)), [name.partition("/")[2] for name in names], rotation=60, ha="right", fontsize=7)
    groups = [name.partition("/")[0] for name in names]
    for (i, a), (_, b) in pairwise(enumerate(groups)):
        if a != b:
            heat.axvline(i + 0.5, color="white", linewidth=1.5)
    for tier in list(slices.values())[1:]:
        heat.axhline(tier.start - 0.5, color="white", linewidth=1.5)
    heat.grid(visible=False)
    heat.set(xlabel="factor: texture | geometry | semantic", ylabel="rank dimension, by rank tier")
    present = [group for group in EXPECTED if group in groups]
    table = np.array([[result.matrix[tier][group] for group in present] for tier in RANK_TIERS])
    means.imshow(table / table.sum(0, keepdims=True).clip(min=1e-12), cmap=SEQUENTIAL, vmin=0, vmax=1)
    for (t, g), value in np.ndenumerate(table):
        means.annotate(f"{value:.3f}", (g, t), ha="center", va="center", color="white", fontweight="bold")
    means.set_xticks(range(len(present)), present)
    means.set_yticks(range(len(RANK_TIERS)), RANK_TIERS)
    means.set(xlabel="factor group", ylabel="rank tier", title="mean R² (colour: share of the column)")
    means.grid(visible=False)
    null.hist(result.null, bins=40, color=BLUE, alpha=0.6, label="permuted tier labels")
    null.axvline(result.block_diagonality, color=VERMILION, linewidth=2, label=f"observed, p = {result.p_value:.3f}")
    null.set(xlabel="block-diagonality (1/3: tiers mean nothing)", ylabel="permutations")
    null.legend(frameon=False)
    figure.suptitle(title or f"{result.n_images} images, {len(result.modules)} modules", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
