import numpy as np
import pytest
import torch

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.data.packing import CPU_TOKEN_BUDGET, auto_token_budget, fill, pack_step, split_ranks


def step_of(n_trees, seed=0):
    rng = np.random.default_rng(seed)
    prefix, branch = rng.integers(10, 100, n_trees), rng.integers(10, 40, n_trees)
    return prefix + branch * rng.integers(1, 9, n_trees), prefix, branch


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("n_trees", [1, 3, 40])
@pytest.mark.parametrize("budget", [400, 1000, 10**6])
def test_every_tree_is_delivered_once_to_equally_many_micro_batches(world_size, n_trees, budget):
    cost, prefix, branch = step_of(n_trees)
    packed = pack_step(cost, prefix, branch, world_size=world_size, budget=budget)
    assert len(packed) == world_size
    assert len({len(micros) for micros in packed}) == 1
    assert sorted(p for micros in packed for micro in micros for p in micro) == list(range(n_trees))
    assert all(cost[list(micro)].sum() <= budget for micros in packed for micro in micros)


def test_ranks_are_balanced_by_tokens():
    cost, prefix, _ = step_of(64)
    loads = [cost[share].sum() for share in split_ranks(cost, prefix, 8)]
    assert max(loads) - min(loads) <= 2 * cost.max()
    assert max(loads) < 1.1 * np.mean(loads)


def test_visual_tokens_are_balanced_where_tokens_alone_would_not_do_it():
    """Every second tree is nearly all image, the others nearly all text: equal tokens, unequal work of the tower."""
    prefix = np.tile([900, 100], 16)
    cost = np.full(32, 1_000)
    visual = [prefix[share].sum() for share in split_ranks(cost, prefix, 2)]
    by_tokens_alone = [prefix[share].sum() for share in split_ranks(cost, np.zeros_like(prefix), 2)]
    assert max(by_tokens_alone) == 16 * 900
    assert max(visual) == min(visual)


def test_sorting_by_length_saves_padding():
    cost, prefix, branch = step_of(64)

    def padding(micros):
        return sum(len(m) * prefix[list(m)].max() for m in micros)

    (by_length,) = pack_step(cost, prefix, branch, world_size=1, budget=1000)
    assert padding(by_length) < padding(fill(list(range(64)), cost, 1000))


def test_a_tree_over_the_budget_is_refused():
    with pytest.raises(ConfigError, match="budget"):
        fill([0, 1], np.array([10, 30]), 20)


def test_auto_budget_without_a_gpu(monkeypatch):
    """Asked for the device of the run, whatever else the host has."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (80 * 2**30, 80 * 2**30))
    assert auto_token_budget(torch.device("cpu")) == CPU_TOKEN_BUDGET
    assert 4_096 < auto_token_budget(torch.device("cuda")) < 8_192
