"""Folding is exact at its scale, and the price of a grid is known beforehand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.model.baselines import build_gate
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.gated_lora import GatedLoRALinear, ScaleState
from scaleearth_pl.serving.fold import FoldScale, UpdateMetric, cell, cell_errors, fold, gates, parse_grid


def layers(**gate):
    """Three layers of unlike sizes with thresholds that training has moved."""
    torch.manual_seed(0)
    scale, adapters = ScaleState(), {}
    for name, (n_in, n_out) in {"a": (20, 30), "b": (30, 10), "c": (16, 16)}.items():
        built = build_gate(GateConfig(**gate), 9)
        for parameter in built.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        adapters[name] = GatedLoRALinear(nn.Linear(n_in, n_out), rank=9, lora_alpha=6, gate=built, scale=scale)
        nn.init.normal_(adapters[name].lora_B.weight)
    return scale, adapters


GATES = [{}, {"learn_sharpness": True}, {"kind": "open"}, {"kind": "bucketed"}]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("sigma", [0.0, 0.4])
@torch.no_grad()
def test_folded_is_gated_at_its_scale(gate, sigma):
    scale, adapters = layers(**gate)
    for gsd_m in parse_grid("0.05:50:0.16dex"):
        folded = fold(adapters, FoldScale(gsd_m=gsd_m, sigma_log10=sigma))
        scale.set(torch.tensor([log10_gsd(gsd_m)]), torch.tensor([sigma]), torch.zeros(1, 4, dtype=torch.long))
        for name, layer in adapters.items():
            x = torch.randn(1, 4, layer.base.in_features)
            A, B = (folded[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            plain = layer.base(x) + layer.lora_alpha / layer.rank * (x @ A.T @ B.T)
            torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_all_that_folding_costs_is_one_rounding_of_a():
    """In float64, where the layer's own arithmetic is silent: |dy| <= 2^-24 (a/r) |B| |A'| |x|, element by element."""
    scale, adapters = layers()
    for gsd_m in (0.05, 0.7, 50.0):
        folded = fold(adapters, FoldScale(gsd_m=gsd_m))
        scale.set(torch.tensor([log10_gsd(gsd_m)]), torch.zeros(1), torch.zeros(1, 4, dtype=torch.long))
        for name, layer in adapters.items():
            A, B = (folded[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
            layer.base.double()
            x = torch.randn(1, 4, layer.base.in_features, dtype=torch.float64)
            plain = layer.base(x) + layer.scaling * (x @ A.T @ B.T)
            bound = 2**-24 * layer.scaling * (x.abs() @ A.abs().T @ B.abs().T)
            off = (layer(x) - plain).abs()
            assert off.max() > 0 and (off <= bound + 1e-13).all()


@torch.no_grad()
def test_folding_in_float64_would_change_no_bit():
    """A' is one product, which float32 rounds correctly: there is nothing to gain from folding wider."""
    _, adapters = layers()
    folded = fold(adapters, FoldScale(gsd_m=0.7))
    for name, layer in adapters.items():
        h_r = layer.gate(torch.tensor([log10_gsd(0.7)]), torch.zeros(1))[0]
        wide = (h_r.double()[:, None] * layer.lora_A.weight.double()).float()
        assert torch.equal(folded[f"base_model.model.{name}.lora_A.weight"], wide)


def test_grid():
    grid = parse_grid("0.1:30:0.08dex")
    steps = [math.log10(b / a) for a, b in pairwise(grid)]
    assert grid[0] == pytest.approx(0.1) and grid[-1] == pytest.approx(30)
    assert len(grid) == 32 and max(steps) <= 0.08 and max(steps) - min(steps) < 1e-9
    assert len(parse_grid("1:10:1dex")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "0.1:30", "0.1:30:0.08", "30:0.1:0.08dex", "1:2:0dex", "1:2:-1dex", "a:b:cdex", "1:10:1e-6dex", "1:2:nandex"],
)
def test_bad_grids(text):
    with pytest.raises(ConfigError):
        parse_grid(text)


def test_grids_of_impossible_gsds():
    for text in ("0:30:0.1dex", "-1:30:0.1dex", "1:inf:0.1dex"):
        with pytest.raises(GsdError):
            parse_grid(text)
    with pytest.raises(ConfigError):
        FoldScale(gsd_m=1.0, sigma_log10=-0.1)


def test_cells_tile_the_grid():
    grid = [log10_gsd(m) for m in parse_grid("0.1:30:0.08dex")]
    cells = [cell(grid, i) for i in range(len(grid))]
    for (_, high), (low, _) in pairwise(cells):
        assert high == pytest.approx(low)
    assert all(low < s < high for s, (low, high) in zip(grid, cells))
    assert cell([0.3], 0) == (0.3, 0.3)


@torch.no_grad()
def test_errors_are_those_of_the_updates_themselves():
    """Against B diag(h - h') A, formed."""
    _, adapters = layers()
    at, s = FoldScale(gsd_m=1.0), torch.tensor([0.3])
    here, there = gates(adapters, torch.zeros(1), torch.zeros(1)), gates(adapters, s, torch.tensor([0.2]))
    moved = total = 0.0
    for m, layer in enumerate(adapters.values()):
        A, B = layer.lora_A.weight.double(), layer.lora_B.weight.double()
        moved += float(((layer.scaling * B @ torch.diag((there - here)[m, 0].double()) @ A) ** 2).sum())
        total += float(((layer.scaling * B @ torch.diag(here[m, 0].double()) @ A) ** 2).sum())
    errors = UpdateMetric(adapters).errors(at, s, torch.tensor([0.2]))
    assert errors.update == pytest.approx((moved / total) ** 0.5, rel=1e-6)
    assert errors.gate == pytest.approx(float((there - here).abs().max()))
    nothing = UpdateMetric(adapters).errors(at, torch.zeros(1), torch.zeros(1))
    assert nothing.gate == nothing.update == 0.0


def test_no_gate_breaks_the_bound_and_the_bound_is_met():
    """A gate of sharpness k moves by tanh(k d / 4) at most within d decades: the rank whose threshold is halfway."""
    _, adapters = layers()
    metric, step = UpdateMetric(adapters), 0.08
    bound, worst = math.tanh(4.0 * step / 2 / 4), 0.0
    for s in torch.arange(-1.0, 1.5, step).tolist():
        edges = (s - step / 2, s + step / 2)
        worst = max(worst, cell_errors(metric, FoldScale(gsd_m=10**s), edges).gate)
        inside = torch.linspace(*edges, 101)
        there = gates(adapters, inside, torch.zeros_like(inside))
        here = gates(adapters, torch.tensor([s]), torch.zeros(1))
        assert float((there - here).abs().max()) <= bound + 1e-6
    assert 0.99 * bound <= worst <= bound + 1e-6


def test_names():
    names = [FoldScale(gsd_m=m).name for m in parse_grid("0.1:30:0.08dex")]
    assert len(set(names)) == len(names)
    assert FoldScale(gsd_m=0.5).name == "gsd-0p5m"
    assert FoldScale(gsd_m=0.5, sigma_log10=0.3).name == "gsd-0p5m-sigma-0p3"
