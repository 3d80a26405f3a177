"""A LightningModule that trains nothing but reports everything, and a Trainer for it: what callbacks are tested on."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.gsd import RANK_TIER_BANDS, TierBoundaries, rank_tier_sizes
from scaleearth_pl.training.report import EvalReport, StepReport

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ToyModel(nn.Module):
    """Gates of 2 layers x 7 projections with thresholds even in `RANK_TIER_BANDS`; magnitudes that grow with layer."""

    def __init__(self, rank: int = 12) -> None:
        super().__init__()
        self.rank = rank
        bands = [torch.linspace(*RANK_TIER_BANDS[t], n) for t, n in zip(RANK_TIER_BANDS, rank_tier_sizes(rank))]
        self.names = [f"model.layers.{i}.self_attn.{p}" for i in range(2) for p in PROJECTIONS]
        shift = torch.linspace(-0.1, 0.1, len(self.names))[:, None]
        self.thresholds = nn.Parameter(torch.cat(bands) + shift)

    def gate_values(self, log10_gsd_S: Tensor) -> Tensor:
        return torch.sigmoid(4.0 * (self.thresholds[..., None] - log10_gsd_S)).detach()

    def update_magnitudes(self) -> dict[str, float]:
        return {name: 0.1 * (i + 1) for i, name in enumerate(self.names)}


def toy_trees(n: int, *, offset: int = 0) -> tuple[TreeInfo, ...]:
    gsds = [None if (i + offset) % 5 == 4 else 0.1 * 4.0 ** ((i + offset) % 5) for i in range(n)]
    return tuple(
        TreeInfo(
            image_id=f"image{i + offset}",
            place_id=f"place{(i + offset) // 2}",
            source="toy",
            gsd_m=gsd_m,
            effective_tier=TierBoundaries().tier_of(gsd_m),
            has_scale_cue=(True, False, None)[(i + offset) % 3],
        )
        for i, gsd_m in enumerate(gsds)
    )


def toy_branches(n_trees: int, per_tree: int = 2) -> tuple[BranchInfo, ...]:
    return tuple(
        BranchInfo(
            tree=tree,
            qa_id=f"q{k}",
            type=("presence", "road_width_m")[k % 2],
            family=("identification", "scale_specific")[k % 2],
            question="How wide?",
            answer="9 m",
            options=None,
        )
        for tree in range(n_trees)
        for k in range(per_tree)
    )


def toy_step(step: int, *, sse_u: bool = True, n_images: int = 4, n_questions: int = 8) -> StepReport:
    """Every second image is half trusted, and three times as wrong; sigma is exp(-2)."""
    trees = toy_trees(n_images, offset=step)
    half_I = (torch.arange(n_images) + step) % 2 == 1
    log10_gsd = torch.tensor([float("nan") if t.gsd_m is None else t.gsd_m for t in trees]).log10()
    head: dict[str, Any] = {}
    if sse_u:
        head = {
            "nll": torch.tensor(-0.5),
            "log10_gsd": log10_gsd,
            "mu": log10_gsd.nan_to_num() + torch.where(half_I, 0.3, 0.1),
            "log_var": torch.full((n_images,), -4.0),
            "nll_weight": torch.where(half_I, 0.5, 1.0) * ~log10_gsd.isnan(),
        }
    return StepReport(
        step=step,
        loss=torch.tensor(2.0 / step),
        vlm_loss=torch.tensor(1.5 / step),
        nll=head.pop("nll", None),
        lambda_eff=0.1 * step,
        lr={"adapters": 1e-3, "sse_u": 1e-4},
        grad_norm={"adapters": torch.tensor(10.0), "thresholds": torch.tensor(0.0)},
        n_questions=n_questions,
        n_tokens=100,
        n_padded=25,
        n_supervised=16,
        **head,
    )


def toy_eval(n_images: int, *, offset: int = 0, sse_u: bool = True) -> EvalReport:
    trees, branches = toy_trees(n_images, offset=offset), toy_branches(n_images)
    log10_gsd = torch.tensor([float("nan") if t.gsd_m is None else t.gsd_m for t in trees]).log10()
    head: dict[str, Any] = {}
    if sse_u:
        noise = torch.linspace(-0.4, 0.4, n_images)
        head = {
            "log10_gsd": log10_gsd,
            "mu": log10_gsd.nan_to_num() + noise,
            "log_var": 2 * (noise.abs() + 0.05).log(),
            "nll_weight": (~log10_gsd.isnan()).float(),
        }
    return EvalReport(
        vlm_loss_sum=torch.tensor(3.0 * len(branches)),
        n_supervised=torch.tensor(2 * len(branches)),
        trees=trees,
        branches=branches,
        correct_B=torch.arange(len(branches)) % 2 == 0,
        predictions=tuple("9 m" if i % 2 == 0 else None for i in range(len(branches))),
        **head,
    )


class ToyModule(pl.LightningModule):
    """Reports `toy_step`s and `toy_eval`s; manual optimisation, one real optimizer step a step."""

    def __init__(self, *, sse_u: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sse_u = sse_u
        self.model = ToyModel() if sse_u else nn.Linear(1, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, StepReport]:
        optimizer: Any = self.optimizers()
        self.manual_backward(sum(p.sum() for p in self.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        return {"report": toy_step(self.global_step, sse_u=self.sse_u)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, EvalReport]:
        return {"report": toy_eval(12, offset=12 * batch_idx, sse_u=self.sse_u)}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, EvalReport]:
        return self.validation_step(batch, batch_idx)


def toy_loader(n: int) -> DataLoader:
    return DataLoader(list(range(n)), batch_size=1)


def toy_trainer(folder: Path, callbacks: list[pl.Callback], *, steps: int = 6, **settings: Any) -> pl.Trainer:
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False} | settings
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        num_sanity_val_steps=1,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name=None, version="board"),
        callbacks=callbacks,
        **settings,
    )


def toy_fit(folder: Path, *callbacks: pl.Callback, steps: int = 6, sse_u: bool = True) -> EventAccumulator:
    """Trains `steps` steps with one validation, returns what TensorBoard would read."""
    trainer = toy_trainer(folder, list(callbacks), steps=steps)
    trainer.fit(ToyModule(sse_u=sse_u), toy_loader(steps), toy_loader(2))
    trainer.logger.experiment.close()
    return read_board(folder)


def read_board(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "board"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return board.Reload()


def points(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]
