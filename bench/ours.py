"""Ours as a contender: the project's own model, and its own Lightning run for figures with optimizer and data path."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from bench.shapes import Bank, Shape, data_module
from bench.timing import Laps
from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.data.processor import Processor
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shared_image import Attention
from scaleearth_pl.training.callbacks.throughput import Throughput
from scaleearth_pl.training.optim import OptimConfig
from scaleearth_pl.training.stage2 import Stage2


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Rank and numerator, the same for everybody."""

    rank: int = 16
    lora_alpha: int = 32


def plain_backbone(processor: Processor) -> Any:
    """The tiny Qwen3-VL with ordinary attention, as other trainers run it; the same random weights as ours."""
    return build_backbone(BackboneConfig(attention="sdpa"), token_ids=processor.token_ids)


def build(
    processor: Processor,
    lora: LoraShape,
    *,
    gate: Literal["continuous", "open"] = "continuous",
    attention: Attention = "tree",
    head: bool = False,
) -> ScaleEarth:
    """ScaleEarth at tiny size in float32; without SSE-U unless asked for, since no peer trains a second head."""
    backbone = build_backbone(BackboneConfig(attention=attention), token_ids=processor.token_ids)
    adapters = AdapterConfig(rank=lora.rank, lora_alpha=lora.lora_alpha, gate=GateConfig(kind=gate))
    model = ScaleEarth(
        backbone=backbone,
        adapters=adapters,
        head=GsdHeadConfig() if head else None,
        resolver=ResolverConfig(),
    )
    return model.train()


def forward_backward(model: ScaleEarth, batches: list[TreeBatch]) -> float:
    """Forward and backward over micro-batches of one step, normalised as the training step does; the loss."""
    n_supervised = sum(int(batch.supervised_T.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        out = model(batch)
        loss = out.ce_sum / n_supervised
        if out.nll_sum is not None:
            loss = loss + 0.1 * out.nll_sum / max(1.0, float(batch.nll_weight_G.sum()))
        loss.backward()
        total += float(loss.detach())
    return total


class Contender:
    """Ours at one K on fixed questions: `work()` is one forward and backward over all of them.

    With an optimizer it steps as well.
    """

    def __init__(
        self,
        model: ScaleEarth,
        bank: Bank,
        numbers: range,
        *,
        k: int,
        micro_tokens: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.k, self.optimizer = model, k, optimizer
        self.batches = micro_batches(bank, numbers, k=k, micro_tokens=micro_tokens)
        self.n_questions = len(numbers)

    def work(self) -> int:
        """One step; the number of questions."""
        forward_backward(self.model, self.batches)
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad()
        return self.n_questions


def micro_batches(bank: Bank, numbers: range, *, k: int, micro_tokens: int) -> list[TreeBatch]:
    """The questions in trees of `k`, whole trees filled up to a token budget."""
    n = bank.shape.questions
    per_image = [[i for i in numbers if i // n == image] for image in sorted({i // n for i in numbers})]
    groups = [some[i : i + k] for some in per_image for i in range(0, len(some), k)]
    tokens = [bank.tree(group).n_tokens for group in groups]
    filled: list[list[int]] = []
    room = 0
    for group, cost in zip(groups, tokens, strict=True):
        if cost > room:
            filled.append([])
            room = micro_tokens
        filled[-1] += group
        room -= cost
    return [bank.trees(some, k=k) for some in filled]


class _StepClock(pl.Callback):
    def __init__(self, laps: Laps) -> None:
        self._laps = laps

    def on_train_batch_end(self, *_: Any) -> None:
        self._laps.mark()


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What a real run of the Lightning trainer cost: seconds per question, and the share spent waiting for data.

    `epoch_start_seconds` is the mean wait for the first batch of an epoch, the run's own start left out; None with
    one epoch.
    """

    seconds_per_qa: float
    wait_share: float
    epoch_start_seconds: float | None


def train(
    root: Path,
    shape: Shape,
    folder: Path,
    lora: LoraShape,
    *,
    k: int,
    n_steps: int,
    global_batch_tokens: int,
    num_workers: int = 0,
    gate: Literal["continuous", "open"] = "continuous",
    callbacks: Callable[[], list[pl.Callback]] = list,
) -> TrainRun:
    """Stage 2 by the project's own Trainer and DataModule, optimizer and data path included.

    The wait share is that of the real Throughput callback without the run's first two steps and without the first step of
    every epoch, at which workers start.
    """
    laps, waits = Laps(), _WaitShare()
    data = data_module(root, shape, k=k, global_batch_tokens=global_batch_tokens, num_workers=num_workers)
    system = Stage2(
        init_from=None,
        backbone=BackboneConfig(),
        adapters=AdapterConfig(rank=lora.rank, lora_alpha=lora.lora_alpha, gate=GateConfig(kind=gate)),
        head=None,
        resolver=ResolverConfig(),
        optim=OptimConfig(),
    )
    trainer = quiet_trainer(folder, n_steps + 1, [_StepClock(laps), waits, *callbacks()])
    trainer.fit(system, datamodule=data)
    per_step = data.plan_report()["questions"] / data.steps_per_epoch
    return TrainRun(
        seconds_per_qa=laps.median() / per_step, wait_share=waits.share, epoch_start_seconds=waits.epoch_start
    )


def quiet_trainer(folder: Path, max_steps: int, callbacks: list[pl.Callback] | None = None) -> pl.Trainer:
    """Lightning's Trainer as our experiments configure it, without logs, checkpoints and bars."""
    return pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
        callbacks=callbacks or [],
    )


class _WaitShare(Throughput):
    """The real callback, its numbers kept instead of written to TensorBoard."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1)
        self.steps: list[tuple[bool, float, float]] = []
        self._first = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._first = batch_idx == 0

    def _write(self, trainer: Any, pl_module: Any, step: int) -> None:
        if self._window.steps:
            self.steps.append((self._first, self._window.wait_seconds, self._window.seconds))
        super()._write(trainer, pl_module, step)

    @property
    def share(self) -> float:
        """Waiting over all time, without the run's first two steps and the first of every epoch."""
        within = [(wait, seconds) for first, wait, seconds in self.steps[2:] if not first]
        return sum(wait for wait, _ in within) / max(sum(seconds for _, seconds in within), 1e-9)

    @property
    def epoch_start(self) -> float | None:
        """Mean wait for the first batch of an epoch but the run's first, seconds; None with one epoch."""
        waits = [wait for first, wait, _ in self.steps[1:] if first]
        return sum(waits) / len(waits) if waits else None


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients by name, cloned."""
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def randomise_b(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Draws B: at its zero start the gradients of A and of the thresholds are zero, and prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
