"""The scale on its way to the layers: equal to plain autograd, summed in float32, fit to be asked twice."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.model.baselines import build_gate
from scaleearth_pl.model.gate import Gate, GateConfig
from scaleearth_pl.model.scale_state import MAX_TREES_IN_A_PRODUCT, ScaleState, scaled_openness

RANK = 6


def gates(n: int = 3, **settings: object) -> list[Gate]:
    """Gates whose thresholds (and sharpness) all differ."""
    made = [build_gate(GateConfig(**settings), RANK) for _ in range(n)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for gate in made for p in gate.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def scene(n_trees: int, n_tokens: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and deviations of each tree, the tree of each token in ascending order, and A's output for two layers."""
    generator = torch.Generator().manual_seed(1)
    row_T = torch.arange(n_tokens) * n_trees // n_tokens
    low = torch.randn(2, 1, n_tokens, RANK, generator=generator)
    return torch.randn(n_trees, generator=generator), torch.rand(n_trees, generator=generator), row_T[None], low


@pytest.mark.parametrize("n_trees", [1, 2, 5, MAX_TREES_IN_A_PRODUCT + 1])
@pytest.mark.parametrize("learn_sharpness", [False, True])
def test_equals_the_plain_form_in_value_and_gradient(n_trees: int, learn_sharpness: bool) -> None:
    """Plain: every layer evaluates its own gate and indexes it, autograd does the rest."""
    s_G, sigma_G, row, low = scene(n_trees, n_tokens=200)
    some = gates(2, learn_sharpness=learn_sharpness)
    scale = ScaleState()
    for gate in some:
        scale.register(gate, 2.0)
    found, wanted = [], []
    for ours, results in ((True, found), (False, wanted)):
        x = low.clone().requires_grad_()
        if ours:
            scale.set(s_G, sigma_G, row)
            out = [scale.apply(gate, part) for gate, part in zip(some, x, strict=True)]
        else:
            out = [part * (2.0 * gate(s_G, sigma_G))[row] for gate, part in zip(some, x, strict=True)]
        learnt = [p for gate in some for p in gate.parameters()]
        results += [*(x.detach() for x in out), *torch.autograd.grad((torch.stack(out) ** 2).sum(), [x, *learnt])]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def test_a_stack_of_gates_is_each_gate() -> None:
    """But for the last bit, in which vectorised and scalar exponentials differ."""
    s_G, sigma_G, _, _ = scene(4)
    for settings in ({}, {"learn_sharpness": True}, {"kind": "bucketed"}):
        some = gates(**settings)
        together = scaled_openness(some, s_G, sigma_G, scaling=2.0)
        assert all(
            torch.allclose(h, 2.0 * gate(s_G, sigma_G), rtol=1e-6) for h, gate in zip(together, some, strict=True)
        )
    mixed = [*gates(1), *gates(1, sharpness=2.0)]
    together = scaled_openness(mixed, s_G, sigma_G, scaling=1.0)
    assert all(torch.equal(h, gate(s_G, sigma_G)) for h, gate in zip(together, mixed, strict=True))


def test_a_shared_gate_adds_up_over_its_layers_and_backward_may_run_twice() -> None:
    """Reentrant checkpointing runs one backward for every block, through the same gates."""
    s_G, sigma_G, row, low = scene(3)
    gate, scale = gates(1)[0], ScaleState()
    scale.register(gate, 1.0)
    scale.register(gate, 1.0)
    scale.set(s_G, sigma_G, row)
    (scale.apply(gate, low[0]).sum() + scale.apply(gate, low[1]).sum()).backward()
    at_once = gate.get_parameter("thresholds").grad
    gate.zero_grad()
    scale.apply(gate, low[0]).sum().backward()
    scale.apply(gate, low[1]).sum().backward()
    assert torch.allclose(gate.get_parameter("thresholds").grad, at_once, rtol=1e-5)


class SumDtypes(TorchDispatchMode):
    """Records the dtype of every product of two matrices and every index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ in ("mm", "index_add_"):
            self.seen.append((func.overloadpacket.__name__, args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("n_trees", "how"), [(3, "mm"), (MAX_TREES_IN_A_PRODUCT + 1, "index_add_")])
def test_a_trees_tokens_add_up_in_float32(n_trees: int, how: str) -> None:
    """Sums of thousands of bfloat16 terms stall: they are not the thresholds' gradient."""
    s_G, sigma_G, row, low = scene(n_trees, n_tokens=100)
    gate, scale = gates(1)[0], ScaleState()
    scale.register(gate, 1.0)
    scale.set(s_G, sigma_G, row)
    with SumDtypes() as sums:
        out = scale.apply(gate, low[0].bfloat16().requires_grad_())
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert sums.seen == [(how, torch.float32)]


def test_scales_set_without_gradient_still_teach_the_thresholds() -> None:
    s_G, sigma_G, row, low = scene(2)
    gate, scale = gates(1)[0], ScaleState()
    scale.register(gate, 1.0)
    with torch.no_grad():
        scale.set(s_G, sigma_G, row)
    scale.apply(gate, low[0]).sum().backward()
    assert (gate.get_parameter("thresholds").grad != 0).any()
    with torch.inference_mode():
        scale.set(s_G, sigma_G, row)
        assert not scale.apply(gate, low[0]).requires_grad


def test_a_copy_and_a_pickle_know_the_gates_but_no_scale() -> None:
    s_G, sigma_G, row, low = scene(2)
    gate, scale = gates(1)[0], ScaleState()
    scale.register(gate, 1.0)
    scale.set(s_G, sigma_G, row)
    for other_gate, other in (copy.deepcopy((gate, scale)), pickle.loads(pickle.dumps((gate, scale)))):
        with pytest.raises(GsdError, match="not told"):
            other.apply(other_gate, low[0])
        other.set(s_G, sigma_G, row)
        assert torch.equal(other.apply(other_gate, low[0]), scale.apply(gate, low[0]))


def test_two_scalings_in_one_state_are_refused() -> None:
    scale = ScaleState()
    scale.register(gates(1)[0], 2.0)
    with pytest.raises(ConfigError, match=r"2\.0.*0\.5"):
        scale.register(gates(1)[0], 0.5)
