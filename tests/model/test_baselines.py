"""The baselines are gates of the same shape with another answer."""

import pytest
import torch

from scaleearth_pl.core.gsd import TierBoundaries, log10_gsd
from scaleearth_pl.model.baselines import BucketedGate, OpenGate, build_gate
from scaleearth_pl.model.gate import ContinuousGate, GateConfig, rank_tier_slices

GRID_M = [0.05, 0.3, 0.999, 1.0, 3.0, 9.99, 10.0, 30.0]


def scale(gsd_m: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.tensor([log10_gsd(g) for g in gsd_m])
    return s, torch.zeros_like(s)


def test_the_factory_builds_what_the_config_names() -> None:
    kinds = {kind: type(build_gate(GateConfig(kind=kind), 8)) for kind in ("continuous", "open", "bucketed")}
    assert kinds == {"continuous": ContinuousGate, "open": OpenGate, "bucketed": BucketedGate}


def test_open_is_one_everywhere_and_says_so() -> None:
    gate = build_gate(GateConfig(kind="open"), 64)
    assert gate.always_open
    assert torch.equal(gate(*scale(GRID_M)), torch.ones(len(GRID_M), 64))
    assert not build_gate(GateConfig(), 64).always_open


@pytest.mark.parametrize("buckets", [TierBoundaries(), TierBoundaries(high_below_m=0.5, mid_below_m=3.0)])
def test_bucketed_opens_exactly_the_tier_of_the_gsd(buckets: TierBoundaries) -> None:
    h_Gr = build_gate(GateConfig(kind="bucketed", buckets=buckets), 64)(*scale(GRID_M))
    tier_of = {"high": "object", "mid": "structure", "low": "semantic"}
    for gsd_m, h_r in zip(GRID_M, h_Gr, strict=True):
        expected_r = torch.zeros(64)
        expected_r[rank_tier_slices(64)[tier_of[buckets.tier_of(gsd_m)]]] = 1
        assert torch.equal(h_r, expected_r), gsd_m


def test_bucketed_ignores_sigma_and_learns_nothing() -> None:
    gate = build_gate(GateConfig(kind="bucketed"), 64)
    s, zero = scale(GRID_M)
    assert torch.equal(gate(s, zero), gate(s, zero + 3))
    assert not list(gate.parameters())
    assert not gate.state_dict()
    assert set(gate(s, zero).sum(1).tolist()) == {21.0, 22.0}
