import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Tier, TierBoundaries
from scaleearth_pl.data.lengths import Lengths
from scaleearth_pl.data.plan import PlanSettings, TrainPlan, make_items
from scaleearth_pl.data.shards import ShardIndex, ShardRecord


def fake_index(n_rows: int, per_shard: int = 50) -> ShardIndex:
    """An index in memory: tiers in thirds, no files."""
    shards, start = [], 0
    for tier, count in zip(
        (Tier.HIGH, Tier.MID, Tier.LOW), np.diff([0, n_rows // 3, n_rows // 2, n_rows]), strict=True
    ):
        for number, first in enumerate(range(0, int(count), per_shard)):
            stop = start + min(per_shard, int(count) - first)
            shards.append(
                ShardRecord(
                    file=f"train/{tier}/{number:05d}.tar",
                    split="train",
                    tier=tier,
                    n_bytes=0,
                    sha256="",
                    start=start,
                    stop=stop,
                )
            )
            start = stop
    return ShardIndex(
        root=Path("nowhere"),
        corpus="fake",
        boundaries=TierBoundaries(),
        content_hash="",
        hash="h",
        shards=tuple(shards),
        text={
            name: tuple(f"{name}{n % 2}" if name == "source" else str(n) for n in range(n_rows))
            for name in ("key", "image_id", "source", "ext")
        },
        number={},
        shard_of_row=np.repeat(np.arange(len(shards)), [s.stop - s.start for s in shards]),
    )


def fake_lengths(n_rows: int, n_questions: tuple[int, int], seed: int = 0) -> Lengths:
    rng = np.random.default_rng(seed)
    counts = rng.integers(*n_questions, n_rows)
    branch = rng.integers(10, 40, counts.sum())
    return Lengths(
        key="k",
        rows=np.arange(n_rows),
        prefix_R=rng.integers(10, 100, n_rows),
        first_Q=np.concatenate([[0], np.cumsum(counts)]),
        branch_Q=branch,
        rejected=(),
    )


def settings(**changes) -> PlanSettings:
    base = {
        "seed": 0,
        "global_batch_tokens": 4000,
        "max_branches": 8,
        "max_branch_tokens": 100,
        "window_shards": 2,
        "reserve_tokens": 16,
    }
    return PlanSettings(**{**base, **changes})


def make_plan(n_rows: int = 300, n_questions: tuple[int, int] = (1, 30), **changes) -> TrainPlan:
    chosen = settings(**changes)
    return TrainPlan(fake_index(n_rows), make_items(fake_lengths(n_rows, n_questions), chosen), chosen)


def delivered(plan: TrainPlan, epoch: int) -> list[int]:
    first = epoch * plan.steps_per_epoch
    return [int(i) for step in range(first, first + plan.steps_per_epoch) for i in plan.step_items(step)]


def test_trees_hold_every_question_once_in_parts_of_near_equal_size():
    lengths = fake_lengths(200, (1, 60))
    items = make_items(lengths, settings(max_branches=8))
    asked = Counter((int(items.row_N[n]), q) for n in range(len(items)) for q in items.questions(n))
    assert asked == Counter((r, q) for r in range(200) for q in range(int(lengths.n_questions_R[r])))
    sizes = items.last_N - items.first_N
    assert sizes.max() <= 8
    for row in range(200):
        parts = sizes[items.row_N == row]
        assert parts.max() - parts.min() <= 1
        assert len(parts) == items.n_parts_N[items.row_N == row][0] == -(-lengths.n_questions_R[row] // 8)


def test_costs_are_prefix_reserve_and_branches():
    lengths = fake_lengths(50, (1, 30))
    items = make_items(lengths, settings())
    for n in range(len(items)):
        row = int(items.row_N[n])
        branches = lengths.branch_Q[lengths.first_Q[row] : lengths.first_Q[row + 1]][items.questions(n)]
        assert items.cost_N[n] == lengths.prefix_R[row] + 16 + branches.sum()
        assert items.branch_N[n] == branches.max()
        assert items.prefix_N[n] == lengths.prefix_R[row] + 16


def test_long_questions_are_dropped_whole_and_counted():
    lengths = fake_lengths(100, (1, 4))
    items = make_items(lengths, settings(max_branch_tokens=20))
    assert len(items.question_Q) == (lengths.branch_Q <= 20).sum()
    without = set(range(100)) - set(items.row_N.tolist())
    lost = sum(int(lengths.n_questions_R[row]) for row in without)
    assert without
    assert items.dropped_N.sum() + lost == (lengths.branch_Q > 20).sum()


def test_an_epoch_delivers_every_tree_once():
    plan = make_plan()
    for epoch in range(3):
        assert sorted(delivered(plan, epoch)) == list(range(len(plan.items)))
    assert delivered(plan, 0) != delivered(plan, 1)


def test_steps_are_constant_never_empty_and_near_the_wanted_size():
    plan = make_plan(tier_weights={"high": 0.4, "low": 1.7})
    assert plan.steps_per_epoch == round(plan.tokens_per_epoch / 4000)
    costs = [plan.items.cost_N[plan.step_items(step)].sum() for step in range(3 * plan.steps_per_epoch)]
    assert min(costs) > 0
    assert abs(np.mean(costs) / 4000 - 1) < 0.05
    assert max(costs) < 4000 + 2 * plan.items.cost_N.max()


@pytest.mark.parametrize("n_tokens", [1, 50, 10**9])
def test_extreme_batch_sizes_still_have_full_steps(n_tokens):
    plan = make_plan(40, global_batch_tokens=n_tokens)
    assert all(len(plan.step_items(step)) for step in range(plan.steps_per_epoch))
    assert sorted(delivered(plan, 0)) == list(range(len(plan.items)))
    assert plan.steps_per_epoch == (1 if n_tokens == 10**9 else 40)


def test_the_plan_is_a_pure_function_of_seed_and_step():
    a, b, c = make_plan(), make_plan(), make_plan(seed=1)
    steps = np.random.default_rng(0).permutation(4 * a.steps_per_epoch).tolist()
    forward = {step: a.step_items(step).tolist() for step in sorted(steps)}
    assert all(b.step_items(step).tolist() == forward[step] for step in steps)
    assert any(c.step_items(step).tolist() != forward[step] for step in steps)


def test_windows_keep_reads_local_and_mix_tiers():
    plan = make_plan(3000, (1, 5), window_shards=6)
    order, _ = plan.epoch(0)
    shard = plan.index.shard_of_row[plan.items.row_N[order]]
    seen_at = {s: np.flatnonzero(shard == s) for s in range(len(plan.index.shards))}
    widest = max(places[-1] - places[0] for places in seen_at.values())
    assert widest < 6 * 60 * 1.2
    tiers = np.array([plan.index.tier_of_row(row) for row in plan.items.row_N[order].tolist()])
    for quarter in np.array_split(tiers, 4):
        assert abs((quarter == Tier.LOW).mean() - (tiers == Tier.LOW).mean()) < 0.15


def test_weights_repeat_by_design_and_epochs_complement_each_other():
    plan = make_plan(tier_weights={"high": 2.0, "mid": 0.5, "low": 0.0})
    counts = Counter(plan.items.row_N[delivered(plan, 0)].tolist())
    both = counts + Counter(plan.items.row_N[delivered(plan, 1)].tolist())
    parts = Counter(plan.items.row_N.tolist())
    for row, n_parts in parts.items():
        tier = plan.index.tier_of_row(row)
        assert both[row] == {Tier.HIGH: 4, Tier.MID: 1, Tier.LOW: 0}[tier] * n_parts
        assert tier is not Tier.HIGH or counts[row] == 2 * n_parts


def test_source_weights_multiply_with_tier_weights():
    plan = make_plan(tier_weights={"high": 2.0}, source_weights={"source1": 0.5})
    counts = Counter(plan.items.row_N[delivered(plan, 0)].tolist())
    n_high = sum(counts[row] > 0 for row in range(100) if row % 2)
    assert n_high == 50
    assert all(counts[row] == 2 * (plan.items.row_N == row).sum() for row in range(0, 100, 2))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tier_weights": {"hihg": 1.0}}, "hihg"),
        ({"tier_weights": {"high": -1.0}}, "tier_weights.high"),
        ({"tier_weights": {"high": float("nan")}}, "tier_weights.high"),
        ({"source_weights": {"nobody": 1.0}}, "nobody"),
        ({"tier_weights": dict.fromkeys(("high", "mid", "low"), 0.0)}, "no image"),
        ({"max_branches": 0}, "max_branches"),
        ({"global_batch_tokens": 0}, "global_batch_tokens"),
    ],
)
def test_impossible_settings_are_named(changes, field):
    with pytest.raises(ConfigError, match=field):
        make_plan(**changes)


def test_a_million_questions_plan_in_a_second():
    start = time.process_time()
    lengths = fake_lengths(15_000, (90, 110))
    made = time.process_time()
    chosen = settings(max_branches=32, global_batch_tokens=65_536)
    plan = TrainPlan(fake_index(15_000, 512), make_items(lengths, chosen), chosen)
    ready = time.process_time()
    plan.epoch(0)
    seconds = time.process_time() - ready
    print(f"lengths {made - start:.2f} s, plan {ready - made:.2f} s, epoch {seconds:.3f} s, {len(plan.items)} trees")
    assert seconds < 1.0
