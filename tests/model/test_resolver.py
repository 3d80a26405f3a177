"""The resolver: who is believed, when, and how firmly."""

import math

import pytest
import torch

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.model.gsd_head import LOG_VAR_AT_START, MU_AT_START
from scaleearth_pl.model.resolver import Resolver, ResolverConfig, fuse

KNOWN = torch.tensor([0.0, 1.0, -0.5, 0.3])
SIGMA = torch.tensor([0.01, 0.05, 0.0, 0.3])
HOLED = torch.tensor([0.0, math.nan, -0.5, math.nan])
HOLED_SIGMA = torch.tensor([0.01, math.nan, 0.0, math.nan])
MU = torch.tensor([0.2, 0.9, -0.4, 0.0])
LOG_VAR = torch.tensor([-4.0, -3.0, -2.0, -1.0])
PREDICTED_SIGMA = (LOG_VAR / 2).exp()
DRAW = torch.tensor([0.05, 0.15, 0.5, 0.95])


def resolve(
    gsd: torch.Tensor = KNOWN,
    sigma: torch.Tensor = SIGMA,
    *,
    mu: torch.Tensor | None = MU,
    log_var: torch.Tensor | None = LOG_VAR,
    share: float = 0.0,
    training: bool = False,
    **config: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    return Resolver(ResolverConfig(**config)).resolve(
        log10_gsd_G=gsd,
        sigma_log10_G=sigma,
        mu_G=mu,
        log_var_G=log_var,
        gate_draw_G=DRAW,
        predicted_share=share,
        training=training,
    )


def test_metadata_is_taken_as_it_is() -> None:
    s, sigma = resolve()
    assert torch.equal(s, KNOWN)
    assert torch.equal(sigma, SIGMA)


def test_metadata_refuses_an_unknown_gsd_in_evaluation_with_the_remedy() -> None:
    with pytest.raises(GsdError, match=r"2 of 4 trees.*'predicted' or 'fused'"):
        resolve(HOLED, HOLED_SIGMA)


def test_unknown_gsd_is_sse_us_word_in_training_and_under_the_other_policies() -> None:
    metadata, predicted, fused = (
        resolve(HOLED, HOLED_SIGMA, training=policy == "metadata", policy=policy)
        for policy in ("metadata", "predicted", "fused")
    )
    for s, sigma in (metadata, predicted, fused):
        assert torch.equal(s[[1, 3]], MU[[1, 3]])
        assert torch.allclose(sigma[[1, 3]], PREDICTED_SIGMA[[1, 3]])
        assert torch.isfinite(s).all()
        assert torch.isfinite(sigma).all()
    assert torch.equal(metadata[0][[0, 2]], HOLED[[0, 2]])


def test_the_share_picks_the_trees_with_the_lowest_draws() -> None:
    s, sigma = resolve(share=0.2, training=True)
    assert torch.equal(s, torch.where(DRAW < 0.2, MU, KNOWN))
    assert torch.equal(sigma, torch.where(DRAW < 0.2, PREDICTED_SIGMA, SIGMA))


def test_fusion_is_the_product_of_gaussians() -> None:
    s, sigma = resolve(policy="fused")
    x = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    for i in (0, 1, 3):
        a = torch.distributions.Normal(KNOWN[i].double(), SIGMA[i].double())
        b = torch.distributions.Normal(MU[i].double(), PREDICTED_SIGMA[i].double())
        density = (a.log_prob(x) + b.log_prob(x)).softmax(0)
        mean = (density * x).sum()
        assert s[i].item() == pytest.approx(mean.item(), abs=1e-4)
        assert sigma[i].item() == pytest.approx((density * (x - mean) ** 2).sum().sqrt().item(), rel=1e-3)
    assert s[2] == KNOWN[2]
    assert sigma[2] == 0


def test_fusion_is_surer_than_either_and_between_both() -> None:
    s, sigma = fuse(KNOWN, SIGMA + 0.1, MU, PREDICTED_SIGMA)
    assert (sigma < torch.minimum(SIGMA + 0.1, PREDICTED_SIGMA)).all()
    assert ((s - KNOWN) * (s - MU) <= 0).all()


def test_spoof_is_one_certain_value_even_where_nothing_is_known() -> None:
    s, sigma = resolve(HOLED, HOLED_SIGMA, policy="spoof", spoof_gsd_m=10.0)
    assert torch.equal(s, torch.ones(4))
    assert torch.equal(sigma, torch.zeros(4))


@pytest.mark.parametrize("policy", ["metadata", "predicted", "fused"])
def test_marginal_off_forgets_sigma_and_nothing_else(policy: str) -> None:
    s, _ = resolve(policy=policy)
    plain_s, plain_sigma = resolve(policy=policy, marginal=False)
    assert torch.equal(s, plain_s)
    assert torch.equal(plain_sigma, torch.zeros(4))


@pytest.mark.parametrize("policy", ["predicted", "fused"])
def test_nothing_flows_back_into_sse_u(policy: str) -> None:
    mu, log_var = MU.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    s, sigma = resolve(mu=mu, log_var=log_var, policy=policy, training=True)
    assert not s.requires_grad
    assert not sigma.requires_grad


def test_without_sse_u_unknown_trees_get_the_prior_and_predictions_are_refused() -> None:
    s, sigma = resolve(HOLED, HOLED_SIGMA, mu=None, log_var=None, training=True)
    assert torch.allclose(s[[1, 3]], torch.tensor(MU_AT_START))
    assert torch.allclose(sigma[[1, 3]], torch.tensor(math.exp(LOG_VAR_AT_START / 2)))
    assert torch.equal(s[[0, 2]], HOLED[[0, 2]])
    for settings in ({"policy": "predicted"}, {"policy": "fused"}, {"share": 0.1}):
        with pytest.raises(ConfigError, match="no SSE-U"):
            resolve(mu=None, log_var=None, training=True, **settings)


def test_predicted_share_waits_ramps_and_stays() -> None:
    resolver = Resolver(ResolverConfig(train_predicted_share=0.2, warmup_share=0.25, ramp_share=0.5))
    assert [resolver.predicted_share(p) for p in (0.0, 0.2, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 0, 0.1, 0.2, 0.2]
    assert Resolver(ResolverConfig(warmup_share=0.0, ramp_share=0.0)).predicted_share(0.0) == 0.2
    with pytest.raises(ConfigError, match="progress"):
        resolver.predicted_share(300)


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="spoof_gsd_m"):
        ResolverConfig(policy="spoof")
    with pytest.raises(ConfigError, match="spoof_gsd_m"):
        ResolverConfig(spoof_gsd_m=1.0)
    with pytest.raises(GsdError, match="positive"):
        ResolverConfig(policy="spoof", spoof_gsd_m=0.0)
    with pytest.raises(ConfigError, match="warmup_share"):
        ResolverConfig(warmup_share=500)
