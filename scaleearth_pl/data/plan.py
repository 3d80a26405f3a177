"""The reading plan: (seed, epoch, step) -> the trees of a global batch, as a pure function.

Order is not a by-product of worker timing. An epoch is drawn from the mixture, its shards are permuted (tiers evenly
interleaved), trees are permuted inside windows of a few shards (reads stay local, a window fits the page cache), and
the stream is cut by cumulative token cost into exactly S steps,

    S = max(1, round( sum over groups of weight x tokens / global_batch_tokens )),

the same number in every epoch. Hence (epoch, step) = divmod(global_step, S): the whole state of the loader is one
integer, equal on all ranks. Neither `micro_token_budget` nor ranks nor workers enter: those only say who reads what.

Items are trees: one image and up to `max_branches` of its questions. A question longer than `max_branch_tokens` is
dropped whole and counted; a prefix is never cut. Pure numpy: 1.5 million questions plan in well under a second.

Legend: N items, R rows (images), Q questions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.data.lengths import Lengths
from scaleearth_pl.data.mixture import Mixture
from scaleearth_pl.data.shards import ShardIndex

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Everything besides corpus and lengths that decides the plan; equal settings, equal order."""

    seed: int
    global_batch_tokens: int
    max_branches: int
    max_branch_tokens: int
    window_shards: int
    reserve_tokens: int
    tier_weights: Mapping[str, float] | None = None
    source_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("global_batch_tokens", "max_branches", "max_branch_tokens", "window_shards"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))
        if self.seed < 0:
            raise ConfigError("must be at least 0", field="seed", value=self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """All trees that may be read. Tree n is image `row_N[n]` with the questions `question_Q[first_N[n]:last_N[n]]`.

    Attributes:
        row_N: row of the image in the corpus's index.
        part_N, n_parts_N: which of the trees of its image, and of how many.
        first_N, last_N: its questions' range in `question_Q`, which holds numbers of questions within a sample.
        cost_N: tokens in all; `prefix_N` of the image's prefix, `branch_N` of the longest question.
        dropped_N: questions of the image that are too long for any tree, counted in its first.
    """

    row_N: Ints
    part_N: Ints
    n_parts_N: Ints
    first_N: Ints
    last_N: Ints
    cost_N: Ints
    prefix_N: Ints
    branch_N: Ints
    dropped_N: Ints
    question_Q: Ints

    def __len__(self) -> int:
        return len(self.row_N)

    def questions(self, item: int) -> list[int]:
        """Indices into the sample's questions that this tree holds."""
        return [int(q) for q in self.question_Q[self.first_N[item] : self.last_N[item]]]


def make_items(
    lengths: Lengths,
    settings: PlanSettings,
    keep_R: NDArray[np.bool_] | None = None,
    ask_Q: NDArray[np.bool_] | None = None,
) -> Items:
    """Splits images into trees of at most `max_branches` questions, of near equal number.

    Args:
        lengths: token lengths of the split.
        settings: plan settings.
        keep_R: rows to use (default all), for `limit_images`.
        ask_Q: questions to ask (default all), for `controls.without_families`; the others do not count as dropped.

    An image that keeps no question gives no tree; what is dropped is counted in `dropped_N` of the image's first tree.
    """
    row_Q = np.repeat(np.arange(len(lengths.rows)), lengths.n_questions_R)
    wanted_Q = np.ones(len(row_Q), bool) if ask_Q is None else ask_Q.copy()
    if keep_R is not None:
        wanted_Q &= keep_R[row_Q]
    use_Q = wanted_Q & (lengths.branch_Q <= settings.max_branch_tokens)
    wanted_R, kept_R = (np.bincount(row_Q[mask_Q], minlength=len(lengths.rows)) for mask_Q in (wanted_Q, use_Q))
    parts_R = -(-kept_R // settings.max_branches)
    image_N = np.repeat(np.arange(len(lengths.rows)), parts_R)
    part_N = np.arange(len(image_N)) - np.repeat(np.cumsum(parts_R) - parts_R, parts_R)
    start_N = (np.cumsum(kept_R) - kept_R)[image_N]
    first_N = start_N + part_N * kept_R[image_N] // np.maximum(1, parts_R[image_N])
    last_N = start_N + (part_N + 1) * kept_R[image_N] // np.maximum(1, parts_R[image_N])
    branch_Q = lengths.branch_Q[use_Q]
    total_Q = np.concatenate([[0], np.cumsum(branch_Q)])
    prefix_N = lengths.prefix_R[image_N] + settings.reserve_tokens
    return Items(
        row_N=lengths.rows[image_N],
        part_N=part_N,
        n_parts_N=parts_R[image_N],
        first_N=first_N,
        last_N=last_N,
        cost_N=prefix_N + total_Q[last_N] - total_Q[first_N],
        prefix_N=prefix_N,
        branch_N=np.maximum.reduceat(branch_Q, first_N) if len(first_N) else first_N,
        dropped_N=np.where(part_N == 0, (wanted_R - kept_R)[image_N], 0),
        question_Q=(np.arange(len(row_Q)) - lengths.first_Q[row_Q])[use_Q],
    )


class TrainPlan:
    """The global batches of training, in order.

    Args:
        index: the corpus.
        items: trees from `make_items`.
        settings: plan settings.

    Raises:
        ConfigError: there is nothing to read, for example because all weights are 0.
    """

    def __init__(self, index: ShardIndex, items: Items, settings: PlanSettings) -> None:
        self.index, self.items, self.settings = index, items, settings
        rows, self._first_of_row = np.unique(items.row_N, return_index=True)
        self._rows = rows
        self.mixture = Mixture(
            index,
            rows,
            seed=settings.seed,
            tier_weights=settings.tier_weights,
            source_weights=settings.source_weights,
        )
        weight_of_row = self.mixture.weight_of_row
        weight_N = np.array([weight_of_row[row] for row in items.row_N.tolist()])
        self.tokens_per_epoch = float((weight_N * items.cost_N).sum())
        self.steps_per_epoch = self._count_steps()
        self._cached: tuple[int, Ints, Ints] | None = None

    def step_items(self, global_step: int) -> Ints:
        """Items of one global batch, in plan order; never empty."""
        epoch, step = divmod(global_step, self.steps_per_epoch)
        order, bounds = self.epoch(epoch)
        return order[bounds[step] : bounds[step + 1]]

    def epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """Items of an epoch in reading order, and the S + 1 bounds that cut it into steps."""
        if self._cached is None or self._cached[0] != epoch:
            order = self._order(epoch)
            self._cached = (epoch, order, _cut(self.items.cost_N[order], self.steps_per_epoch))
        return self._cached[1], self._cached[2]

    def _count_steps(self) -> int:
        wanted = max(1, round(self.tokens_per_epoch / self.settings.global_batch_tokens))
        fewest = sum(int(weight * len(circle)) for _, weight, circle in self.mixture.groups)
        if not fewest:
            raise ConfigError(
                "an epoch holds no image",
                file=self.index.root,
                field="tier_weights",
                value=dict(self.settings.tier_weights or {}),
                remedy="check train_splits, the weights, and max_branch_tokens",
            )
        return min(wanted, fewest)

    def _order(self, epoch: int) -> Ints:
        rng = np.random.default_rng([self.settings.seed, epoch])
        rows, copies = self.mixture.draw(epoch)
        window = self._window_of_image(rows, copies, rng)
        local = np.searchsorted(self._rows, rows)
        first, n_parts = self._first_of_row[local], self.items.n_parts_N[self._first_of_row[local]]
        ends = np.cumsum(n_parts)
        item = np.arange(ends[-1]) - np.repeat(ends - n_parts - first, n_parts)
        return item[np.lexsort((rng.random(len(item)), np.repeat(window, n_parts)))]

    def _window_of_image(self, rows: Ints, copies: Ints, rng: np.random.Generator) -> Ints:
        # A shard that is read twice counts as two shards. Each tier's shards are spread evenly over the epoch.
        shard_of_row = self.index.shard_of_row
        names, shard_of_image = np.unique(np.stack([shard_of_row[rows], copies]), axis=1, return_inverse=True)
        tiers = np.array([str(self.index.shards[s].tier) for s in names[0].tolist()])
        key = np.empty(len(tiers))
        for tier in np.unique(tiers):
            members = np.flatnonzero(tiers == tier)
            key[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
        place = np.empty(len(key), np.int64)
        place[np.argsort(key, kind="stable")] = np.arange(len(key))
        window: Ints = (place // self.settings.window_shards)[shard_of_image.reshape(-1)]
        return window


def _cut(cost_N: Ints, n_steps: int) -> Ints:
    middle = np.cumsum(cost_N) - cost_N / 2
    bounds = np.searchsorted(middle, np.arange(n_steps + 1) * (cost_N.sum() / n_steps))
    bounds[-1] = len(cost_N)
    # Every step holds at least one tree: push bounds up from the left, then down from the right.
    bounds = np.maximum.accumulate(bounds - np.arange(n_steps + 1)) + np.arange(n_steps + 1)
    bounds_S1: Ints = np.minimum(bounds, len(cost_N) - n_steps + np.arange(n_steps + 1))
    return bounds_S1
