"""The learned gates h_k(s) by rank tier: Figure 8 (d) of the paper, while they learn."""

from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from scaleearth_pl.core.figures import GREY, RANK_TIER_STYLES, gsd_axis, new_figure
from scaleearth_pl.core.gsd import RANK_TIERS, TierBoundaries, rank_tier_sizes
from scaleearth_pl.training.callbacks.board import add_figure, board, check_every, gated_model, report_of
from scaleearth_pl.training.report import StepReport

GATE_GSDS_M = (0.1, 1.0, 10.0, 30.0)
"""GSDs at which the mean gate of each rank tier is logged and, in `gates.json`, recorded."""

LIMITS_M = (0.01, 1000.0)
N_POINTS = 101


class GateCurves(Callback):
    """Draws h_k(s) over log GSD: mean and 10-90 % band over modules and rank dimensions of each rank tier.

    The curves are at exact scale (sigma = 0). Dotted lines are the gates at the start of training, kept in the
    checkpoint, so that what was learned is the distance between the two. Only rank zero looks: thresholds are equal on
    every rank.

    Tags (x = optimizer steps done, 0 before the first):
        gates/<rank tier>/<gsd>m: mean gate, rank tiers object, structure, semantic; GSD 0.1, 1, 10, 30.
        figures/gate_curves: the figure.

    Args:
        every_n_steps: steps between scalars.
        figure_every_n_steps: steps between figures; one is also drawn at the start and at the end.
        boundaries: image tiers, drawn as thin lines.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 20,
        figure_every_n_steps: int = 200,
        boundaries: TierBoundaries | None = None,
    ) -> None:
        self.every_n_steps = check_every(every_n_steps)
        self.figure_every_n_steps = check_every(figure_every_n_steps, field="figure_every_n_steps")
        self.boundaries = boundaries or TierBoundaries()
        self._start_mean: dict[str, list[float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the gates before the first step."""
        self._look(trainer, pl_module, trainer.global_step, figure=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Looks at the gates every n steps."""
        step = report_of(outputs, StepReport).step
        if step % self.every_n_steps == 0 or step % self.figure_every_n_steps == 0:
            self._look(trainer, pl_module, step, figure=step % self.figure_every_n_steps == 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the gates as learned."""
        self._look(trainer, pl_module, trainer.global_step, figure=True)

    def state_dict(self) -> dict[str, Any]:
        """The gates at the start."""
        return {"start_mean": self._start_mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the start of the run that is resumed."""
        self._start_mean = state_dict["start_mean"]

    def _look(self, trainer: Trainer, pl_module: LightningModule, step: int, *, figure: bool) -> None:
        model = gated_model(pl_module, self)
        writer = board(trainer)
        if writer is None:
            return
        scales = torch.tensor(GATE_GSDS_M, device=pl_module.device).log10()
        for tier, means in tier_means(model.gate_values(scales)).items():
            for gsd_m, mean in zip(GATE_GSDS_M, means, strict=True):
                writer.add_scalar(f"gates/{tier}/{gsd_m:g}m", mean, step)
        if figure:
            grid_S = torch.logspace(-2, 3, N_POINTS, device=pl_module.device)
            gates_MrS = model.gate_values(grid_S.log10()).float().cpu()
            self._start_mean = self._start_mean or tier_means(gates_MrS)
            add_figure(writer, "figures/gate_curves", self._figure(grid_S.cpu(), gates_MrS, step), step)

    def _figure(self, gsd_m_S: Tensor, gates_MrS: Tensor, step: int) -> Figure:
        figure, (ax,) = new_figure(panel_size=(5.6, 3.8))
        means = tier_means(gates_MrS)
        for tier, gates_MkS in split_rank_tiers(gates_MrS).items():
            style, flat_NS = RANK_TIER_STYLES[tier], gates_MkS.flatten(0, 1)
            low_S, high_S = torch.quantile(flat_NS, torch.tensor([0.1, 0.9]), dim=0)
            ax.fill_between(gsd_m_S, low_S, high_S, color=style.colour, alpha=0.18, linewidth=0)
            ax.plot(gsd_m_S, means[tier], style.dash, color=style.colour, label=f"{tier} ({gates_MkS.shape[1]} ranks)")
            ax.plot(gsd_m_S, self._start_mean[tier], ":", color=style.colour, linewidth=1)
        edges_m = (self.boundaries.high_below_m, self.boundaries.mid_below_m)
        for boundary_m in edges_m:
            ax.axvline(boundary_m, color=GREY, linewidth=0.7)
        ax.plot([], [], ":", color=GREY, label="at the start")
        ax.plot([], [], "-", color=GREY, linewidth=0.7, label="image tiers, {:g} and {:g} m".format(*edges_m))
        gsd_axis(ax, "x", label="GSD", limits_m=LIMITS_M)
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("gate h(s), mean and 10-90 % band")
        ax.set_title(f"Learned gates after {step} steps", fontsize=10)
        ax.legend(fontsize=8, frameon=False, loc="lower left")
        return figure


def split_rank_tiers(gates_MrS: Float[Tensor, "M r S"]) -> dict[str, Tensor]:
    """Gates of each rank tier, [M, ranks of the tier, S], finest tier first."""
    parts = gates_MrS.detach().split(rank_tier_sizes(gates_MrS.shape[1]), dim=1)
    return dict(zip(RANK_TIERS, parts, strict=True))


def tier_means(gates_MrS: Float[Tensor, "M r S"]) -> dict[str, list[float]]:
    """Mean gate of each rank tier at every S, over all modules and all ranks of the tier."""
    return {tier: gates_MkS.mean(dim=(0, 1)).tolist() for tier, gates_MkS in split_rank_tiers(gates_MrS).items()}
