"""How far SSE-U's word can be trusted: scalars, reliability diagram and scatter after each validation and test."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from scaleearth_pl.core.curves import CALIBRATION_REFERENCE, coverage_curve, sigma_bins
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.figures import BLACK, BLUE, CUE_STYLES, GREY, gsd_axis, new_figure
from scaleearth_pl.core.metrics import GsdRecords, cue_tensor, sse_u_metrics
from scaleearth_pl.training.callbacks.board import add_figure, board
from scaleearth_pl.training.callbacks.eval_observer import EvalObserver, Stage
from scaleearth_pl.training.report import EvalReport

CUE_VALUES = {"scale cue": 1, "no scale cue": 0, "cue unknown": -1}


class SseUDiagrams(EvalObserver):
    """Measures SSE-U on all images of an evaluation whose GSD is trusted, over all ranks; nothing without SSE-U.

    Tags, with `val` or `test` as stage (x = optimizer steps done):
        <stage>/sse_u/mae_decades, mae_decades_cue, mae_decades_no_cue: mean |mu - s|, all and by scale cue.
        <stage>/sse_u/nll: mean negative log-likelihood, nats.
        <stage>/sse_u/calibration_ratio: E|mu - s| / mean sigma, 0.798 is calibrated.
        <stage>/sse_u/coverage90: share of GSDs inside the 90 % interval.
        <stage>/sse_u/sigma_error_spearman: rank correlation of sigma and |mu - s|.
        figures/<stage>/sse_u_reliability: coverage against confidence, and |mu - s| against sigma.
        figures/<stage>/sse_u_scatter: predicted against true GSD with one-sigma bars, by scale cue.

    Args:
        n_bins: sigma bins of the reliability diagram.
        max_points: images drawn in the scatter; more are thinned evenly. Scalars use all.
    """

    def __init__(self, *, n_bins: int = 10, max_points: int = 500) -> None:
        if n_bins < 2 or max_points < 1:
            raise ConfigError("too few to draw", field="n_bins, max_points", value=(n_bins, max_points))
        self.n_bins, self.max_points = n_bins, max_points
        self.metrics, self.records = sse_u_metrics(), GsdRecords()

    def _observe(self, trainer: Trainer, pl_module: LightningModule, report: EvalReport) -> None:  # noqa: ARG002
        if report.mu is None:
            return
        values: dict[str, Any] = {
            "mu": report.mu,
            "log_var": report.log_var,
            "log10_gsd": report.log10_gsd,
            "weight": report.nll_weight,
            "has_scale_cue": cue_tensor(report.trees, report.mu.device),
        }
        self.metrics.to(pl_module.device).update(**values)
        self.records.to(pl_module.device).update(**values)

    def _conclude(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self.metrics.to(pl_module.device)
        self.records.to(pl_module.device)
        records_N5, step = self.records.compute().cpu(), trainer.global_step
        scalars = self.metrics.compute() if records_N5.shape[0] else {}
        self.metrics.reset()
        self.records.reset()
        writer = board(trainer)
        if writer is None or not scalars:
            return
        for name, value in scalars.items():
            if torch.isfinite(value):
                writer.add_scalar(f"{stage}/sse_u/{name}", float(value), step)
        add_figure(writer, f"figures/{stage}/sse_u_reliability", reliability_figure(records_N5, self.n_bins), step)
        add_figure(writer, f"figures/{stage}/sse_u_scatter", scatter_figure(records_N5, self.max_points), step)


def reliability_figure(records_N5: Tensor, n_bins: int) -> Figure:
    """Left: does the p-interval hold a share p? Right: do larger sigmas mean larger errors? Columns of `GsdRecords`."""
    log10_gsd_N, mu_N, log_var_N, weight_N, _ = records_N5.unbind(1)
    sigma_N, error_N = torch.exp(0.5 * log_var_N), (mu_N - log10_gsd_N).abs()
    figure, (left, right) = new_figure(2)
    level_L = torch.linspace(0, 1, 41)
    left.plot([0, 1], [0, 1], ":", color=GREY, label="calibrated")
    left.plot(level_L, coverage_curve(error_N / sigma_N, weight_N, level_L), color=BLUE, label="SSE-U")
    left.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="confidence of the central interval", ylabel="share of GSDs inside it")
    left.set_title("Reliability (below the diagonal: too sure)", fontsize=10)
    mean_sigma_K, mean_error_K = sigma_bins(sigma_N, error_N, weight_N, n_bins)
    top = 1.1 * float(torch.cat([mean_sigma_K, mean_error_K]).max())
    right.plot([0, top], [0, CALIBRATION_REFERENCE * top], ":", color=GREY, label="calibrated, 0.798 sigma")
    right.plot(mean_sigma_K, mean_error_K, "o-", color=BLUE, label=f"{len(mean_sigma_K)} bins of sigma")
    right.set(xlim=(0, top), ylim=(0, top), xlabel="mean sigma (decades)", ylabel="mean |mu - s| (decades)")
    right.set_title(f"Sigma against error, {records_N5.shape[0]} images", fontsize=10)
    for ax in (left, right):
        ax.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def scatter_figure(records_N5: Tensor, max_points: int) -> Figure:
    """Predicted against true GSD in metres, bars of one sigma, by whether the image shows a scale cue."""
    every = -(-records_N5.shape[0] // max_points)
    log10_gsd_N, mu_N, log_var_N, _, cue_N = records_N5[::every].unbind(1)
    half_N = torch.exp(0.5 * log_var_N)
    figure, (ax,) = new_figure(panel_size=(4.8, 4.4))
    span = torch.cat([log10_gsd_N, mu_N])
    limits_m = (10 ** (float(span.min()) - 0.2), 10 ** (float(span.max()) + 0.2))
    ax.plot(limits_m, limits_m, ":", color=GREY, label="predicted = true")
    for name, value in CUE_VALUES.items():
        of = cue_N == value
        if of.any():
            ends = [10 ** (mu_N[of] + sign * half_N[of]) for sign in (-1, 1)]
            style = CUE_STYLES[name]
            ax.vlines(10 ** log10_gsd_N[of], *ends, color=style.colour, alpha=0.25, linewidth=0.8)
            label = f"{name} ({int(of.sum())})"
            ax.plot(10 ** log10_gsd_N[of], 10 ** mu_N[of], style.dash, color=style.colour, markersize=3.5, label=label)
    for which, label in (("x", "true GSD"), ("y", "predicted GSD")):
        gsd_axis(ax, which, label=label, limits_m=limits_m)
    ax.set_title("SSE-U: predicted GSD, bars are one sigma", fontsize=10, color=BLACK)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
