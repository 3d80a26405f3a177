"""Losses are raw sums with the right gradient, in float32, blind to weightless images."""

import math

import pytest
import torch

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.losses import gaussian_nll, lambda_eff, vlm_cross_entropy_sum


def test_nll_is_the_negative_log_density() -> None:
    mu, log_var, s = torch.tensor([0.2, -1.0]), torch.tensor([-3.0, 1.0]), torch.tensor([0.5, -0.4])
    expected = -torch.distributions.Normal(mu, (log_var / 2).exp()).log_prob(s)
    weight = torch.tensor([1.0, 0.5])
    assert torch.allclose(gaussian_nll(mu, log_var, s, weight), (weight * expected).sum())


def test_unknown_gsd_with_weight_zero_leaves_no_trace() -> None:
    mu = torch.tensor([0.2, 5.0], requires_grad=True)
    log_var = torch.tensor([-1.0, 2.0], requires_grad=True)
    loss = gaussian_nll(mu, log_var, torch.tensor([0.1, math.nan]), torch.tensor([1.0, 0.0]))
    loss.backward()
    alone = gaussian_nll(mu[:1], log_var[:1], torch.tensor([0.1]), torch.ones(1))
    assert torch.equal(loss, alone)
    assert mu.grad is not None
    assert mu.grad[1] == 0
    assert torch.isfinite(mu.grad).all()
    assert log_var.grad is not None
    assert log_var.grad[1] == 0


def test_a_trusted_nan_is_loud() -> None:
    assert gaussian_nll(torch.zeros(1), torch.zeros(1), torch.tensor([math.nan]), torch.ones(1)).isnan()


def test_nll_is_least_at_the_calibrated_variance() -> None:
    log_var = torch.linspace(-6, 2, 801)
    loss = torch.stack([gaussian_nll(torch.zeros(1), v[None], torch.tensor([0.3]), torch.ones(1)) for v in log_var])
    assert log_var[loss.argmin()].item() == pytest.approx(2 * math.log(0.3), abs=0.01)


def test_cross_entropy_is_a_float32_sum_that_splits() -> None:
    logits, target = torch.randn(50, 11).bfloat16(), torch.randint(0, 11, (50,))
    whole = vlm_cross_entropy_sum(logits, target)
    parts = vlm_cross_entropy_sum(logits[:20], target[:20]) + vlm_cross_entropy_sum(logits[20:], target[20:])
    assert whole.dtype == torch.float32
    assert torch.allclose(whole, parts)
    assert torch.allclose(whole, -logits.float().log_softmax(-1)[torch.arange(50), target].sum())


def test_nothing_supervised_is_zero_with_a_graph() -> None:
    logits = torch.randn(0, 11, requires_grad=True)
    loss = vlm_cross_entropy_sum(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None


def test_lambda_ramps_linearly_from_zero() -> None:
    assert [lambda_eff(step, 0.5, 4) for step in (0, 1, 2, 4, 400)] == [0.0, 0.125, 0.25, 0.5, 0.5]
    assert lambda_eff(0, 0.5, 0) == 0.5
    with pytest.raises(ConfigError, match="lambda_gsd"):
        lambda_eff(0, -1.0, 4)
