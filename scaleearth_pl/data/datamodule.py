"""The data side of a run: corpus, tokenizer, plan, loaders. The Lightning shell of this package.

    index.json -> token lengths -> items (trees) -> plan -> schedule (ranks, budget) -> StepDataset -> DataLoader

One item of a loader is one optimizer step (`core.batch.StepBatch`). The state in a checkpoint names corpus, lengths and
plan settings; where training stands is `trainer.global_step` alone, which Lightning keeps, so a resume needs no replay
and is valid for another number of workers or ranks. A checkpoint of another corpus, seed or mixture is refused by name.

`global_step` must therefore advance by exactly one per batch: a training step that skips its update has to count it.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from scaleearth_pl.core.batch import StepBatch
from scaleearth_pl.core.errors import ConfigError, ScaleEarthError
from scaleearth_pl.data.agreement import agreed_budget, device_of, raise_together, refuse_different_plans
from scaleearth_pl.data.controls import Controls
from scaleearth_pl.data.plan import PlanSettings
from scaleearth_pl.data.processor import GSD_TEXT_RESERVE, GsdText, Processor
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.data.split import KINDS_OF_STAGE, Kind, SplitPlan
from scaleearth_pl.data.state import refuse_changed, state_of
from scaleearth_pl.data.steps import EvalSchedule, StepDataset, StepLoader, TrainSchedule, from_the_start, make_loader
from scaleearth_pl.data.texts import corpus_texts
from scaleearth_pl.data.tokenizer import cached_tiny_tokenizer, load_tokenizer


class GeoScaleDataModule(pl.LightningDataModule):
    """Feeds geo-scale question answering from a corpus of shards.

    Args:
        root: corpus folder, which holds index.json.
        train_splits: splits that are trained on, for example ("train",) or ("stage1",).
        val_splits: splits that are validated on, in order; () for none.
        test_splits: splits of `scaleearth test`.
        predict_splits: splits of `scaleearth predict`.
        tokenizer: "tiny" trains one on the corpus; else a folder or hub name of Qwen's family.
        tiny_vocab_size: ids of the tiny tokenizer.
        global_batch_tokens: tokens of one optimizer step over all ranks; defines the plan.
        micro_token_budget: tokens of one forward pass, or "auto"; subdivides the plan, never changes it.
        max_branches: questions of one tree; an image with more is split into several trees.
        max_branch_tokens: a longer question (with its answer) is dropped whole from training and counted; in an evaluation
            it is an error.
        tier_weights: readings per epoch by native tier (high, mid, low, unknown); absent ones have 1.
        source_weights: likewise by source; the two multiply.
        num_workers: processes that read ahead; 0 reads in the training process.
        loader_timeout_s: seconds after which a silent worker is an error.
        seed: seed of the order.
        min_pixels: images below are enlarged, counted.
        max_pixels: images above are reduced.
        gsd_text: baseline B3 tells the GSD as text ("metres" or "log"); "none" for all others.
        window_shards: shards whose trees are mixed at a time.
        max_bad_share: share of bad images above which the run stops.
        limit_images: images of all splits of a loader together, evenly spaced over the index; for tests.
        controls: what is withheld from training or falsified on purpose (controls.py); null for nothing.
        cache_dir: derived files (tokenizer, lengths); default <root>/.cache.
        rank: overrides the trainer's rank, for tests.
        world_size: overrides the trainer's number of ranks, for tests.
    """

    def __init__(
        self,
        *,
        root: str,
        train_splits: tuple[str, ...] = ("train",),
        val_splits: tuple[str, ...] = ("val",),
        test_splits: tuple[str, ...] = ("test",),
        predict_splits: tuple[str, ...] = ("test",),
        tokenizer: str = "tiny",
        tiny_vocab_size: int = 1024,
        global_batch_tokens: int = 16_384,
        micro_token_budget: int | Literal["auto"] = "auto",
        max_branches: int = 64,
        max_branch_tokens: int = 512,
        tier_weights: dict[str, float] | None = None,
        source_weights: dict[str, float] | None = None,
        num_workers: int = 0,
        loader_timeout_s: float = 300.0,
        seed: int = 0,
        min_pixels: int = 64 * 64,
        max_pixels: int = 512 * 512,
        gsd_text: GsdText = "none",
        window_shards: int = 8,
        max_bad_share: float = 0.01,
        limit_images: int | None = None,
        controls: Controls | None = None,
        cache_dir: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.splits: dict[Kind, tuple[str, ...]] = {
            "train": tuple(train_splits),
            "val": tuple(val_splits),
            "test": tuple(test_splits),
            "predict": tuple(predict_splits),
        }
        self.settings = PlanSettings(
            seed=seed,
            global_batch_tokens=global_batch_tokens,
            max_branches=max_branches,
            max_branch_tokens=max_branch_tokens,
            window_shards=window_shards,
            reserve_tokens=GSD_TEXT_RESERVE,
            tier_weights=tier_weights,
            source_weights=source_weights,
        )
        if limit_images is not None and limit_images < 1:
            raise ConfigError("must be at least 1 or null", field="limit_images", value=limit_images)
        if num_workers < 0 or not 0 < loader_timeout_s < math.inf:
            field, value = "num_workers, loader_timeout_s", (num_workers, loader_timeout_s)
            raise ConfigError("must be at least 0 workers and a time above 0 seconds", field=field, value=value)
        self.tokenizer, self.tiny_vocab_size = tokenizer, tiny_vocab_size
        self.micro_token_budget, self.gsd_text = micro_token_budget, gsd_text
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.num_workers, self.loader_timeout_s = num_workers, loader_timeout_s
        self.max_bad_share, self.limit_images, self.controls = max_bad_share, limit_images, controls
        self.cache_dir = Path(cache_dir) if cache_dir else self.root / ".cache"
        self.start_step = 0
        self.tests_after_fit = False
        self.text_gsd_m: Mapping[str, float] | None = None
        self._rank, self._world_size = rank, world_size
        self._plans: dict[Kind, SplitPlan] = {}
        self._budget: int | None = None
        self._restored: dict[str, Any] | None = None

    @cached_property
    def index(self) -> ShardIndex:
        """The corpus."""
        return ShardIndex.load(self.root)

    @cached_property
    def tokenizer_dir(self) -> Path | str:
        """Folder (or hub name) of the tokenizer; the tiny one is trained on first use."""
        if self.tokenizer != "tiny":
            return self.tokenizer
        held_out = {split for kind in ("val", "test", "predict") for split in self.splits[kind]}
        splits = tuple(split for split in self.index.splits if split not in held_out) or self.splits["train"]
        key = "|".join([self.index.hash, *splits])
        return cached_tiny_tokenizer(
            self.cache_dir, key, lambda: corpus_texts(self.index, splits), vocab_size=self.tiny_vocab_size
        )

    @cached_property
    def processor(self) -> Processor:
        """Images and texts to model inputs."""
        return Processor(
            load_tokenizer(self.tokenizer_dir),
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            gsd_text=self.gsd_text,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one training epoch, constant."""
        plan = self.split_plan("train").plan
        assert plan is not None  # kind "train" always has one
        return plan.steps_per_epoch

    @property
    def micro_tokens(self) -> int:
        """Most tokens of a training micro-batch; what memory must hold."""
        schedule = self._schedule("train")
        assert isinstance(schedule, TrainSchedule)  # kind "train" always is one
        return schedule.most_tokens

    def prepare_data(self) -> None:
        """Makes tokenizer and token lengths once per node, before the ranks need them; `setup` says what is wrong."""
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn else "fit"
        with suppress(ScaleEarthError):  # the other nodes wait at a barrier, and would for ever
            for kind in self.kinds_ahead(stage):
                self.split_plan(kind)

    def setup(self, stage: str) -> None:
        """Checks shard sizes, plans the splits of this stage, and agrees on the micro-batch budget.

        Raises:
            ScaleEarthError: of the kind that says what is wrong with corpus or settings, or between ranks.
        """
        kinds = self.kinds_ahead(stage)
        self._budget = agreed_budget(self.trainer, self.micro_token_budget)
        problem: ScaleEarthError | None = None
        try:
            for kind in kinds:
                self.index.check_files(self.splits[kind])
                self.split_plan(kind)
                self._schedule(kind)
        except ScaleEarthError as error:
            problem = error
        raise_together(self.trainer, problem, elsewhere="another rank cannot plan its reading")
        refuse_different_plans(self.trainer, {kind: self.split_plan(kind).facts for kind in kinds})
        if "train" in kinds:
            self._check_restored()

    def setup_for(self, rank: int, world_size: int, stage: str = "fit") -> "GeoScaleDataModule":
        """Sets up as one of `world_size` ranks without a Trainer; returns itself."""
        self._rank, self._world_size = rank, world_size
        self.prepare_data()
        self.setup(stage)
        return self

    def kinds_ahead(self, stage: str) -> list[Kind]:
        """Loaders that a stage will ask for, where they have splits; a fit that ends in a test needs that one too."""
        tests = ("test",) if stage == "fit" and self.tests_after_fit else ()
        return [kind for kind in (*KINDS_OF_STAGE[stage], *tests) if self.splits[kind]]

    def split_plan(self, kind: Kind) -> SplitPlan:
        """Lengths, trees and order of one kind of loader, made on first use."""
        if kind not in self._plans:
            self._plans[kind] = SplitPlan(
                index=self.index,
                splits=self.splits[kind],
                processor=self.processor,
                cache=self.cache_dir,
                settings=self.settings,
                train=kind == "train",
                limit_images=self.limit_images,
                max_bad_share=self.max_bad_share,
                controls=self.controls,
            )
        return self._plans[kind]

    def plan_report(self, kind: Kind = "train") -> dict[str, Any]:
        """Planned images, questions, tokens, padding, and what was dropped or quarantined; plain numbers."""
        return self.split_plan(kind).report(self._schedule(kind))

    def books(self) -> dict[str, dict[str, int]]:
        """By loader that is planned so far: what is read and what is left out (`SplitPlan.books`)."""
        return {kind: plan.books() for kind, plan in self._plans.items()}

    def dataset(self, kind: Kind = "train") -> StepDataset:
        """The map-style data set of this rank; item number = global step."""
        return StepDataset(
            index=self.index,
            items=self.split_plan(kind).items,
            schedule=self._schedule(kind),
            processor=self.processor,
            quarantine=self.split_plan(kind).quarantine,
            rank=self._ranks()[0],
            text_gsd_m=self.text_gsd_m,
            scale_donor=self.split_plan(kind).scale_donor,
        )

    def step_batch(self, step: int, kind: Kind = "train") -> StepBatch:
        """This rank's batch of one global step, without a loader; for tests and preflight."""
        return self.dataset(kind)[step]

    def train_dataloader(self) -> StepLoader:
        """Goes on at `trainer.global_step`; its length is S whatever the position."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Every question of the val splits once, in index order; no loader where there are no val splits."""
        return self._loader("val") if self.splits["val"] else []

    def test_dataloader(self) -> StepLoader:
        """Every question of the test splits once, in index order."""
        return self._loader("test")

    def predict_dataloader(self) -> StepLoader:
        """Every question of the predict splits once, in index order."""
        return self._loader("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Queues the copies, which the loaders' pinned memory allows; Lightning's own hook waits for each of them."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on, by name; the position in it is `trainer.global_step`."""
        if "train" not in self._plans:
            return {}
        return state_of(
            self.settings,
            index_hash=self.index.hash,
            lengths=self._plans["train"].lengths,
            limit_images=self.limit_images,
            controls=self.controls,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks a checkpoint's state against this run's, now or as soon as the plan exists."""
        self._restored = dict(state_dict)
        if "train" in self._plans:
            self._check_restored()

    def _check_restored(self) -> None:
        if self._restored:
            refuse_changed(self._restored, self.state_dict())

    def _ranks(self) -> tuple[int, int]:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return rank if self._rank is None else self._rank, world_size if self._world_size is None else self._world_size

    def _schedule(self, kind: Kind) -> TrainSchedule | EvalSchedule:
        if self._budget is None:
            self._budget = agreed_budget(self.trainer, self.micro_token_budget)
        return self.split_plan(kind).schedule(
            world_size=self._ranks()[1], budget=self._budget, auto=self.micro_token_budget == "auto"
        )

    def _loader(self, kind: Kind) -> StepLoader:
        return make_loader(
            self.dataset(kind),
            self._position if kind == "train" else from_the_start,
            num_workers=self.num_workers,
            timeout_s=self.loader_timeout_s,
            pin=device_of(self.trainer).type == "cuda",
        )

    def _position(self) -> int:
        return int(self.trainer.global_step) if self.trainer is not None else self.start_step
