"""Losses, learning rates and gradient norms of every step: the curves of the paper's Figures 7, 8 (a-c) and 9."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from scaleearth_pl.core.curves import DebiasedEma
from scaleearth_pl.core.errors import ConfigError, NonFiniteError
from scaleearth_pl.training.callbacks.board import board, check_every, report_of, sum_over_ranks
from scaleearth_pl.training.callbacks.eval_observer import EvalObserver, Stage
from scaleearth_pl.training.report import EvalReport, StepReport

LOSSES = ("loss_total", "loss_vlm", "gsd_nll")


class Losses(EvalObserver):
    """Writes every step's losses, at the price of one host synchronisation per `every_n_steps`.

    Points wait on the device until the interval is full and cross in one copy, so the raw curve misses no step. The
    averages are part of the checkpoint: a resumed curve goes on where it stopped. No collective in training: the
    report's losses and norms are global already.

    Tags, training (x = optimizer steps done):
        train/loss_total, train/loss_vlm, train/gsd_nll: raw; the last in stage 2 only.
        train/ema/loss_total, train/ema/loss_vlm, train/ema/gsd_nll: debiased exponential averages of them.
        train/lambda_eff: stage 2 only.
        train/lr/<group>, train/grad_norm/<group>: per parameter group, norm before clipping.
        train/log10_grad_norm/<group>: the same on the logarithmic axis of Figures 7b and 9, which TensorBoard's custom
            layout cannot ask for; a norm of zero (A and thresholds while B = 0) has no logarithm and no point.
    Tags, evaluation:
        val/loss_vlm, test/loss_vlm: cross-entropy per supervised token, over all ranks.

    Args:
        every_n_steps: steps between two synchronisations.
        ema_decay: of the averages; 0.95 averages about the last 20 steps.
    """

    def __init__(self, *, every_n_steps: int = 10, ema_decay: float = 0.95) -> None:
        if not 0 <= ema_decay < 1:
            raise ConfigError("must lie in [0, 1)", field="ema_decay", value=ema_decay, remedy="0.95 is usual")
        self.every_n_steps = check_every(every_n_steps)
        self.ema = {name: DebiasedEma(ema_decay) for name in LOSSES}
        self._waiting: list[tuple[StepReport, dict[str, Tensor]]] = []
        self._eval_sums: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Takes one step in."""
        self._take(trainer, report_of(outputs, StepReport))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes what still waits."""
        self._flush(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Writes what still waits: a run that is resumed from here goes on with the next step."""
        self._flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Writes the steps that led to a NaN; after other failures the device may not answer."""
        if isinstance(exception, NonFiniteError):
            self._flush(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {name: ema.state_dict() for name, ema in self.ema.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the averages of the checkpoint."""
        for name, ema in self.ema.items():
            ema.load_state_dict(state_dict[name])

    def _take(self, trainer: Trainer, report: StepReport) -> None:
        self._waiting.append((report, self._point(report)))
        if report.step % self.every_n_steps == 0:
            self._flush(trainer)

    def _point(self, report: StepReport) -> dict[str, Tensor]:
        raw = {"loss_total": report.loss, "loss_vlm": report.vlm_loss}
        if report.nll is not None:
            raw["gsd_nll"] = report.nll
        values = {f"train/{name}": value for name, value in raw.items()}
        values |= {f"train/ema/{name}": self.ema[name].update(value) for name, value in raw.items()}
        return values | {f"train/grad_norm/{group}": norm for group, norm in report.grad_norm.items()}

    def _flush(self, trainer: Trainer) -> None:
        waiting, self._waiting = self._waiting, []
        writer = board(trainer)
        if writer is None or not waiting:
            return
        flat = torch.stack([value.float() for _, values in waiting for value in values.values()]).tolist()
        numbers = iter(flat)
        for report, values in waiting:
            for tag in values:
                _write(writer, tag, next(numbers), report.step)
            for group, lr in report.lr.items():
                writer.add_scalar(f"train/lr/{group}", lr, report.step)
            if report.nll is not None:
                writer.add_scalar("train/lambda_eff", report.lambda_eff, report.step)

    def _observe(self, trainer: Trainer, pl_module: LightningModule, report: EvalReport) -> None:  # noqa: ARG002
        sums = torch.stack([report.vlm_loss_sum.double(), report.n_supervised.double()])
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums.to(sums.device) + sums

    def _conclude(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        sums = torch.zeros(2, dtype=torch.float64) if self._eval_sums is None else self._eval_sums
        self._eval_sums = None
        loss_sum, n_supervised = sum_over_ranks(trainer, sums.to(pl_module.device)).tolist()
        writer = board(trainer)
        if writer is not None and n_supervised:
            writer.add_scalar(f"{stage}/loss_vlm", loss_sum / n_supervised, trainer.global_step)


def _write(writer: Any, tag: str, value: float, step: int) -> None:
    writer.add_scalar(tag, value, step)
    if tag.startswith("train/grad_norm/") and value > 0:
        writer.add_scalar(tag.replace("grad_norm", "log10_grad_norm"), math.log10(value), step)
