"""The gated layer: what it equals (plain LoRA, the base) and what it survives (checkpointing, precision)."""

import copy
from collections.abc import Callable

import bitsandbytes
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaleearth_pl.core.errors import ConfigError, GsdError, TargetModuleError
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.gated_lora import (
    LORA_TARGETS,
    AdapterConfig,
    GatedLoRALinear,
    ScaleState,
    attach,
    update_magnitude,
)

HIDDEN = 16
S = torch.tensor([-1.0, 0.3, 1.4])
SIGMA = torch.tensor([0.0, 0.2, 0.5])
ROWS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2]])


class Block(nn.Module):
    """Seven projections named as in Qwen3-VL, wired so that each one matters."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({n: nn.Linear(HIDDEN, HIDDEN, bias=False) for n in LORA_TARGETS[:4]})
        self.mlp = nn.ModuleDict({n: nn.Linear(HIDDEN, 24, bias=False) for n in LORA_TARGETS[4:6]})
        self.mlp["down_proj"] = nn.Linear(24, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, m = self.self_attn, self.mlp
        x = x + a["o_proj"](torch.sigmoid(a["q_proj"](x)) * a["k_proj"](x) + a["v_proj"](x))
        return x + m["down_proj"](torch.sigmoid(m["gate_proj"](x)) * m["up_proj"](x))


class Backbone(nn.Module):
    """Two blocks at `model.language_model.layers`, a vision tower and an lm_head that must stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.language_model = nn.Module()
        self.model.language_model.layers = nn.ModuleList([Block(), Block()])
        self.model.visual = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "qkv": nn.Linear(4, 12)})
        self.lm_head = nn.Linear(HIDDEN, 7, bias=False)
        self.run: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.model.language_model.layers:
            x = self.run(block, x)
        return self.lm_head(x)


def make(
    kind: str = "continuous", *, perturb: float = 0.3, **settings: object
) -> tuple[Backbone, dict[str, GatedLoRALinear], ScaleState]:
    backbone, scale = Backbone(), ScaleState()
    settings.setdefault("gate", GateConfig(kind=kind))
    adapters = attach(backbone, AdapterConfig(rank=6, lora_alpha=12, **settings), scale)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapters.values():
            layer.lora_B.weight.add_(perturb * torch.randn(layer.lora_B.weight.shape, generator=generator))
    scale.set(S, SIGMA, ROWS)
    return backbone, adapters, scale


def tokens(shape: tuple[int, ...] = (1, 10)) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(2))


