"""Items to `StepBatch`: the data set whose item number is a *global step*.

    schedule (who reads what)  ->  StepDataset[global_step]  ->  StepBatch of this rank

One item is everything this rank does in one optimizer step, so the DataLoader's workers only change when it is made,
never what it is. An image is read and decoded once per step even where it was split into several trees. A sample of
several images is one tree of them; where one of them is bad, the sample is.

A rank without work, a micro-batch that only evens out the ranks, and one whose samples were all quarantined run a
*weightless* copy of another tree: same collectives, nothing supervised, no question counted.
"""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from scaleearth_pl.core.batch import StepBatch, TreeBatch
from scaleearth_pl.core.errors import GsdError, QuarantineLimitError, SampleError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.collate import Tree, collate, encode_tree
from scaleearth_pl.data.controls import with_scale_of
from scaleearth_pl.data.packing import MicroBatches, fill, pack_step, padded_positions
from scaleearth_pl.data.plan import Items, TrainPlan
from scaleearth_pl.data.processor import ProcessedImage, Processor
from scaleearth_pl.data.quarantine import Quarantine
from scaleearth_pl.data.shards import ShardIndex, ShardReader


class Schedule(Protocol):
    """Who reads what: items of every rank's micro-batches at every step, `budget` tokens of each at most."""

    budget: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same on every rank."""

    def micro_batches(self, step: int, rank: int) -> MicroBatches:
        """Item numbers of this rank's micro-batches; empty ones are weightless."""

    def spares(self, step: int) -> Iterator[int]:
        """Items from which a weightless batch may be made, nearest first."""


