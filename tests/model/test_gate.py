"""The continuous gate: the paper's formula, its marginal form, its start."""

import math
from itertools import pairwise

import pytest
import torch

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import RANK_TIER_BANDS
from scaleearth_pl.model.gate import ContinuousGate, GateConfig, initial_thresholds, rank_tier_slices

GRID = torch.linspace(-1.5, 2.0, 71)


def make(**settings: object) -> ContinuousGate:
    return ContinuousGate(GateConfig(**settings), rank=64)


def test_sigma_zero_is_the_papers_gate_to_the_bit() -> None:
    gate = make()
    paper_Gr = torch.sigmoid(4.0 * (gate.thresholds - GRID[:, None]))
    assert torch.equal(gate(GRID, torch.zeros_like(GRID)), paper_Gr)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.3, 1.0, 3.0])
def test_marginal_gate_is_the_expectation_over_s(sigma: float) -> None:
    """Tolerance 0.02: the probit approximation's own error (measured maximum 0.0174); quadrature on 4,001 points."""
    gate = make()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    weight /= weight.sum()
    s = torch.tensor([-1.0, -0.3, 0.0, 0.7, 1.5])
    sample = s[:, None].double() + sigma * z
    exact = (torch.sigmoid(4.0 * (gate.thresholds.double() - sample[..., None])) * weight[:, None]).sum(1)
    assert (gate(s, torch.full_like(s, sigma)) - exact).abs().max() < 0.02


def test_monotone_in_s_in_tau_and_bounded() -> None:
    h_Gr = make()(GRID, torch.full_like(GRID, 0.2))
    assert (h_Gr.diff(dim=0) < 0).all()
    assert (h_Gr.diff(dim=1) > 0).all()
    assert ((h_Gr >= 0) & (h_Gr <= 1)).all()


def test_doubt_flattens_towards_one_half() -> None:
    gate = make()
    s = torch.tensor([0.1])
    distance = [(gate(s, torch.tensor([sigma])) - 0.5).abs() for sigma in (0.0, 0.3, 1.0, 5.0)]
    assert all((near < far).all() for far, near in pairwise(distance))


def test_tiers_start_evenly_inside_their_bands() -> None:
    tau = initial_thresholds(64)
    for tier, ranks in rank_tier_slices(64).items():
        low, high = RANK_TIER_BANDS[tier]
        assert low < tau[ranks].min()
        assert tau[ranks].max() < high
        assert torch.allclose(tau[ranks].diff(), torch.tensor((high - low) / len(tau[ranks])), atol=1e-6)
    assert [r.stop - r.start for r in rank_tier_slices(64).values()] == [22, 21, 21]


def test_all_tiers_at_a_tenth_of_a_metre_mostly_semantic_at_twenty() -> None:
    h_Gr = make()(torch.tensor([-1.0, math.log10(20)]), torch.zeros(2)).detach()
    fine, coarse = ([float(row[ranks].mean()) for ranks in rank_tier_slices(64).values()] for row in h_Gr)
    assert min(fine) > 0.9
    assert coarse[0] < 0.01
    assert coarse[1] < 0.15
    assert coarse[2] > 0.9


def test_without_tiers_thresholds_are_even_over_the_span() -> None:
    tau = initial_thresholds(64, tiers=False)
    assert torch.allclose(tau.diff(), torch.tensor(3.3 / 64), atol=1e-6)


def test_learnt_sharpness_is_a_parameter_that_moves_the_gate() -> None:
    gate, fixed = make(learn_sharpness=True), make()
    assert {n for n, _ in gate.named_parameters()} == {"thresholds", "log_sharpness"}
    assert {n for n, _ in fixed.named_parameters()} == {"thresholds"}
    assert torch.allclose(gate(GRID, 0 * GRID), fixed(GRID, 0 * GRID), atol=1e-6)
    gate(GRID, 0 * GRID)[:5].sum().backward()
    assert gate.log_sharpness is not None
    assert gate.log_sharpness.grad != 0


def test_thresholds_stay_float32_in_a_bfloat16_model() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        gate = make(learn_sharpness=True)
    finally:
        torch.set_default_dtype(before)
    tau = gate.thresholds.detach().clone()
    torch.nn.Sequential(gate).to(torch.bfloat16)
    assert torch.equal(gate.thresholds, tau)
    assert torch.equal(tau, initial_thresholds(64))
    h_Gr = gate(GRID.bfloat16(), 0 * GRID.bfloat16())
    assert h_Gr.dtype == gate.thresholds.dtype == torch.float32
    assert gate.to("meta").thresholds.is_meta


@pytest.mark.parametrize(
    "settings", [{"sharpness": 0.0}, {"sharpness": math.nan}, {"kind": "open", "learn_sharpness": True}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="sharpness"):
        GateConfig(**settings)


def test_rank_below_the_number_of_tiers_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank"):
        ContinuousGate(GateConfig(), rank=2)
    assert torch.allclose(initial_thresholds(3), torch.tensor([-0.3, 0.7, 2.0]), atol=1e-6)
