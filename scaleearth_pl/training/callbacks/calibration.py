"""Is SSE-U as unsure as it is wrong, while it trains? Figure 8 (e) of the paper."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scaleearth_pl.core.curves import CALIBRATION_REFERENCE
from scaleearth_pl.training.callbacks.board import board, check_every, report_of, sum_over_ranks
from scaleearth_pl.training.report import StepReport

KEY = "calibration_window"
"""Where a checkpoint keeps the window."""


class Calibration(Callback):
    """Follows E|mu - s| / mean sigma over a sliding window of steps and over all ranks.

    One step has too few images to judge a spread by, the whole run too many different heads: a window is both. The
    ratio is of sums, so every image has the same say. Images without a trusted GSD do not count; before the first such
    image there is no point. Sums stay on the device; every `every_n_steps` costs one collective and one
    synchronisation. The window is part of the checkpoint, summed over ranks: a resumed curve goes on where it stopped, on
    any number of ranks.

    Tags (x = optimizer steps done):
        train/calibration_ratio: above the reference SSE-U is too sure of itself, below it too modest.
        train/calibration_reference: sqrt(2/pi) = 0.798, the ratio of a calibrated Gaussian.

    Args:
        window_steps: steps that the window holds.
        every_n_steps: steps between points.
    """

    def __init__(self, *, window_steps: int = 50, every_n_steps: int = 10) -> None:
        self.window_steps = check_every(window_steps, field="window_steps")
        self.every_n_steps = check_every(every_n_steps)
        self._window: deque[Tensor] = deque(maxlen=window_steps)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Takes one step in."""
        self._observe(trainer, report_of(outputs, StepReport))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Keeps the window of all ranks; a collective, as saving is."""
        if self._window:
            checkpoint[KEY] = sum_over_ranks(trainer, torch.stack(list(self._window))).tolist()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Goes on with an equal part of the window on each rank."""
        sums_W2 = torch.tensor(checkpoint.get(KEY, []), dtype=torch.float64, device=trainer.strategy.root_device)
        self._window.extend(sums_W2 / trainer.world_size)

    def _observe(self, trainer: Trainer, report: StepReport) -> None:
        if report.mu is None:
            return
        self._window.append(_sums(report))
        if report.step % self.every_n_steps == 0:
            error, sigma = sum_over_ranks(trainer, torch.stack(list(self._window)).sum(0)).tolist()
            writer = board(trainer)
            if writer is not None and sigma > 0:
                writer.add_scalar("train/calibration_ratio", error / sigma, report.step)
                writer.add_scalar("train/calibration_reference", CALIBRATION_REFERENCE, report.step)


def _sums(report: StepReport) -> Tensor:
    """[sum of weight x |mu - s|, sum of weight x sigma] over this rank's images whose GSD is trusted."""
    assert report.mu is not None
    assert report.log_var is not None
    assert report.log10_gsd is not None
    assert report.nll_weight is not None
    known = report.nll_weight > 0
    error = torch.where(known, report.nll_weight * (report.mu - report.log10_gsd).abs(), 0.0)
    sigma = report.nll_weight * torch.exp(0.5 * report.log_var)
    return torch.stack([error.sum(), sigma.sum()]).double()
