"""SSE-U: pooling, range, precision, texture, and that it can learn."""

import math

import pytest
import torch

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.gsd_head import LOG_VAR_AT_START, MU_AT_START, GsdHead, GsdHeadConfig, pool
from scaleearth_pl.model.losses import gaussian_nll

DIMS = (6, 10)


def levels(sizes: list[int], seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Two levels with four times as many tokens in the first, as before and after the merger."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes) * k) for k in (4, 1)]
    return [torch.randn(len(r), d, generator=generator) for r, d in zip(rows, DIMS, strict=True)], rows


def make(**settings: object) -> GsdHead:
    torch.manual_seed(0)
    return GsdHead(GsdHeadConfig(hidden=16, **settings), DIMS)


def test_pooling_equals_mean_and_deviation_of_each_image() -> None:
    sizes = [3, 1, 5]
    x = torch.randn(9, 4) + 100
    pooled = pool(x, torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)), 3)
    for row, part in zip(pooled, x.split(sizes), strict=True):
        expected = torch.cat([part.mean(0), part.std(0, unbiased=False)])
        assert torch.allclose(row, expected, atol=1.1e-3), "the epsilon moves a deviation by at most 1e-3"
    shuffled = torch.randperm(9)
    rows = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    assert torch.allclose(pool(x[shuffled], rows[shuffled], 3), pooled, atol=1e-4)


def test_an_even_image_has_a_finite_gradient() -> None:
    x = torch.ones(5, 4, requires_grad=True)
    pool(x, torch.zeros(5, dtype=torch.long), 1).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_images_do_not_mix() -> None:
    head = make()
    features, rows = levels([3, 2, 4])
    mu_G, log_var_G = head(features, rows, 3)
    for i in range(3):
        alone = [x[r == i] for x, r in zip(features, rows, strict=True)]
        mu, log_var = head(alone, [torch.zeros(len(x), dtype=torch.long) for x in alone], 1)
        assert torch.allclose(mu_G[i], mu[0], atol=1e-6)
        assert torch.allclose(log_var_G[i], log_var[0], atol=1e-6)


def test_starts_near_two_metres_give_or_take_the_prior() -> None:
    features, rows = levels([5] * 40)
    mu_G, log_var_G = make()(features, rows, 40)
    assert (mu_G - MU_AT_START).abs().max() < 0.5
    assert mu_G.std() > 0
    assert (log_var_G - LOG_VAR_AT_START).abs().max() < 0.5


@pytest.mark.parametrize("bias", [-30.0, -9.0, 0.0, 4.0, 30.0])
def test_log_variance_keeps_to_its_range_with_a_gradient(bias: float) -> None:
    head = make(log_var_min=-9.0, log_var_max=4.0)
    features, rows = levels([5] * 3)
    with torch.no_grad():
        head.last.bias[1] = bias
    log_var_G = head(features, rows, 3)[1]
    log_var_G.sum().backward()
    assert ((log_var_G >= -9) & (log_var_G <= 4)).all()
    assert head.last.bias.grad is not None
    assert head.last.bias.grad[1] > 0


def test_always_float32() -> None:
    features, rows = levels([5, 3])
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        head = make()
    finally:
        torch.set_default_dtype(before)
    torch.nn.Sequential(head).to(torch.bfloat16)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    features = [x.bfloat16() for x in features]
    plain = head(features, rows, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = head(features, rows, 2)
    assert plain[0].dtype == plain[1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(plain, under_autocast, strict=True))


def scenes(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """100 images in half of whose channels contrast is GSD, and 100 ("open water") that look alike at any."""
    generator = torch.Generator().manual_seed(seed)
    s_G = torch.rand(200, generator=generator) - 0.5
    cue_G = torch.arange(200) % 2 == 0
    rows = [torch.arange(200).repeat_interleave(k) for k in (16, 4)]
    contrast_G = torch.where(cue_G, 10**s_G, torch.ones(200))
    noise = [torch.randn(len(r), d, generator=generator) for r, d in zip(rows, DIMS, strict=True)]
    for x, r in zip(noise, rows, strict=True):
        x[:, ::2] *= contrast_G[r, None]
        x[:, 1] += 2 * cue_G[r]
    return noise, rows, s_G, cue_G


def test_learns_a_scale_that_shows_in_the_contrast_and_admits_where_it_does_not() -> None:
    head = make()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for step in range(150):
        features, rows, s_G, _ = scenes(step)
        optimizer.zero_grad()
        gaussian_nll(*head(features, rows, 200), s_G, torch.full((200,), 1 / 200)).backward()
        optimizer.step()
    features, rows, s_G, cue_G = scenes(10_000)
    mu_G, log_var_G = head(features, rows, 200)
    sigma_G = (log_var_G / 2).exp()
    assert (mu_G - s_G)[cue_G].abs().mean() < 0.1
    assert sigma_G[~cue_G].mean() > 3 * sigma_G[cue_G].mean()
    assert sigma_G[~cue_G].mean().item() == pytest.approx(1 / 12**0.5, rel=0.15), "a uniform draw's deviation"


def test_with_texture_images_do_not_mix_and_every_parameter_learns() -> None:
    head = make(texture=True, depth=3)
    features, rows = levels([3, 2, 4])
    mu_G, log_var_G = head(features, rows, 3)
    alone = [x[r == 1] for x, r in zip(features, rows, strict=True)]
    mu, log_var = head(alone, [torch.zeros(len(x), dtype=torch.long) for x in alone], 1)
    assert torch.allclose(mu_G[1], mu[0], atol=1e-6)
    assert torch.allclose(log_var_G[1], log_var[0], atol=1e-6)
    gaussian_nll(mu_G, log_var_G, torch.zeros(3), torch.ones(3)).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in head.parameters())


def test_texture_keeps_its_size_and_the_other_levels_lose_theirs() -> None:
    head = make(texture=True)
    features, rows = levels([30, 30])
    mu_G = head(features, rows, 2)[0]
    assert not torch.allclose(head([2 * features[0], features[1]], rows, 2)[0], mu_G, atol=1e-4)
    assert torch.allclose(head([features[0], 2 * features[1]], rows, 2)[0], mu_G, atol=1e-5)


def test_other_levels_than_it_was_built_for_are_refused() -> None:
    features, rows = levels([2])
    with pytest.raises(ConfigError, match="widths"):
        make()(features[::-1], rows, 1)
    for bounds in ({"log_var_min": math.inf}, {"log_var_min": -math.inf}, {"log_var_max": math.inf}):
        with pytest.raises(ConfigError, match="log variance"):
            GsdHeadConfig(**bounds)
    with pytest.raises(ConfigError, match="hidden layer"):
        GsdHeadConfig(depth=0)
