"""What all callbacks share: reading a step's report, finding the TensorBoard writer, adding up over ranks.

The rule of every callback here: a hook is one line, the work is in one private method; collectives run on *all* ranks
at steps that all ranks agree on (the report's), only writing is rank zero's; nothing private of Lightning is touched
and nothing of the run is changed.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.figures import to_rgb
from scaleearth_pl.training.report import EvalReport, StepReport

Report = TypeVar("Report", StepReport, EvalReport)


@runtime_checkable
class GatedModel(Protocol):
    """What a LightningModule's `model` offers to be looked at in stage 2."""

    @property
    def rank(self) -> int:
        """LoRA rank r; 0 without adapters."""

    def gate_values(self, log10_gsd_S: Float[Tensor, " S"]) -> Float[Tensor, "M r S"]:
        """h_k(s) of every adapted module."""

    def update_magnitudes(self) -> dict[str, float]:
        """(a/r) sqrt(tr(B^T B A A^T)) by module name."""


def report_of(outputs: Any, kind: type[Report]) -> Report:
    """The report that a step returned; raises ConfigError if the module returned something else."""
    report = outputs.get("report") if isinstance(outputs, Mapping) else None
    if not isinstance(report, kind):
        raise ConfigError(
            "a step must return its report to be observed",
            field="outputs['report']",
            value=type(report).__name__,
            remedy=f"return {{'report': {kind.__name__}(...)}} from the step, or leave this callback out",
        )
    return report


def gated_model(pl_module: LightningModule, callback: object) -> GatedModel:
    """The module's `model`; raises ConfigError where there are no adapters to look at (stage 1)."""
    model = getattr(pl_module, "model", None)
    if not isinstance(model, GatedModel) or model.rank == 0:
        raise ConfigError(
            f"{type(callback).__name__} looks at gated adapters, and this model has none",
            field="trainer.callbacks",
            value=type(model).__name__,
            remedy="leave it out of stage 1, or give the model adapters",
        )
    return model


def board(trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard's writer on rank zero; None on other ranks and in runs that keep no TensorBoard log."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer: SummaryWriter = logger.experiment
            return writer
    return None


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Writes a figure as an image and frees it; SummaryWriter.add_figure would go through pyplot's global state."""
    writer.add_image(tag, to_rgb(figure), step, dataformats="HWC")


def sum_over_ranks(trainer: Trainer, sums: Tensor) -> Tensor:
    """Elementwise sum over ranks; a collective, so every rank must call it at the same step."""
    total = trainer.strategy.reduce(sums, reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return total


def check_every(every_n_steps: int, *, field: str = "every_n_steps") -> int:
    """Returns a logging interval; raises ConfigError unless it is at least 1."""
    if every_n_steps < 1:
        raise ConfigError("must be at least 1", field=field, value=every_n_steps, remedy="10 is usual")
    return every_n_steps
