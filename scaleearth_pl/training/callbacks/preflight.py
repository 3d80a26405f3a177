"""Runs the preflight before step 0 and prints the settings that are in effect, not those that were asked for."""

import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table

from scaleearth_pl.core.batch import StepBatch
from scaleearth_pl.core.console import console
from scaleearth_pl.core.errors import DiskSpaceError, PreflightError, ScaleEarthError
from scaleearth_pl.data.agreement import raise_together
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.split import Kind
from scaleearth_pl.model.backbone import assert_quantisation
from scaleearth_pl.training import preflight
from scaleearth_pl.training.base import TreeTraining
from scaleearth_pl.training.callbacks.checkpoint import Checkpoints, checkpoint_folder
from scaleearth_pl.training.checkpoint_io import checkpoints_by_step


class Preflight(Callback):
    """Stops with the remedy where a run could not succeed.

    Args:
        min_free_gb: room that must be left where the run is written, at least; checkpoints and result may need more.
        gradients: also take gradients on the first micro-batch, in the trainer's precision (one forward and backward in
            stage 1, two in stage 2, three with SSE-U); off under FSDP2, where gradients outside the wrapped forward are
            not defined.
    """

    def __init__(self, *, min_free_gb: float = 0.2, gradients: bool = True) -> None:
        self.min_free_gb, self.gradients = min_free_gb, gradients

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All checks, on every rank; the table on rank 0."""
        if not isinstance(pl_module, TreeTraining):
            raise PreflightError("preflight knows only the stages of this package", value=type(pl_module).__name__)
        started = time.perf_counter()
        facts: dict[str, str] = {}
        problem: ScaleEarthError | None = None
        try:
            self._check_disk(Path(trainer.default_root_dir), bytes_to_come(trainer, pl_module))
            facts = self._check(pl_module)
        except ScaleEarthError as error:
            problem = error
        raise_together(trainer, problem, elsewhere="another rank failed its preflight")
        facts["preflight seconds"] = f"{time.perf_counter() - started:.1f}"
        print_facts(facts)

    def _check_disk(self, folder: Path, n_bytes: int = 0) -> None:
        needed = max(self.min_free_gb * 1e9, n_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskSpaceError(
                "not enough room for checkpoints",
                file=folder,
                value=f"{free / 1e9:.2f} GB free",
                remedy=f"free {needed / 1e9:.1f} GB or set runs_dir elsewhere",
            )

    def _check(self, module: TreeTraining) -> dict[str, str]:
        model, datamodule = module.model, module.datamodule
        step: StepBatch = datamodule.step_batch(0)
        micro = next((m for m in step.micro if not m.is_filler), step.micro[0]).to(module.device)
        for kind in evaluated(module.trainer, datamodule):
            preflight.check_evaluated_scales(model, datamodule.split_plan(kind).items, datamodule.index, kind)
        supervised = preflight.check_tokens(model, micro) if not micro.is_filler else 0
        trained = preflight.check_base_frozen(model, module.named_groups().values())
        quantised = assert_quantisation(model.backbone)
        if self.gradients and module.device_mesh is None and not micro.is_filler:
            with torch.enable_grad(), module.trainer.precision_plugin.forward_context():
                _check_gradients(model, micro)
        return self._facts(module, step, micro.input_ids_T.numel(), supervised, trained, quantised)

    def _facts(
        self, module: TreeTraining, step: StepBatch, tokens: int, supervised: int, trained: int, quantised: int
    ) -> dict[str, str]:
        model, trainer = module.model, module.trainer
        total = sum(p.numel() for p in model.parameters())
        checkpointing = bool(model.backbone.is_activation_checkpointing) and model.backbone.training
        largest = module.datamodule.micro_tokens
        peak = preflight.predicted_peak_bytes(model, largest, checkpointing=checkpointing)
        return {
            "stage": type(module).__name__,
            "devices": f"{trainer.world_size} x {module.device.type}, {type(trainer.strategy).__name__}",
            "precision": f"{str(model.backbone.dtype).removeprefix('torch.')} weights, trainer {trainer.precision}",
            "4-bit linears": str(quantised),
            "adapted linears": f"{len(model.adapters)}, rank {model.rank}",
            "parameters": f"{trained / 1e6:.2f} M train, {total / 1e6:.2f} M stored",
            "steps": f"{module.total_steps} in all, {module.datamodule.steps_per_epoch} an epoch",
            "first step": f"{len(step.micro)} micro-batches, {step.n_questions} questions, {step.n_tokens} tokens",
            "first micro-batch": f"{tokens} tokens, {supervised} supervised",
            **{f"{kind} data": preflight.in_words(books) for kind, books in module.datamodule.books().items()},
            "largest micro-batch": f"at most {largest} tokens",
            "activation checkpointing": "on" if checkpointing else "off",
            "predicted peak memory": f"{peak / 1e9:.2f} GB",
        }


def evaluated(trainer: pl.Trainer, datamodule: GeoScaleDataModule) -> list[Kind]:
    """Loaders of this fit that policy and GSDs have to answer for."""
    off = {"train"} | {kind for kind in ("val", "test") if not getattr(trainer, f"limit_{kind}_batches")}
    return [kind for kind in datamodule.kinds_ahead("fit") if kind not in off]


def bytes_to_come(trainer: pl.Trainer, module: TreeTraining) -> int:
    """Room for the checkpoints that are not yet there and for the result; one more than are kept exists while saving."""
    saving = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
    if saving is None:
        return preflight.bytes_on_disk(module.model, n_checkpoints=0)
    planned = min(saving.keep + 1, 1 + module.total_steps // saving.every_n_steps)
    present = len(checkpoints_by_step(checkpoint_folder(trainer)))
    return preflight.bytes_on_disk(module.model, n_checkpoints=max(1, planned - present))


def _check_gradients(model: Any, micro: Any) -> None:
    if model.adapters:
        preflight.check_adapter_gradients(model, micro)
        preflight.check_head_gradients(model, micro)
    else:
        preflight.check_full_gradients(model, micro)


@rank_zero_only
def print_facts(facts: dict[str, str]) -> None:
    """A two-column table of effective settings."""
    table = Table(title="preflight: effective settings", show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console().print(table)