class TrainSchedule:
    """The training plan, cut for `world_size` ranks and a token budget."""

    def __init__(self, plan: TrainPlan, *, world_size: int, budget: int) -> None:
        self.plan, self.world_size, self.budget = plan, world_size, budget
        self.steps_per_epoch = plan.steps_per_epoch

    @property
    def most_tokens(self) -> int:
        """Bound on a micro-batch: the budget, or a rank's part of a step, where step and part may be over by a tree each."""
        largest = int(self.plan.items.cost_N.max())
        mean_step = self.plan.tokens_per_epoch / self.steps_per_epoch
        return min(self.budget, math.ceil((mean_step + largest) / self.world_size) + largest)

    def all_ranks(self, step: int) -> tuple[MicroBatches, ...]:
        """Item numbers of every rank's micro-batches."""
        here, items = self.plan.step_items(step), self.plan.items
        packed = pack_step(
            items.cost_N[here],
            items.prefix_N[here],
            items.branch_N[here],
            world_size=self.world_size,
            budget=self.budget,
        )
        return tuple(tuple(tuple(int(here[p]) for p in micro) for micro in micros) for micros in packed)

    def micro_batches(self, step: int, rank: int) -> MicroBatches:
        """Item numbers of this rank's micro-batches."""
        return self.all_ranks(step)[rank]

    def spares(self, step: int) -> Iterator[int]:
        """The step's own items from the cheapest on, then the epoch's."""
        here = self.plan.step_items(step)
        cheapest = here[np.argsort(self.plan.items.cost_N[here], kind="stable")]
        order, _ = self.plan.epoch(step // self.steps_per_epoch)
        return iter([*cheapest.tolist(), *order.tolist()])


class EvalSchedule:
    """All items in index order, one micro-batch a rank and step; no item twice, none left out."""

    def __init__(self, items: Items, *, world_size: int, budget: int) -> None:
        self.world_size, self.budget = world_size, budget
        self._batches = fill(list(range(len(items))), items.cost_N, budget)
        self._n_items = len(items)
        self.steps_per_epoch = -(-len(self._batches) // world_size)

    def micro_batches(self, step: int, rank: int) -> MicroBatches:
        """One micro-batch, weightless where the last step has fewer than there are ranks."""
        number = step * self.world_size + rank
        return (self._batches[number] if number < len(self._batches) else (),)

    def spares(self, step: int) -> Iterator[int]:
        """Items from the step's first on, round the split."""
        first = self._batches[step * self.world_size][0]
        return iter([*range(first, self._n_items), *range(first)])


class StepDataset(Dataset[StepBatch]):
    """Builds one rank's `StepBatch` of any global step; holds open files, no other state.

    Args:
        index: the corpus.
        items: its trees.
        schedule: who reads what.
        processor: images and texts to model inputs.
        quarantine: the books of bad samples.
        rank: whose batches these are.
        text_gsd_m: GSD by image id that baseline B3 is told instead of the metadata's.
        scale_donor: row whose metadata a row is told instead of its own, for `controls.shuffle_gsd`.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        items: Items,
        schedule: Schedule,
        processor: Processor,
        quarantine: Quarantine,
        rank: int = 0,
        text_gsd_m: Mapping[str, float] | None = None,
        scale_donor: Mapping[int, int] | None = None,
    ) -> None:
        self.index, self.items, self.schedule, self.processor = index, items, schedule, processor
        self.quarantine, self.rank, self.text_gsd_m = quarantine, rank, text_gsd_m or {}
        self.scale_donor = scale_donor or {}
        self._reader = ShardReader(index)

    def __len__(self) -> int:
        return self.schedule.steps_per_epoch

    def __getitem__(self, step: int) -> StepBatch:
        epoch = step // self.schedule.steps_per_epoch
        planned = self.schedule.micro_batches(step, self.rank)
        decoded: dict[int, tuple[Sample, tuple[ProcessedImage, ...]] | None] = {}
        read = [[self._tree(item, epoch, decoded) for item in micro] for micro in planned]
        trees = [[tree for tree in micro if tree is not None] for micro in read]
        spares = [] if all(trees) else [self._spare(step, epoch, trees, decoded)]
        micro = tuple(collate(some) if some else collate(spares).weightless() for some in trees)
        real = [batch for batch, some in zip(micro, trees, strict=True) if some]
        computed = sum(map(_padded, micro))
        n_tokens = sum(len(batch.input_ids_T) for batch in real)
        return StepBatch(
            step=step,
            epoch=epoch,
            micro=micro,
            n_supervised=sum(int(batch.supervised_T.sum()) for batch in real),
            nll_weight=sum(tree.nll_weight for tree in chain(*trees)),
            n_questions=sum(len(batch.branches) for batch in real),
            n_tokens=n_tokens,
            n_padded=computed - n_tokens,
            n_dropped_branches=sum(int(self.items.dropped_N[item]) for item in chain(*planned)),
            n_holes=sum(tree is None for tree in chain(*read)),
        )

    def _spare(
        self,
        step: int,
        epoch: int,
        trees: list[list[Tree]],
        decoded: dict[int, tuple[Sample, tuple[ProcessedImage, ...]] | None],
    ) -> Tree:
        own = min(chain(*trees), key=lambda tree: tree.n_tokens, default=None)
        candidates = (self._tree(item, epoch, decoded) for item in self.schedule.spares(step))
        spare = own or next((tree for tree in candidates if tree is not None), None)
        if spare is None:
            raise QuarantineLimitError("no readable image is left", file=self.index.root, remedy="rebuild the corpus")
        return spare

    def _tree(
        self, item: int, epoch: int, decoded: dict[int, tuple[Sample, tuple[ProcessedImage, ...]] | None]
    ) -> Tree | None:
        row = int(self.items.row_N[item])
        try:
            if row not in decoded:
                decoded[row] = None
                decoded[row] = self._read(row)
                self.quarantine.good()
            found = decoded[row]
            if found is None:
                return None
            sample, images = found
            return encode_tree(
                sample,
                images,
                [sample.qas[q] for q in self.items.questions(item)],
                self.processor,
                boundaries=self.index.boundaries,
                epoch=epoch,
                n_parts=int(self.items.n_parts_N[item]),
                text_gsd_m=self.text_gsd_m.get(sample.image_id),
            )
        except (SampleError, GsdError) as error:
            self.quarantine.bad(row, self.index.where(row), error)
            return None

    def _read(self, row: int) -> tuple[Sample, tuple[ProcessedImage, ...]]:
        sample, stored = self._reader.read_all(row)
        if row in self.scale_donor:
            sample = with_scale_of(sample, self._reader.read_sample(self.scale_donor[row]))
        return sample, tuple(self.processor.image(image.rgb()) for image in stored)


class StepSampler(DistributedSampler[int]):
    """Global steps from where training stands to the end of its epoch; its length is always a whole epoch.

    A subclass of `DistributedSampler` in name only: the plan already says what every rank reads, and Lightning wraps
    any other sampler in one of its own under DDP, which would drop steps in silence.

    Args:
        steps_per_epoch: S of the plan.
        position: the global step at which to go on, asked at the start of every pass.
    """

    def __init__(self, steps_per_epoch: int, position: Callable[[], int]) -> None:
        self._steps_per_epoch, self._position = steps_per_epoch, position

    def __iter__(self) -> Iterator[int]:
        step = self._position()
        return iter(range(step, (step // self._steps_per_epoch + 1) * self._steps_per_epoch))

    def __len__(self) -> int:
        return self._steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Ignored: the global step alone decides."""


OUTLAST_S = 300
"""Seconds that a worker which is told to end stays: longer than a run that is told the same takes to save and leave."""


def outlast_a_stop(worker: int) -> None:  # noqa: ARG001
    """A signal to a whole process group (`timeout`, systemd, SLURM) reaches the workers too, whom the step still needs.

    The run ends them; SIGUSR1, which asks for a requeue, is none of their business. Nor is the run's pipe of signals.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(OUTLAST_S))


class StepLoader(DataLoader[StepBatch]):
    """A DataLoader that resumes by itself, and says so to Lightning, which would warn otherwise.

    It keeps no state: `StepSampler` asks where training stands.
    """

    def state_dict(self) -> dict[str, int]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


def from_the_start() -> int:
    """Position of every pass that is not training's."""
    return 0


def make_loader(
    dataset: StepDataset, position: Callable[[], int], *, num_workers: int, timeout_s: float, pin: bool
) -> StepLoader:
    """A loader of whole steps; the same batches in the same order for any number of workers.

    Args:
        dataset: one rank's steps.
        position: global step at which a pass starts.
        num_workers: processes that read ahead, 0 for none.
        timeout_s: a worker that is silent for longer is an error (a stopped worker would hang for ever).
        pin: hand batches out in pinned memory, for a GPU to fetch.
    """
    return StepLoader(
        dataset,
        batch_size=None,
        sampler=StepSampler(len(dataset), position),
        num_workers=num_workers,
        timeout=timeout_s if num_workers else 0,
        pin_memory=pin,
        worker_init_fn=outlast_a_stop,
    )


def _padded(batch: TreeBatch) -> int:
    return padded_positions(len(batch.trees), batch.max_prefix_len, len(batch.branches), batch.max_branch_len)
