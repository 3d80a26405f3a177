"""Real runs of the real stages, small: a stage-1 folder in a tenth of a second, a fit in about one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import Qwen3VLConfig

from scaleearth_pl.core.batch import StepBatch
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone, save_backbone
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shapes import tiny_config
from scaleearth_pl.training.command import run_lightning
from scaleearth_pl.training.report import StepReport

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

DATA: dict[str, Any] = {
    "global_batch_tokens": 600,
    "micro_token_budget": 400,
    "max_branches": 16,
    "num_workers": 0,
    "seed": 1,
    "min_pixels": 1024,
    "max_pixels": 16384,
}
"""Data settings of all fake runs: three steps an epoch, two micro-batches a step, eight to twenty questions."""


UNDRAWN = ("--trainer.logger", "false")
"""For runs whose board nobody reads: figures take most of a short run's time."""


def make_data(corpus: Path, *, rank: int = 0, world_size: int = 1, **settings: Any) -> GeoScaleDataModule:
    """A DataModule without a Trainer, as one of `world_size` ranks."""
    data = GeoScaleDataModule(root=str(corpus), cache_dir=str(corpus.parent / "cache"), **(DATA | settings))
    return data.setup_for(rank, world_size)


def tiny_hf(corpus: Path) -> Path:
    """What stage 1 would leave, untrained: the random tiny backbone with the corpus's tokenizer, beside the corpus."""
    return _saved(corpus, corpus.parent / "hf")


def shallow_hf(corpus: Path) -> Path:
    """The same with two blocks instead of four in each tower, for runs that are looked at from outside."""
    with shallow():
        return _saved(corpus, corpus.parent / "shallow" / "hf")


def _saved(corpus: Path, folder: Path) -> Path:
    if not (folder / "tokenizer.json").exists():
        data = make_data(corpus)
        save_backbone(build_backbone(BackboneConfig(), token_ids=data.processor.token_ids), folder)
        data.processor.save(folder)
    return folder


@contextmanager
def shallow() -> Iterator[None]:
    """Within it the random tiny backbone has two blocks in each tower."""

    def config(vocab_size: int) -> Qwen3VLConfig:
        config = tiny_config(vocab_size)
        config.text_config.num_hidden_layers = config.vision_config.depth = 2
        config.vision_config.deepstack_visual_indexes = [0]
        return config

    with patch("scaleearth_pl.model.backbone.tiny_config", config):
        yield


def tiny_model(
    corpus: Path,
    *,
    quantise: str = "none",
    checkpointing: bool = False,
    adapted: bool = True,
    noise: float = 0.02,
    folder: Path | None = None,
    **adapters: Any,
) -> ScaleEarth:
    """Stage 2's model in fp32 on `folder` (`tiny_hf`); B is `noise`, not zero, so that every path carries gradient."""
    data = make_data(corpus)
    config = BackboneConfig(quantise=quantise, checkpointing=checkpointing)  # type: ignore[arg-type]
    backbone = build_backbone(config, token_ids=data.processor.token_ids, source=str(folder or tiny_hf(corpus)))
    if not adapted:
        return ScaleEarth(backbone=backbone)
    adapter_config = AdapterConfig(**({"rank": 12, "lora_alpha": 12} | adapters))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ScaleEarth(
            backbone=backbone, adapters=adapter_config, head=GsdHeadConfig(hidden=32), resolver=ResolverConfig()
        )
        for adapter in model.adapters.values():
            torch.nn.init.normal_(adapter.lora_B.weight, std=noise)
    return model


def arguments(stage: str, corpus: Path, runs: Path, *extra: str, steps: int = 3, experiment: str = "") -> list[str]:
    """Command line of a tiny fit: `stage` is "stage1" or "stage2"."""
    words = ["fit", "-c", str(EXPERIMENTS / f"{stage}.yaml"), "-c", str(EXPERIMENTS / "size" / "tiny.yaml")]
    words += ["--experiment", experiment or stage, "--runs_dir", str(runs), "--trainer.max_steps", str(steps)]
    words += ["--data.root", str(corpus), "--data.cache_dir", str(corpus.parent / "cache")]
    words += [word for name, value in DATA.items() for word in (f"--data.{name}", str(value))]
    words += ["--data.train_splits", "[train]"]  # stage1.yaml names its own
    if stage == "stage2":
        words += ["--model.init_args.init_from", str(shallow_hf(corpus))]
    return [*words, *extra]


def fit(
    stage: str, corpus: Path, runs: Path, *extra: str, steps: int = 3, experiment: str = "", whole: bool = False
) -> Any:
    """Runs `scaleearth fit` in this process; returns the CLI, with `.trainer`, `.model`, `.datamodule`, `.run_folder`.

    Stage 1 trains a `shallow` model unless it is to be the `whole` tiny one; stage 2 that of `shallow_hf`.
    """
    os.environ.pop("SCALEEARTH_VERSION", None)
    try:
        with nullcontext() if whole else shallow():
            return run_lightning(arguments(stage, corpus, runs, *extra, steps=steps, experiment=experiment))
    finally:
        os.environ.pop("SCALEEARTH_VERSION", None)


class Recorder(pl.Callback):
    """Keeps what happened: reports, who was read, and the gradients before clipping... of every step."""

    def __init__(
        self, *, gradients: bool = False, stop_before: int | None = None, enough_after: int | None = None
    ) -> None:
        self.keep_gradients, self.stop_before, self.enough_after = gradients, stop_before, enough_after
        self.reports: list[StepReport] = []
        self.images: list[list[tuple[str, int]]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.stop_before:
            raise Interrupted

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.keep_gradients:
            self.gradients.append(gradients_of(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        self.reports.append(outputs["report"])
        self.images.append([(t.image_id, m.branch_len_B.numel()) for m in batch.micro for t in m.trees])
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.enough_after  # as a time limit does


class Interrupted(Exception):
    """A crash, as far as Lightning can tell."""


def recorder_of(cli: Any) -> Recorder:
    """The run's `Recorder`."""
    return next(c for c in cli.trainer.callbacks if isinstance(c, Recorder))


def gradients_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients of all trained parameters, by name; zeros where there is none."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for name, p in named.items()}


def losses_and_gradients(
    model: ScaleEarth, step: StepBatch, *, predicted_share: float
) -> tuple[tuple[float, float], dict[str, Tensor]]:
    """VLM and NLL means of a step with the gradients of their sum, as the training step normalises them."""
    model.zero_grad()
    vlm = nll = 0.0
    for micro in step.micro:
        out = model(micro, predicted_share=predicted_share)
        (out.ce_sum / step.n_supervised + out.nll_sum / step.nll_weight).backward()
        vlm += out.ce_sum.item() / step.n_supervised
        nll += out.nll_sum.item() / step.nll_weight
    return (vlm, nll), gradients_of(model)


def bits_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters as bytes, by name: 4-bit weights are stored in floats that may be NaN."""
    return {name: p.detach().clone().contiguous().view(torch.uint8) for name, p in module.named_parameters()}


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest over tensors of ||a - b|| / ||b||, where the norm of b is not below 1e-6 of the whole's."""
    assert a.keys() == b.keys()
    floor = 1e-6 * float(torch.stack([v.norm() for v in b.values()]).norm())
    return max(float((a[name] - b[name]).norm()) / max(float(b[name].norm()), floor) for name in b)
