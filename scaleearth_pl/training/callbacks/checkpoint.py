"""When a run is saved, and what may be deleted: never the last good file before the next one is on the disk.

A checkpoint is taken after every `every_n_steps` optimizer steps, and where training stops early: there before Lightning
counts the cut epoch as a whole one, or a resumed run would leave out the rest of it. Two places have none:

* a step that validation follows: it is saved *after* that validation. Lightning resumes a checkpoint from before it
  as if it had taken place, so a kill during validation would skip it; now validation runs once, in full.
* the last step: a finished run ends in `hf/` or `adapter/`. A checkpoint of the last step would resume into nothing,
  and a kill while that folder is written would leave a finished run without its result.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.training.callbacks.numbers import Numbers
from scaleearth_pl.training.checkpoint_io import SUFFIX, checkpoints_by_step
from scaleearth_pl.training.process import writing

log = logging.getLogger(__name__)

_OURS = re.compile(r"step=\d{8}\.ckpt")


class Checkpoints(Checkpoint):
    """Saves `<run>/checkpoints/step=00000500.ckpt`; a subclass of `Checkpoint`, which Lightning calls last.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep: checkpoints that stay; at least 2, so that one can turn out to be corrupt.
    """

    def __init__(self, *, every_n_steps: int = 500, keep: int = 2) -> None:
        if every_n_steps < 1:
            raise ConfigError("must be at least 1", field="every_n_steps", value=every_n_steps)
        if keep < 2:
            raise ConfigError("must be at least 2, for the newest may be corrupt", field="keep", value=keep)
        self.every_n_steps, self.keep = every_n_steps, keep
        self.saved_step = -1
        self._due = self._complete = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Saves every n steps and where a time limit stops the run, or marks the step for after its validation."""
        self._complete = is_last_step(trainer)
        due = trainer.should_stop or trainer.global_step % self.every_n_steps == 0
        self._due = due and not self._complete
        if self._due and not validation_follows(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Saves what was due, and where validation stops the run (early stopping)."""
        due = self._due or (trainer.should_stop and not self._complete)
        if due and trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Saves a run that a whole epoch ended before its last step."""
        if trainer.global_step and not self._complete:  # as of its last step: by now Lightning has counted the epoch on
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves this step once, on all ranks, then deletes what is older than the newest `keep`."""
        step, folder = trainer.global_step, checkpoint_folder(trainer)
        self._due = False
        if step == self.saved_step:
            return
        for numbers in (c for c in trainer.callbacks if isinstance(c, Numbers)):  # type: ignore[attr-defined]
            numbers.settle(trainer)
        with writing():
            if trainer.is_global_zero:
                remove_debris(folder)
            trainer.save_checkpoint(folder / f"step={step:08d}{SUFFIX}", weights_only=False)
        self.saved_step = step
        if trainer.is_global_zero:
            prune(folder, keep=self.keep, step=step)


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    """Where a run's checkpoints are."""
    return Path(trainer.default_root_dir) / "checkpoints"


def is_last_step(trainer: pl.Trainer) -> bool:
    """True after the last optimizer step of the whole run."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return bool(last_epoch and trainer.is_last_batch)


def validation_follows(trainer: pl.Trainer) -> bool:
    """True where Lightning validates after this training batch; its own rule, from public attributes."""
    every_n_epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every_n_epochs and (trainer.current_epoch + 1) % every_n_epochs):
        return False
    if trainer.val_check_batch in (None, float("inf")):
        return trainer.is_last_batch
    batches = (trainer.fit_loop.batch_idx if every_n_epochs else trainer.fit_loop.total_batch_idx) + 1
    return bool(batches % int(trainer.val_check_batch) == 0)  # type: ignore[arg-type]


def prune(folder: Path, *, keep: int, step: int) -> None:
    """Deletes checkpoints but the newest `keep` up to `step`; what claims a later step is no concern of ours."""
    older = [path for recorded, path in checkpoints_by_step(folder) if recorded <= step and _OURS.fullmatch(path.name)]
    for path in older[:-keep]:
        log.debug("removing %s", path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_debris(folder: Path) -> None:
    """Deletes temporary files that a killed writer left."""
    for path in folder.glob(f".*{SUFFIX}*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