def gradients(backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
    backbone.zero_grad()
    (backbone(x).float() ** 2).sum().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def worst(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of two sets of gradients, relative to each tensor's largest entry."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in a)


# -- what it equals ---------------------------------------------------------------------------------------------


def peft_twin(adapters: dict[str, GatedLoRALinear]) -> nn.Module:
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=r".*language_model.*_proj", bias="none")
    twin = peft.get_peft_model(Backbone(), config)
    with torch.no_grad():
        for name, layer in adapters.items():
            theirs = twin.base_model.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(layer.lora_A.weight)
            theirs.lora_B["default"].weight.copy_(layer.lora_B.weight)
    return twin


@pytest.mark.parametrize("how", ["open", "thresholds far above any GSD"])
def test_gate_one_is_plain_lora_as_peft_computes_it(how: str) -> None:
    backbone, adapters, scale = make("open" if how == "open" else "continuous")
    with torch.no_grad():
        for layer in adapters.values():
            for tau in layer.gate.parameters():
                tau.fill_(1e4)
    scale.set(S, SIGMA, ROWS)
    twin = peft_twin(adapters)
    assert torch.allclose(backbone(tokens()), twin(tokens()), atol=1e-6)
    ours, theirs = gradients(backbone, tokens()), gradients(twin, tokens())
    ours = {k: g for k, g in ours.items() if "lora" in k}
    theirs = {k.removeprefix("base_model.model.").replace(".default", ""): g for k, g in theirs.items()}
    assert worst(ours, theirs) < 1e-5


def test_b_zero_is_the_base_to_the_bit() -> None:
    backbone, _, _ = make(perturb=0.0)
    assert torch.equal(backbone(tokens()), Backbone()(tokens()))


def test_each_token_is_gated_by_its_own_tree() -> None:
    """Packed trees equal each tree alone, and each is a plain LoRA with A' = diag(h) A."""
    backbone, adapters, scale = make()
    packed = backbone(tokens())
    for g in range(3):
        x = tokens()[g == ROWS][None]
        scale.set(S[g : g + 1], SIGMA[g : g + 1], torch.zeros(x.shape[:2], dtype=torch.long))
        assert torch.allclose(backbone(x)[0], packed[g == ROWS], atol=1e-5)
        folded, folded_adapters, _ = make("open")
        with torch.no_grad():
            for name, layer in folded_adapters.items():
                layer.lora_A.weight.mul_(adapters[name].gate(S[g : g + 1], SIGMA[g : g + 1]).T)
        assert torch.allclose(folded(x)[0], packed[g == ROWS], atol=1e-5)


def test_cached_decoding_takes_rows_of_any_shape() -> None:
    backbone, _, scale = make()
    whole = backbone(tokens())
    scale.set(S, SIGMA, ROWS.view(5, 2))
    assert torch.allclose(backbone(tokens().view(5, 2, HIDDEN)), whole.view(5, 2, -1), atol=1e-6)
    scale.set_rows(ROWS[:, -1:])
    assert torch.allclose(backbone(tokens()[:, -1:]), whole[:, -1:], atol=1e-6)


def test_far_finer_is_plain_lora_and_far_coarser_is_the_base() -> None:
    backbone, _, scale = make()
    scale.set(torch.tensor([-9.0, 9.0, -9.0]), torch.zeros(3), ROWS)
    out = backbone(tokens())[0]
    assert torch.allclose(out[ROWS[0] != 1], make("open")[0](tokens())[0][ROWS[0] != 1], atol=1e-6)
    assert torch.allclose(out[ROWS[0] == 1], Backbone()(tokens())[0][ROWS[0] == 1], atol=1e-6)


# -- gradients --------------------------------------------------------------------------------------------------


def test_only_adapters_and_thresholds_get_gradient() -> None:
    backbone, adapters, _ = make()
    expected = {f"{n}.{p}" for n in adapters for p in ("lora_A.weight", "lora_B.weight", "gate.thresholds")}
    assert gradients(backbone, tokens()).keys() == expected
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == expected


def test_at_b_zero_only_b_learns_and_on_a_perturbed_b_everything() -> None:
    at_zero = gradients(make(perturb=0.0)[0], tokens())
    perturbed = gradients(make()[0], tokens())
    assert all((g == 0).all() for name, g in at_zero.items() if "lora_B" not in name)
    assert all((g != 0).any() for name, g in at_zero.items() if "lora_B" in name)
    assert all((g != 0).any() for g in perturbed.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("share_thresholds", [False, True])
def test_checkpointing_changes_no_gradient(use_reentrant: bool, autocast: bool, share_thresholds: bool) -> None:
    """Without autocast's cache, which under reentrant checkpointing makes any layer add its input's gradients in
    bfloat16 (3 % here): a gate lost in the recomputation would cost about half."""
    backbone, _, _ = make(gate=GateConfig(share_thresholds=share_thresholds))
    x = tokens().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast, cache_enabled=False):
        plain = gradients(backbone, x)
        backbone.run = lambda block, x: checkpoint(block, x, use_reentrant=use_reentrant)
        recomputed = gradients(backbone, x)
    assert worst(recomputed, plain) < 1e-6
    assert any("thresholds" in name for name in recomputed)


# -- precision and device ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters_dtype", ["float32", "bfloat16"])
def test_output_keeps_the_inputs_dtype_and_adapters_theirs(adapters_dtype: str) -> None:
    backbone, adapters, _ = make(dtype=adapters_dtype)
    reference = backbone(tokens())
    backbone.to(torch.bfloat16)
    out = backbone(tokens().bfloat16())
    assert reference.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()
    for layer in adapters.values():
        assert layer.base.weight.dtype == torch.bfloat16
        assert layer.lora_A.weight.dtype == layer.lora_B.weight.dtype == getattr(torch, adapters_dtype)
        assert layer.gate.thresholds.dtype == torch.float32


def test_under_autocast_the_layer_speaks_the_bases_dtype() -> None:
    _, adapters, _ = make()
    layer = adapters["model.language_model.layers.0.self_attn.q_proj"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, base = layer(tokens()), layer.base(tokens())
    assert out.dtype == base.dtype == torch.bfloat16
    assert (out - layer(tokens())).abs().max() < 0.02


def test_a_4bit_base_is_wrapped_as_it_is() -> None:
    torch.manual_seed(0)
    base = bitsandbytes.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    scale, rows = ScaleState(), torch.tensor([[0, 1, 2]])
    backbone = nn.Module()
    backbone.q_proj = base
    config = AdapterConfig(rank=6, targets=("q_proj",))
    layer = attach(backbone, config, scale, inside="")["q_proj"]
    scale.set(S, SIGMA, rows)
    x = torch.randn(1, 3, 64)
    assert layer.base is base
    assert layer.lora_B.weight.shape == (32, 6)
    assert torch.equal(layer(x), base(x))
    layer(x).sum().backward()
    assert layer.lora_B.weight.grad is not None
    assert base.weight.grad is None
    assert (layer.lora_B.weight.grad != 0).any()


def test_8b_shape_has_252_adapters_and_174_6_million_parameters() -> None:
    """The language model's shape by the public config; vision tower and lm_head keep their classes."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        vision_config={"depth": 2, "out_hidden_size": 4096, "deepstack_visual_indexes": [0, 1]},
    )
    with torch.device("meta"):
        backbone = transformers.Qwen3VLForConditionalGeneration(config)
    adapters = attach(backbone, AdapterConfig(), ScaleState())
    assert len(adapters) == 36 * 7 == 252
    assert next(iter(adapters)) == "model.language_model.layers.0.self_attn.q_proj"
    lora = [layer.get_parameter(f"lora_{x}.weight") for layer in adapters.values() for x in "AB"]
    assert sum(p.numel() for p in lora) == 174_587_904
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 174_587_904 + 252 * 64
    assert not any(isinstance(m, GatedLoRALinear) for m in backbone.model.visual.modules())
    assert type(backbone.lm_head) is nn.Linear
    assert all(p.is_meta for p in trained)


# -- attaching --------------------------------------------------------------------------------------------------


def test_attaches_to_the_language_model_alone_in_order() -> None:
    backbone, adapters, _ = make()
    assert list(adapters)[:2] == [f"model.language_model.layers.0.self_attn.{n}" for n in LORA_TARGETS[:2]]
    assert len(adapters) == 14
    assert all(backbone.get_submodule(name) is layer for name, layer in adapters.items())
    assert type(backbone.model.visual["q_proj"]) is nn.Linear
    assert type(backbone.lm_head) is nn.Linear


def test_unmatched_targets_raise_and_list_what_exists() -> None:
    for target in ("proj", "qq_proj", "lm_head", "qkv"):
        with pytest.raises(TargetModuleError, match=rf"'{target}'.*down_proj.*v_proj"):
            attach(Backbone(), AdapterConfig(targets=("q_proj", target)), ScaleState())
    backbone, _, scale = make()
    with pytest.raises(TargetModuleError, match="q_proj"):
        attach(backbone, AdapterConfig(), scale)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank"):
        AdapterConfig(rank=2)
    with pytest.raises(ConfigError, match="lora_alpha"):
        AdapterConfig(lora_alpha=0)
    with pytest.raises(ConfigError, match="targets"):
        AdapterConfig(targets=("q_proj", "q_proj"))


def test_start_depends_on_seed_and_name_alone() -> None:
    before = torch.random.get_rng_state()
    a = attach(Backbone(), AdapterConfig(), ScaleState())
    fewer = attach(Backbone(), AdapterConfig(targets=("o_proj",), dtype="bfloat16"), ScaleState())
    other = attach(Backbone(), AdapterConfig(seed=1), ScaleState())
    torch.random.set_rng_state(before)
    name = "model.language_model.layers.1.self_attn.o_proj"
    first = a[name].lora_A.weight
    assert torch.equal(first.bfloat16(), fewer[name].lora_A.weight)
    assert not torch.equal(first, other[name].lora_A.weight)
    assert not torch.equal(first, a[name.replace("1", "0")].lora_A.weight)
    assert 0.2 < first.abs().max() <= HIDDEN**-0.5
    assert (a[name].lora_B.weight == 0).all()


def test_a_shared_gate_is_one_parameter() -> None:
    backbone, adapters, _ = make(gate=GateConfig(share_thresholds=True))
    assert len({id(layer.gate) for layer in adapters.values()}) == 1
    assert sum(p.shape == (6,) for p in backbone.parameters() if p.requires_grad) == 1
    assert (gradients(backbone, tokens())[f"{next(iter(adapters))}.gate.thresholds"] != 0).any()


def test_a_missing_or_foreign_scale_raises() -> None:
    backbone, _, _ = make()
    with pytest.raises(GsdError, match=r"\(1, 10\).*\(1, 9\)"):
        backbone(tokens((1, 9)))
    fresh = Backbone()
    attach(fresh, AdapterConfig(), ScaleState())
    with pytest.raises(GsdError, match=r"ScaleState\.set"):
        fresh(tokens())
    plain = Backbone()
    attach(plain, AdapterConfig(gate=GateConfig(kind="open")), ScaleState())
    assert plain(tokens()).shape == (1, 10, 7), "plain LoRA needs no GSD"


def test_a_copy_keeps_one_state_for_all_its_layers() -> None:
    backbone, _, scale = make()
    twin = copy.deepcopy(backbone)
    states = {id(m.scale) for m in twin.modules() if isinstance(m, GatedLoRALinear)}
    assert len(states) == 1
    assert id(scale) not in states


def test_update_magnitude_is_the_frobenius_norm_of_the_update() -> None:
    _, adapters, _ = make()
    for layer in adapters.values():
        direct = 2.0 * (layer.lora_B.weight @ layer.lora_A.weight).norm()
        assert update_magnitude(layer).item() == pytest.approx(direct.item(), rel=1e-5)
    assert update_magnitude(next(iter(make(perturb=0.0)[1].values()))) == 0
