import os
import resource
import shutil
import signal
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from fakes.corpus import make_fake_corpus
from torch.utils.data.distributed import DistributedSampler

from scaleearth_pl.core.batch import StepBatch, TreeBatch
from scaleearth_pl.core.errors import QuarantineLimitError
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.data.steps import StepSampler

ARGS = {"global_batch_tokens": 1200, "micro_token_budget": 700, "max_branches": 4, "min_pixels": 1024}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_fake_corpus(tmp_path_factory.mktemp("steps") / "c", 30, n_val=7, with_unknown=True, n_questions=6)


def module(root, rank=0, world_size=1, **changes):
    return GeoScaleDataModule(root=str(root), **{**ARGS, **changes}).setup_for(rank, world_size)


def questions(batch: StepBatch) -> list[tuple[str, str]]:
    return [
        (micro.trees[b.tree].image_id, b.qa_id) for micro in batch.micro if not micro.is_filler for b in micro.branches
    ]


def same_batch(a: TreeBatch, b: TreeBatch) -> bool:
    for field in fields(TreeBatch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(x.nan_to_num(-9.0), y.nan_to_num(-9.0)) if isinstance(x, torch.Tensor) else x == y
        if not same:
            return False
    return True


def same_step(a: StepBatch, b: StepBatch) -> bool:
    counts = [f.name for f in fields(StepBatch) if f.name != "micro"]
    return (
        all(getattr(a, name) == getattr(b, name) for name in counts)
        and len(a.micro) == len(b.micro)
        and all(same_batch(x, y) for x, y in zip(a.micro, b.micro, strict=True))
    )


def planned(dm, epoch=0):
    plan, index = dm.split_plan("train").plan, dm.index
    order, _ = plan.epoch(epoch)
    return Counter(
        (index.text["image_id"][int(plan.items.row_N[i])], f"q{q}") for i in order for q in plan.items.questions(i)
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_same_bytes_for_any_number_of_workers(corpus, num_workers):
    alone = list(module(corpus).train_dataloader())
    loader = module(corpus, num_workers=num_workers).train_dataloader()
    assert len(loader) == len(alone)
    assert all(same_step(a, b) for a, b in zip(alone, loader, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("weights", [None, {"high": 2.0, "mid": 0.5}])
def test_what_is_delivered_is_what_was_planned(corpus, world_size, weights):
    ranks = [module(corpus, rank, world_size, tier_weights=weights) for rank in range(world_size)]
    whole = module(corpus, tier_weights=weights)
    for epoch in range(2):
        delivered = Counter()
        for step in range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch):
            batches = [dm.step_batch(step) for dm in ranks]
            here = Counter(q for batch in batches for q in questions(batch))
            assert here == Counter(questions(whole.step_batch(step)))
            assert len({len(batch.micro) for batch in batches}) == 1
            delivered += here
        assert delivered == planned(whole, epoch)


def test_the_budget_changes_neither_order_nor_content(corpus):
    small, large = module(corpus), module(corpus, micro_token_budget=10**6)
    auto = module(corpus, micro_token_budget="auto")
    assert small.steps_per_epoch == large.steps_per_epoch == auto.steps_per_epoch
    for step in range(small.steps_per_epoch):
        a, b, c = (dm.step_batch(step) for dm in (small, large, auto))
        assert Counter(questions(a)) == Counter(questions(b)) == Counter(questions(c))
        assert (a.n_supervised, a.nll_weight) == pytest.approx((b.n_supervised, b.nll_weight))
        assert len(b.micro) == 1
    assert max(len(small.step_batch(s).micro) for s in range(small.steps_per_epoch)) > 1


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("budget", [500, 10**6])
def test_the_largest_micro_batch_is_bounded(corpus, world_size, budget):
    dm = module(corpus, 0, world_size, micro_token_budget=budget)
    schedule = dm.dataset().schedule
    cost_N = dm.split_plan("train").items.cost_N
    steps = range(2 * schedule.steps_per_epoch)
    largest = max(int(cost_N[list(m)].sum()) for s in steps for micros in schedule.all_ranks(s) for m in micros)
    assert largest <= dm.micro_tokens <= budget
    if budget == 10**6:
        assert dm.micro_tokens < 3 * largest


def test_normalisers_add_up_over_ranks(corpus):
    whole = module(corpus)
    for step in (0, 3):
        parts = [module(corpus, rank, 4).step_batch(step) for rank in range(4)]
        for name in ("n_supervised", "nll_weight", "n_questions", "n_tokens", "n_dropped_branches", "n_holes"):
            total = sum(getattr(part, name) for part in parts)
            assert total == pytest.approx(getattr(whole.step_batch(step), name))


def test_counts_are_honest(corpus):
    batch = module(corpus, 1, 2).step_batch(2)
    real = [m for m in batch.micro if not m.is_filler]
    assert batch.n_supervised == sum(int(m.supervised_T.sum()) for m in batch.micro)
    assert batch.nll_weight == pytest.approx(sum(float(m.nll_weight_G.sum()) for m in batch.micro))
    assert batch.n_tokens == sum(len(m.input_ids_T) for m in real)
    computed = sum(
        len(m.prefix_len_G) * int(m.prefix_len_G.max()) + len(m.branch_len_B) * int(m.branch_len_B.max())
        for m in batch.micro
    )
    assert batch.n_padded == computed - batch.n_tokens


def test_an_image_counts_once_in_the_nll_however_it_was_split(corpus):
    dm = module(corpus, max_branches=2)
    weights = Counter()
    for step in range(dm.steps_per_epoch):
        for micro in dm.step_batch(step).micro:
            for tree, weight in zip(micro.trees, micro.nll_weight_G.tolist(), strict=True):
                weights[tree.image_id] += weight
    assert set(np.round([*weights.values()], 5)) == {0.0, 0.5, 1.0}


def test_more_ranks_than_trees_run_weightless_copies(tmp_path):
    root = make_fake_corpus(tmp_path / "c", 3)
    ranks = [module(root, rank, 8, global_batch_tokens=10**6) for rank in range(8)]
    batches = [dm.step_batch(0) for dm in ranks]
    idle = [batch for batch in batches if batch.n_questions == 0]
    assert len(idle) == 8 - len(ranks[0].split_plan("train").items)
    assert idle
    for batch in idle:
        assert batch.n_supervised == 0
        assert batch.nll_weight == 0
        assert batch.n_tokens == 0
        assert batch.n_padded > 0
        assert all(m.is_filler and not m.supervised_T.any() for m in batch.micro)


@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_asks_every_question_once_in_order(corpus, world_size):
    ranks = [module(corpus, rank, world_size, micro_token_budget=500) for rank in range(world_size)]
    loaders = [list(dm.val_dataloader()) for dm in ranks]
    assert len({len(loader) for loader in loaders}) == 1
    asked = [q for step in zip(*loaders, strict=True) for batch in step for q in questions(batch)]
    plan, index = ranks[0].split_plan("val"), ranks[0].index
    rows = plan.items.row_N
    expected = [
        (index.text["image_id"][int(rows[n])], f"q{q}") for n in range(len(plan.items)) for q in plan.items.questions(n)
    ]
    assert asked == expected
    assert len(asked) == int(index.number["n_questions"][index.rows(("val",))].sum())


def test_a_step_of_many_micro_batches_needs_few_open_files(corpus):
    dm = module(corpus, global_batch_tokens=1_000_000, micro_token_budget=300, num_workers=1, loader_timeout_s=20.0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, limits[1]))
    try:
        (step,) = dm.train_dataloader()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(step.micro) > 20
    assert same_step(step, dm.step_batch(0))


def damage(root, rows):
    index = ShardIndex.load(root)
    for row in rows:
        path = root / index.shards[index.shard_of_row[row]].file
        data = bytearray(path.read_bytes())
        data[int(index.number["image_offset"][row]) + 40] ^= 1
        path.write_bytes(data)
    return [index.text["image_id"][row] for row in rows]


def test_a_bad_image_leaves_a_counted_hole(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path / "c")
    (bad,) = damage(root, [int(ShardIndex.load(root).rows(("train",))[4])])
    whole, holed = module(corpus), module(root, max_bad_share=0.1)
    holes = 0
    for step in range(whole.steps_per_epoch):
        a, b = whole.step_batch(step), holed.step_batch(step)
        assert Counter(questions(b)) == Counter(q for q in questions(a) if q[0] != bad)
        holes += b.n_holes
    rows = whole.split_plan("train").items.row_N
    assert holes == (rows == whole.index.text["image_id"].index(bad)).sum()


def test_a_step_of_bad_images_runs_weightless(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path / "c")
    clean = module(corpus)
    first = clean.split_plan("train").plan.step_items(0)
    damage(root, sorted({int(row) for row in clean.split_plan("train").items.row_N[first]}))
    batch = module(root, max_bad_share=1.0).step_batch(0)
    assert batch.n_holes == len(first)
    assert batch.n_questions == 0
    assert all(m.is_filler for m in batch.micro)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_images_stop_the_run(corpus, tmp_path, num_workers):
    root = shutil.copytree(corpus, tmp_path / "c")
    damage(root, [int(row) for row in ShardIndex.load(root).rows(("train",))[:5]])
    with pytest.raises(QuarantineLimitError, match="max_bad_share"):
        list(module(root, max_bad_share=0.1, num_workers=num_workers).train_dataloader())


def test_the_sampler_goes_on_where_training_stands():
    position = [7]
    sampler = StepSampler(5, lambda: position[0])
    assert list(sampler) == [7, 8, 9]
    position[0] = 10
    assert list(sampler) == [10, 11, 12, 13, 14]
    assert len(sampler) == 5
    # Lightning leaves such a sampler alone under DDP and would wrap any other.
    assert isinstance(sampler, DistributedSampler)


def test_a_signal_to_the_whole_process_group_leaves_the_workers_at_their_work(corpus):
    """`timeout` and systemd send SIGTERM to everybody: a step that is to be saved first still needs its batch."""
    data = module(corpus, num_workers=1)
    batches = iter(data.train_dataloader())
    first = next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    rest = [*batches]
    assert 1 + len(rest) == data.steps_per_epoch > 3
    assert questions(first) == questions(data.step_batch(0))
    assert questions(rest[-1]) == questions(data.step_batch(data.steps_per_epoch - 1))
