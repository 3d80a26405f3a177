"""A Rich progress bar in a terminal, plain lines in a log file."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from scaleearth_pl.training.callbacks.board import check_every, report_of
from scaleearth_pl.training.report import StepReport


class Progress(RichProgressBar):
    """Shows loss and questions per second; logs nothing.

    A bar redraws itself with escape codes, which make a log file of a batch system unreadable. Where standard output
    is not a terminal, the bar is disabled and one line is printed every `every_n_steps`:

        step 300/4500  loss 0.412  vlm 0.405  nll 0.07  118.2 QAs/s  0:02:31 done, 0:35:18 to go

    The loss is read, and the host waits for the device, only every `every_n_steps`; in between the bar moves and its
    numbers stand. Questions per second are this rank's times the number of ranks: the bar lives on rank zero, where a
    collective would hang (`Throughput` has the exact figure).

    Args:
        every_n_steps: steps between readings, and between lines.
        console: where lines go; its `is_terminal` chooses. Standard output by default.
    """

    def __init__(self, *, every_n_steps: int = 20, console: Console | None = None) -> None:
        super().__init__(leave=True)
        self.every_n_steps = check_every(every_n_steps)
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.plain = not self.console.is_terminal
        self.shown: dict[str, int | str | float | dict[str, float]] = {}
        self._started = self._read_at = 0.0
        self._first_step = self._n_questions = 0
        if self.plain:
            self.disable()

    def get_metrics(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The numbers as last read; Lightning's own would synchronise at every step."""
        return self.shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = self._read_at = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the step's numbers every n steps, then moves the bar."""
        self._read(trainer, report_of(outputs, StepReport))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what validation found."""
        super().on_validation_end(trainer, pl_module)
        self._conclude(trainer, "validation")
        self._read_at, self._n_questions = time.perf_counter(), 0

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what the test found."""
        super().on_test_end(trainer, pl_module)
        self._conclude(trainer, "test")

    def _read(self, trainer: Trainer, report: StepReport) -> None:
        self._n_questions += report.n_questions
        if not trainer.is_global_zero or (report.step % self.every_n_steps and report.step != self._first_step + 1):
            return
        self.shown = {"loss": float(report.loss), "vlm": float(report.vlm_loss)}
        if report.nll is not None:
            self.shown["nll"] = float(report.nll)
        now = time.perf_counter()
        rate = self._n_questions * trainer.world_size / max(now - self._read_at, 1e-9)
        self.shown["QAs/s"] = round(rate, 1)
        self._read_at, self._n_questions = now, 0
        if self.plain:
            self._line(trainer, report.step, now)

    def _line(self, trainer: Trainer, step: int, now: float) -> None:
        total = trainer.estimated_stepping_batches
        rate = self.shown["QAs/s"]
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.shown.items() if name != "QAs/s")
        seconds = now - self._started
        text = f"step {step}/{total}  {numbers}  {rate} QAs/s  {_clock(seconds)} done"
        if isinstance(total, int) and step > self._first_step:
            text += f", {_clock(seconds / (step - self._first_step) * (total - step))} to go"
        self.console.print(text, markup=False)

    def _conclude(self, trainer: Trainer, name: str) -> None:
        if self.plain and trainer.is_global_zero and not trainer.sanity_checking:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("/overall")}
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in found.items())
            self.console.print(f"{name} at step {trainer.global_step}  {numbers}".rstrip(), markup=False)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0.0))))
