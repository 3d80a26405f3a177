"""What looks at validation and test alike: each batch's report, and the whole of them once."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from scaleearth_pl.training.callbacks.board import report_of
from scaleearth_pl.training.report import EvalReport

Stage = Literal["val", "test"]


class EvalObserver(Callback):
    """Joins the hooks of validation and test into two methods; the sanity check before training calls neither."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Takes one batch in."""
        if not trainer.sanity_checking:
            self._observe(trainer, pl_module, report_of(outputs, EvalReport))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Takes one batch in."""
        self._observe(trainer, pl_module, report_of(outputs, EvalReport))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells what the batches come to."""
        if not trainer.sanity_checking:
            self._conclude(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells what the batches come to."""
        self._conclude(trainer, pl_module, "test")

    def _observe(self, trainer: Trainer, pl_module: LightningModule, report: EvalReport) -> None:
        """Called after every batch, on every rank."""

    def _conclude(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Called after the last batch, on every rank."""
