"""Writes `run.json` and `gates.json` into the run folder: what evaluation needs to know of a run."""

import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.gsd import RANK_TIERS, log10_gsd, rank_tier_sizes
from scaleearth_pl.training.base import TreeTraining

GATE_SCALES_M = (0.1, 1.0, 10.0, 30.0)
"""GSDs at which the mean gate of each rank tier is recorded."""

PACKAGES = ("torch", "lightning", "transformers", "bitsandbytes", "webdataset", "scaleearth_pl")


class RunRecord(Callback):
    """Records experiment, sizes, commit, versions, seconds and questions per second at the end of `fit`.

    Args:
        size: label of the model size.
    """

    def __init__(self, *, size: str = "custom") -> None:
        self.size = size
        self.n_questions = 0
        self.started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts questions."""
        self.n_questions += outputs["report"].n_questions

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both files on rank 0."""
        if trainer.is_global_zero and isinstance(pl_module, TreeTraining):
            folder = Path(trainer.default_root_dir)
            record = self._record(trainer, pl_module, folder)
            (folder / "run.json").write_text(json.dumps(record, indent=2))
            if pl_module.model.adapters:
                (folder / "gates.json").write_text(json.dumps(mean_gates(pl_module.model), indent=2))

    def _record(self, trainer: pl.Trainer, module: TreeTraining, folder: Path) -> dict[str, Any]:
        seconds = time.perf_counter() - self.started
        return {
            "experiment": folder.resolve().parent.name,
            "stage": type(module).__name__.lower(),
            "size": self.size,
            "corpus": Path(module.datamodule.root).name,
            "corpus_hash": module.datamodule.index.content_hash,
            "commit": current_commit(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "steps": trainer.global_step,
            "world_size": trainer.world_size,
            "device": module.device.type if module.device.type == "cpu" else torch.cuda.get_device_name(module.device),
            "seconds": {"fit": round(seconds, 2)},
            "qas_per_second": round(self.n_questions * trainer.world_size / seconds, 2),
            "stage1": where_it_is(getattr(module, "init_from", None)),
        }


def where_it_is(folder: str | None) -> str | None:
    """`folder` without links, so that `latest` of today is not taken for `latest` of tomorrow."""
    return None if folder is None else os.path.relpath(os.path.realpath(folder))


def mean_gates(model: Any) -> dict[str, dict[str, float]]:
    """Mean h_k(s) per rank tier at `GATE_SCALES_M`, over all modules and ranks of the tier."""
    scales = torch.tensor([log10_gsd(m) for m in GATE_SCALES_M], device=next(model.parameters()).device)
    tiers_MrS = model.gate_values(scales).split(rank_tier_sizes(model.rank), dim=1)
    means = {name: part.mean(dim=(0, 1)).tolist() for name, part in zip(RANK_TIERS, tiers_MrS, strict=True)}
    return {f"{m:g}": {name: round(means[name][i], 4) for name in RANK_TIERS} for i, m in enumerate(GATE_SCALES_M)}
