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
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.run_files import GATES, RUN
from scaleearth_pl.training.base import TreeTraining
from scaleearth_pl.training.callbacks.board import sum_over_ranks
from scaleearth_pl.training.callbacks.gate_curves import GATE_GSDS_M, tier_means

KEY = "run_record"
"""Where a checkpoint keeps what the run has cost."""

PACKAGES = ("torch", "lightning", "transformers", "bitsandbytes", "webdataset", "scaleearth_pl")


class RunRecord(Callback):
    """Records experiment, sizes, commit, versions, seconds and questions per second at the end of `fit`.

    Seconds and questions are those of all legs of a run that was resumed, each up to the checkpoint that was gone on from,
    and of all ranks.

    Args:
        size: label of the model size.
    """

    def __init__(self, *, size: str = "custom") -> None:
        self.size = size
        self.n_questions = 0
        self.started = 0.0
        self.before = {"seconds": 0.0, "questions": 0.0}

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

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Keeps what the run has cost so far; a collective, as saving is."""
        checkpoint[KEY] = self._so_far(trainer, pl_module)

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Goes on counting."""
        self.before = dict(checkpoint.get(KEY, self.before))

    def _so_far(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        here = torch.tensor(float(self.n_questions), dtype=torch.float64, device=module.device)
        questions = float(sum_over_ranks(trainer, here))
        return {"seconds": self.before["seconds"] + seconds, "questions": self.before["questions"] + questions}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both files on rank 0."""
        so_far = self._so_far(trainer, pl_module)
        if trainer.is_global_zero and isinstance(pl_module, TreeTraining):
            folder = Path(trainer.default_root_dir)
            record = self._record(trainer, pl_module, folder, so_far)
            (folder / RUN).write_text(json.dumps(record, indent=2))
            if pl_module.model.adapters:
                (folder / GATES).write_text(json.dumps(mean_gates(pl_module.model), indent=2))

    def _record(
        self, trainer: pl.Trainer, module: TreeTraining, folder: Path, so_far: dict[str, float]
    ) -> dict[str, Any]:
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
            "seconds": {"fit": round(so_far["seconds"], 2)},
            "qas_per_second": round(so_far["questions"] / so_far["seconds"], 2),
            "data": module.datamodule.books(),
            "stage1": where_it_is(getattr(module, "init_from", None)),
        }


def where_it_is(folder: str | None) -> str | None:
    """`folder` without links, so that `latest` of today is not taken for `latest` of tomorrow."""
    return None if folder is None else os.path.relpath(os.path.realpath(folder))


def mean_gates(model: Any) -> dict[str, dict[str, float]]:
    """Mean h_k(s) per rank tier at `GATE_GSDS_M`, over all modules and ranks of the tier."""
    scales = torch.tensor([log10_gsd(m) for m in GATE_GSDS_M], device=next(model.parameters()).device)
    means = tier_means(model.gate_values(scales))
    return {f"{m:g}": {name: round(means[name][i], 4) for name in means} for i, m in enumerate(GATE_GSDS_M)}
