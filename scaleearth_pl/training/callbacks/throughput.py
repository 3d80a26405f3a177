"""Questions and tokens per second, and what stood in the way: waiting for data, padding."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from scaleearth_pl.training.callbacks.board import board, check_every, report_of, sum_over_ranks
from scaleearth_pl.training.report import StepReport


@dataclass
class _Window:
    """What this rank did since the last point; seconds of the host's clock."""

    questions: int = 0
    tokens: int = 0
    padded: int = 0
    steps: int = 0
    wait_seconds: float = 0.0
    seconds: float = 0.0


class Throughput(Callback):
    """Measures the rate of training over windows of `every_n_steps`, over all ranks.

    A step lasts from the end of the one before to its own end; the part before `on_train_batch_start` is waiting: for
    the loader, the copy to the device, and whatever other callbacks do there (saving a checkpoint). Validation is not
    counted: the clock restarts after it. The host's clock is read, never the device's: on a GPU the host runs ahead, so
    a single step means nothing, but a window that ends in a synchronisation (every logging interval has one) is right,
    and `wait_share` is an upper bound of the device's idling for data.

    Tags (x = optimizer steps done):
        throughput/qas_per_second: questions of all ranks.
        throughput/tokens_per_second: real tokens of all ranks, padding not counted.
        throughput/step_seconds: seconds per step, mean over ranks.
        throughput/wait_share: waiting over step time, mean over ranks.
        throughput/padding_share: padding over all tokens computed.

    Attributes:
        qas_per_second: questions of all ranks over the training time of the run so far; `run.json` has its own, over
            wall time, validation included.

    Args:
        every_n_steps: steps of a window; costs one collective and one synchronisation.
    """

    def __init__(self, *, every_n_steps: int = 10) -> None:
        self.every_n_steps = check_every(every_n_steps)
        self._window = _Window()
        self._last_end: float | None = None
        self._wait = 0.0
        self._questions = self._seconds = 0.0

    @property
    def qas_per_second(self) -> float:
        """Questions of all ranks over training time, up to the last point; NaN before the first."""
        return self._questions / self._seconds if self._seconds else float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._restart()

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """The batch is here: the wait is over."""
        self._arrived()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts one step."""
        self._count(trainer, pl_module, report_of(outputs, StepReport))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last, partly filled window."""
        self._write(trainer, pl_module, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leaves validation out."""
        self._restart()

    def _restart(self) -> None:
        self._last_end = time.perf_counter()

    def _arrived(self) -> None:
        assert self._last_end is not None
        self._wait = time.perf_counter() - self._last_end

    def _count(self, trainer: Trainer, pl_module: LightningModule, report: StepReport) -> None:
        assert self._last_end is not None
        window = self._window
        window.questions += report.n_questions
        window.tokens += report.n_tokens
        window.padded += report.n_padded
        window.steps += 1
        if report.step % self.every_n_steps == 0:
            report.loss.item()
        now = time.perf_counter()
        window.wait_seconds += self._wait
        window.seconds += now - self._last_end
        self._last_end = now
        if report.step % self.every_n_steps == 0:
            self._write(trainer, pl_module, report.step)

    def _write(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        done, self._window = self._window, _Window()
        if not done.steps:
            return
        local = [done.questions, done.tokens, done.padded, done.steps, done.wait_seconds, done.seconds, 1]
        sums = sum_over_ranks(trainer, torch.tensor(local, dtype=torch.float64, device=pl_module.device))
        questions, tokens, padded, steps, wait, seconds, ranks = sums.tolist()
        self._questions += questions
        self._seconds += seconds / ranks
        writer = board(trainer)
        if writer is None:
            return
        values = {
            "qas_per_second": questions / (seconds / ranks),
            "tokens_per_second": tokens / (seconds / ranks),
            "step_seconds": seconds / steps,
            "wait_share": wait / seconds,
            "padding_share": padded / max(tokens + padded, 1.0),
        }
        for name, value in values.items():
            writer.add_scalar(f"throughput/{name}", value, step)
