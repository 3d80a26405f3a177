"""TensorBoard's "Custom scalars" page, arranged as the paper's Figures 7, 8 and 9."""

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.training.callbacks.board import board

Layout = dict[str, dict[str, list[object]]]
"""Category -> chart -> ["Multiline", [regular expressions of tags]]."""


def _chart(*tags: str) -> list[object]:
    """One chart; TensorBoard matches each expression from a tag's start, so it is closed at the end."""
    return ["Multiline", [f"{tag}$" for tag in tags]]


_COMMON: Layout = {
    "Answers": {
        "accuracy": _chart("(val|test)/accuracy/overall"),
        "by tier": _chart("(val|test)/accuracy/by_tier/.+"),
        "by family": _chart("(val|test)/accuracy/by_family/.+"),
        "by type": _chart("(val|test)/accuracy/by_type/.+"),
        "VLM cross-entropy, held out": _chart("(val|test)/loss_vlm"),
    },
    "Throughput": {
        "questions per second": _chart("throughput/qas_per_second"),
        "tokens per second": _chart("throughput/tokens_per_second"),
        "seconds per step": _chart("throughput/step_seconds"),
        "share waiting for data, share of padding": _chart("throughput/wait_share", "throughput/padding_share"),
    },
}

STAGE1: Layout = {
    "Figure 7: stage 1, full-parameter SFT": {
        "(a) SFT loss, raw and EMA": _chart("train/loss_vlm", "train/ema/loss_vlm"),
        "(b) gradient norm, log10": _chart("train/log10_grad_norm/.+"),
        "(c) learning rate": _chart("train/lr/.+"),
    },
} | _COMMON

STAGE2: Layout = {
    "Figure 8: stage 2, CS-HLoRA and SSE-U": {
        "(a) total objective": _chart("train/loss_total", "train/ema/loss_total"),
        "(b) VLM cross-entropy": _chart("train/loss_vlm", "train/ema/loss_vlm"),
        "(c) GSD negative log-likelihood": _chart("train/gsd_nll", "train/ema/gsd_nll"),
        **{f"(d) learned gates, {tier}": _chart(f"gates/{tier}/.+") for tier in RANK_TIERS},
        "(e) calibration ratio": _chart("train/calibration_ratio", "train/calibration_reference"),
        "(f) effective update magnitude, mean": _chart("update/mean"),
        "(f) effective update magnitude, per module": _chart("update/(?!mean).+"),
    },
    "Figure 9: stage 2, optimisation": {
        "learning rate": _chart("train/lr/.+"),
        "gradient norm, log10": _chart("train/log10_grad_norm/.+"),
        "lambda_eff": _chart("train/lambda_eff"),
    },
    "SSE-U, held out": {
        "error in decades": _chart("(val|test)/sse_u/mae_decades.*"),
        "negative log-likelihood": _chart("(val|test)/sse_u/nll"),
        "calibration ratio": _chart("(val|test)/sse_u/calibration_ratio"),
        "coverage of the 90 % interval": _chart("(val|test)/sse_u/coverage90"),
        "rank correlation of sigma and error": _chart("(val|test)/sse_u/sigma_error_spearman"),
    },
} | _COMMON


class CustomScalarsLayout(Callback):
    """Writes the layout once, before the first step; it decides what is shown together, not what is logged.

    The gates of the three rank tiers get a chart each (their figure is under Images), and gradient norms are shown as
    log10, because a layout cannot ask for a logarithmic axis.

    Tags:
        custom_scalars__config__: the layout, as TensorBoard names it.

    Args:
        stage: whose figures: "stage1" is Figure 7, "stage2" Figures 8 and 9.
    """

    def __init__(self, *, stage: Literal["stage1", "stage2"]) -> None:
        self.layout = {"stage1": STAGE1, "stage2": STAGE2}[stage]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes the layout."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        writer = board(trainer)
        if writer is not None:
            writer.add_custom_scalars(self.layout)
