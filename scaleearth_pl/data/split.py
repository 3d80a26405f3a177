"""Everything decided about a split before its first pixel is read: lengths, trees, order, and the books that say so."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.data.controls import Controls, asked_questions, scale_donors
from scaleearth_pl.data.lengths import lengths_of
from scaleearth_pl.data.packing import padded_positions
from scaleearth_pl.data.plan import PlanSettings, TrainPlan, make_items
from scaleearth_pl.data.processor import Processor
from scaleearth_pl.data.quarantine import Quarantine
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.data.steps import EvalSchedule, TrainSchedule

Kind = Literal["train", "val", "test", "predict"]

KINDS_OF_STAGE: dict[str, tuple[Kind, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
"""Loaders that each stage of the Trainer needs."""

REPORTED_STEPS = 50
"""Steps over which padding is computed for the report; it hardly changes after."""


class SplitPlan:
    """The plan of one kind of loader.

    Args:
        index: the corpus.
        splits: splits that it reads.
        processor: decides token lengths.
        cache: folder of the lengths' sidecar.
        settings: plan settings; sequential kinds use those that make trees.
        train: shuffled plan with mixture, or every tree once in index order.
        limit_images: images to use, evenly spaced over the index.
        max_bad_share: limit of the quarantine.
        controls: what is withheld or falsified, where this is the training split.

    Raises:
        QuarantineLimitError: too many samples could not be measured.
        ConfigError: nothing is left to read, or an evaluation would not ask all questions.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        splits: tuple[str, ...],
        processor: Processor,
        cache: Path,
        settings: PlanSettings,
        train: bool,
        limit_images: int | None,
        max_bad_share: float,
        controls: Controls | None = None,
    ) -> None:
        self.index, self.splits, self.processor, self.settings = index, splits, processor, settings
        self.lengths = lengths_of(index, splits, processor, cache)
        n_rows = len(self.lengths.rows)
        self.quarantine = Quarantine(
            n_rows=len(index),
            n_images=n_rows + len(self.lengths.rejected),
            max_bad_share=max_bad_share,
            known_bad=self.lengths.rejected,
        )
        self._keep_R = np.ones(n_rows, bool)
        if limit_images is not None and limit_images < n_rows:
            self._keep_R[:] = False
            self._keep_R[np.linspace(0, n_rows - 1, limit_images).round().astype(int)] = True
        controls = (controls if train else None) or Controls()
        self._ask_Q = (
            asked_questions(index, self.lengths, controls.without_families) if controls.without_families else None
        )
        self.items = make_items(self.lengths, settings, self._keep_R, self._ask_Q)
        if not len(self.items):
            raise ConfigError("no image is left to read", file=index.root, field="splits", value=splits)
        if not train:
            self._refuse_dropped()
        self.plan = TrainPlan(index, self.items, settings) if train else None
        self.scale_donor = scale_donors(index, self.items.row_N, seed=settings.seed) if controls.shuffle_gsd else {}

    @property
    def facts(self) -> dict[str, Any]:
        """What ranks must have in common to read alike: the lengths, and which questions make which trees."""
        items = hashlib.sha256(
            self.items.row_N.tobytes() + self.items.question_Q.tobytes() + self.items.cost_N.tobytes()
        )
        return {**self.lengths.facts, "trees": items.hexdigest()[:16]}

    def schedule(self, *, world_size: int, budget: int, auto: bool) -> TrainSchedule | EvalSchedule:
        """Cuts the plan for ranks and budget.

        Args:
            world_size: ranks.
            budget: tokens of a micro-batch.
            auto: the budget was not stated by the user, so it grows to the largest tree.

        Raises:
            ConfigError: a tree is larger than the stated budget.
        """
        largest = int(np.argmax(self.items.cost_N))
        n_tokens = int(self.items.cost_N[largest])
        if n_tokens > budget and not auto:
            alone = int((self.items.prefix_N + self.items.branch_N)[largest])
            shrink = (
                f"lower max_branches (now {self.settings.max_branches})"
                if alone <= budget
                else f"lower max_pixels or max_branch_tokens: its image and longest question alone take {alone}"
            )
            raise ConfigError(
                f"a tree of {n_tokens} tokens exceeds the budget of a micro-batch",
                file=self.index.where(int(self.items.row_N[largest])),
                field="micro_token_budget",
                value=budget,
                remedy=f"raise it to {n_tokens}, or {shrink}",
            )
        budget = max(budget, n_tokens)
        if self.plan is None:
            return EvalSchedule(self.items, world_size=world_size, budget=budget)
        return TrainSchedule(self.plan, world_size=world_size, budget=budget)

    def report(self, schedule: TrainSchedule | EvalSchedule) -> dict[str, Any]:
        """What is planned, dropped and padded, as plain numbers."""
        items = self.items
        return {
            "splits": list(self.splits),
            **self.books(),
            "trees": len(items),
            "tokens": int(items.cost_N.sum()),
            "steps_per_epoch": schedule.steps_per_epoch,
            "tokens_per_epoch": self.plan.tokens_per_epoch if self.plan else float(items.cost_N.sum()),
            "by_tier": self._by_tier(),
            **self._padding(schedule),
        }

    def books(self) -> dict[str, int]:
        """Images and questions that are read, and what is left out, quarantined, enlarged or reduced."""
        items, kept = self.items, self.lengths.rows[self._keep_R]
        widths, heights = self.index.number["width"][kept].tolist(), self.index.number["height"][kept].tolist()
        native_pairs = [*zip(widths, heights, strict=True)]
        seen_pairs = {pair: self.processor.seen_size(*pair) for pair in set(native_pairs)}
        enlarged = {pair for pair, seen in seen_pairs.items() if seen[0] > pair[0] or seen[1] > pair[1]}
        of_kept_Q = np.repeat(self._keep_R, self.lengths.n_questions_R)
        n_asked = int((of_kept_Q if self._ask_Q is None else of_kept_Q & self._ask_Q).sum())
        n_images = len(np.unique(items.row_N))
        return {
            "images": n_images,
            "questions": len(items.question_Q),
            "dropped_questions": n_asked - len(items.question_Q),
            "dropped_images": len(kept) - n_images,
            "quarantined_images": self.quarantine.n_bad,
            "enlarged_images": sum(pair in enlarged for pair in native_pairs),
            "reduced_images": sum(w * h > self.processor.max_pixels for w, h in native_pairs),
        }

    def _refuse_dropped(self) -> None:
        """An accuracy over fewer questions than the split has would pass for the split's."""
        row_Q = np.repeat(np.arange(len(self.lengths.rows)), self.lengths.n_questions_R)
        long_Q = self._keep_R[row_Q] & (self.lengths.branch_Q > self.settings.max_branch_tokens)
        if long_Q.any():
            raise ConfigError(
                f"{int(long_Q.sum())} questions of an evaluation would be left out: with their answers they are too long",
                file=self.index.where(int(self.lengths.rows[row_Q[long_Q][0]])),
                field="max_branch_tokens",
                value=self.settings.max_branch_tokens,
                remedy=f"raise it to {int(self.lengths.branch_Q[long_Q].max())}, or take them out of {', '.join(self.splits)}",
            )

    def _by_tier(self) -> dict[str, dict[str, float]]:
        items, weight_of_row = self.items, self.plan.mixture.weight_of_row if self.plan else {}
        tiers = np.array([str(self.index.tier_of_row(row)) for row in items.row_N.tolist()])
        return {
            str(tier): {
                "images": len(rows),
                "questions": int((items.last_N - items.first_N)[tiers == tier].sum()),
                "tokens": int(items.cost_N[tiers == tier].sum()),
                "readings_per_epoch": sum(weight_of_row.get(row, 1.0) for row in rows) / len(rows),
            }
            for tier in Tier
            if (rows := np.unique(items.row_N[tiers == tier]).tolist())
        }

    def _padding(self, schedule: TrainSchedule | EvalSchedule) -> dict[str, float]:
        computed = real = weightless = n_micro = 0
        for step in range(min(REPORTED_STEPS, schedule.steps_per_epoch)):
            for rank in range(schedule.world_size):
                for micro in schedule.micro_batches(step, rank):
                    n_micro, weightless = n_micro + 1, weightless + (not micro)
                    some = np.array(micro, np.int64)
                    if micro:
                        n_branches = int((self.items.last_N - self.items.first_N)[some].sum())
                        longest = int(self.items.prefix_N[some].max()), int(self.items.branch_N[some].max())
                        computed += padded_positions(len(some), longest[0], n_branches, longest[1])
                        real += int(self.items.cost_N[some].sum())
        return {
            "micro_batches_per_step": n_micro / schedule.world_size / min(REPORTED_STEPS, schedule.steps_per_epoch),
            "weightless_micro_batches_share": weightless / n_micro,
            "padding_share": 1 - real / computed,
        }
