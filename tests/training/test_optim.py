import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scaleearth_pl.core.errors import ConfigError, TargetModuleError
from scaleearth_pl.training.base import TreeTraining
from scaleearth_pl.training.optim import OptimConfig, build_optimizer, clip_groups, parameter_groups, warmup_cosine


def test_schedule_rises_linearly_and_ends_at_the_floor():
    factors = [warmup_cosine(s, total_steps=100, warmup_share=0.1, final_lr_share=0.2) for s in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.2)
    assert factors[55] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_groups_take_their_factor_and_vectors_no_decay():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    config = OptimConfig(lr=0.1, lr_factors={"thresholds": 3.0}, weight_decay=0.5)
    groups = parameter_groups(config, {"adapters": [matrix], "thresholds": [vector]})
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("adapters", 0.1, 0.5),
        ("thresholds", pytest.approx(0.3), 0.0),
    ]


def test_unknown_factor_and_empty_group_are_refused():
    with pytest.raises(ConfigError, match="unknown group"):
        parameter_groups(OptimConfig(lr_factors={"thresholdz": 2.0}), {"adapters": [nn.Parameter(torch.ones(1))]})
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(TargetModuleError, match="nothing to train"):
        parameter_groups(OptimConfig(), {"adapters": [frozen]})


def test_a_spike_in_one_group_does_not_shrink_another():
    quiet, loud = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer, _ = build_optimizer(OptimConfig(), {"adapters": [quiet], "sse_u": [loud]}, total_steps=10)
    quiet.grad, loud.grad = torch.full((2, 2), 0.25), torch.full((2, 2), 100.0)
    norms = clip_groups(optimizer, clip_norm=1.0)
    assert norms["adapters"] == pytest.approx(0.5)
    assert norms["sse_u"] == pytest.approx(200.0)
    assert torch.equal(quiet.grad, torch.full((2, 2), 0.25))
    assert float(loud.grad.norm()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "total"), [(4, None, 4), (4, -1, 4), (-1, 2, 6), (4, 2, 4), (4, 1, 3)]
)
def test_a_run_ends_at_the_bound_that_comes_first(max_steps: int, max_epochs: int | None, total: int) -> None:
    """Three steps an epoch; the schedule ends with the run."""
    assert steps_of(max_steps, max_epochs) == total


@pytest.mark.parametrize("max_epochs", [None, -1])
def test_a_run_without_a_bound_is_refused(max_epochs: int | None) -> None:
    with pytest.raises(ConfigError, match="no end"):
        steps_of(-1, max_epochs)


def steps_of(max_steps: int, max_epochs: int | None) -> int:
    trainer = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs)
    module = SimpleNamespace(trainer=trainer, datamodule=SimpleNamespace(steps_per_epoch=3))
    return TreeTraining.total_steps.fget(module)
