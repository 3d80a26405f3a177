"""NaN and infinity stop the run on all ranks before a checkpoint can hold them; loss spikes are flagged.

Losses and gradient norms of a step's report are sums over ranks, so a NaN born on one rank is seen by all, and all stop
at the same step without a collective of their own. Weights in memory may have taken the bad step by then; they are
thrown away, and `--resume` goes on from the checkpoint before. (Skipping the step instead would hide a bad sample or a
learning rate that is too high, and moves the run off its plan.)

On a GPU the numbers cross to the host beside the next step's work and are looked at one step late, so nothing waits for
the device; `settle` looks at once, and every checkpoint calls it first.
"""

import json
import logging
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scaleearth_pl.core.batch import BranchInfo, StepBatch, TreeInfo
from scaleearth_pl.core.errors import ConfigError, NonFiniteError
from scaleearth_pl.training.callbacks.board import board, report_of
from scaleearth_pl.training.report import StepReport

log = logging.getLogger(__name__)

FEWEST = 20
"""Steps before a spike can be told from a beginning."""


@dataclass(frozen=True)
class _Read:
    """Who is in a micro-batch; no tensor is kept."""

    is_filler: bool
    trees: tuple[TreeInfo, ...]
    branches: tuple[BranchInfo, ...]

    def ids(self) -> dict[str, Any]:
        """Images with their questions, as plain values."""
        rows = [{"image_id": t.image_id, "place_id": t.place_id, "source": t.source} for t in self.trees]
        asked: list[list[str]] = [[] for _ in rows]
        for branch in self.branches:
            asked[branch.tree].append(branch.qa_id)
        images = [{**row, "gsd_m": t.gsd_m, "qa_ids": qa} for row, t, qa in zip(rows, self.trees, asked, strict=True)]
        return {"is_filler": self.is_filler, "images": images}


@dataclass(frozen=True)
class _Watched:
    """Numbers of one step on their way to the host, and who was read in it."""

    step: int
    names: tuple[str, ...]
    values: Tensor
    arrived: torch.cuda.Event | None
    micro: tuple[_Read, ...]


class Numbers(Callback):
    """Watches loss and gradient norms.

    Files, one a rank, in the run's folder:
        nonfinite/step=00000012-rank=0.json: step, the bad numbers, and image and question ids by micro-batch, each with
            whether its own loss was finite on this rank.
        spikes/step=...: the same for a step whose loss was a spike.
    Tags:
        train/loss_spike: VLM loss over its running median, at spikes only.

    Args:
        spike_factor: a VLM loss above this many running medians is a spike.
        window: steps of the running median.
    """

    def __init__(self, *, spike_factor: float = 3.0, window: int = 50) -> None:
        if spike_factor <= 1:
            raise ConfigError("must be above 1", field="spike_factor", value=spike_factor)
        if window < FEWEST:
            raise ConfigError(f"must be at least {FEWEST}", field="window", value=window)
        self.spike_factor = spike_factor
        self.recent: deque[float] = deque(maxlen=window)
        self.spikes: list[int] = []
        self._waiting: _Watched | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Looks at the step before (on a GPU) or at this one."""
        watched = watch(report_of(outputs, StepReport), batch)
        self.settle(trainer)
        self._waiting = watched
        if watched.arrived is None:
            self.settle(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Looks at the last step, before its weights are released."""
        self.settle(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The running losses, so that a resumed run flags the same spikes."""
        return {"recent": list(self.recent), "spikes": list(self.spikes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with them."""
        self.recent.extend(state_dict["recent"])
        self.spikes = list(state_dict["spikes"])

    def settle(self, trainer: pl.Trainer) -> None:
        """Looks at the numbers that still wait.

        Raises:
            NonFiniteError: on every rank; the ids of this rank's step are in the file that it names.
        """
        watched, self._waiting = self._waiting, None
        if watched is None:
            return
        if watched.arrived is not None:
            watched.arrived.synchronize()
        values = dict(zip(watched.names, watched.values.tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value) and not name.startswith("micro/")]
        if bad:
            file = dump(trainer, watched, values, "nonfinite")
            raise NonFiniteError(
                f"loss or gradient is not finite at step {watched.step}; no checkpoint was taken after it",
                file=file,
                field=bad[0],
                value=values[bad[0]],
                remedy="look at the samples in the file; lower the learning rate; then resume from before the step",
            )
        self._look_for_spike(trainer, watched, values)

    def _look_for_spike(self, trainer: pl.Trainer, watched: _Watched, values: dict[str, float]) -> None:
        loss = values["vlm_loss"]
        usual = statistics.median(self.recent) if len(self.recent) >= FEWEST else math.inf
        if loss > self.spike_factor * usual:
            self.spikes.append(watched.step)
            file = dump(trainer, watched, values, "spikes")
            log.warning("loss spike at step %d: %.4g, usually %.4g (%s)", watched.step, loss, usual, file)
            if (writer := board(trainer)) is not None:
                writer.add_scalar("train/loss_spike", loss / usual, watched.step)
        self.recent.append(loss)


def watch(report: StepReport, batch: StepBatch) -> _Watched:
    """Packs the numbers of a step into one vector and starts its way to the host."""
    named = {"loss": report.loss, "vlm_loss": report.vlm_loss}
    named |= {f"grad_norm/{group}": norm for group, norm in report.grad_norm.items()}
    flat = [value.float().reshape(1) for value in named.values()]
    if report.micro_sums_M is not None:
        flat.append(report.micro_sums_M.float())
    names = (*named, *(f"micro/{m}" for m in range(len(batch.micro) if report.micro_sums_M is not None else 0)))
    vector = torch.cat(flat)
    arrived = None
    if vector.is_cuda:
        on_host = torch.empty(vector.shape, pin_memory=True)
        on_host.copy_(vector, non_blocking=True)
        vector, arrived = on_host, torch.cuda.Event()
        arrived.record()
    read = tuple(_Read(m.is_filler, m.trees, m.branches) for m in batch.micro)
    return _Watched(report.step, names, vector, arrived, read)


def dump(trainer: pl.Trainer, watched: _Watched, values: dict[str, float], kind: str) -> Path:
    """Writes this rank's account of a step; returns the file."""
    folder = Path(trainer.default_root_dir) / kind
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step={watched.step:08d}-rank={trainer.global_rank}.json"
    micro = [read.ids() for read in watched.micro]
    for number, row in enumerate(micro):
        if f"micro/{number}" in values:
            row["loss_is_finite"] = math.isfinite(values[f"micro/{number}"])
    numbers = {name: repr(value) for name, value in values.items()}
    file.write_text(json.dumps({"step": watched.step, "numbers": numbers, "micro_batches": micro}, indent=1))
    return file
