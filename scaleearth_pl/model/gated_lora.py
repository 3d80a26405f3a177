"""CS-HLoRA: a linear layer with a low-rank update whose ranks the GSD opens and closes.

    y = W x + (lora_alpha / r) * B (h(s) * A x)                      h(s): `gate.py`

            x [.., in]
         +------+-------+
         |              A  [r, in]       Kaiming           log10_gsd_G, sigma_G    one Gaussian per tree
         |              |  [.., r]                                  |
     W  frozen          * <---- one row per token <---- h_Gr <---- gate            G rows, not T tokens
     (full or 4-bit)    |       (one gather)             * lora_alpha / r
         |              B  [out, r]      zero
         +------(+)-----+
            y [.., out]

The price over plain LoRA is one gather and one multiply of r numbers per token, 2e-6 of the operations of a 4096 x 4096
layer: the gate itself is evaluated once per tree, never per token, and no adapter is ever built per sample. Layers of a
few hundred columns pay for memory traffic and small kernels instead (1 to 3 % of a step, measured). With one tree the row
is broadcast; with `gate.always_open` a number takes its place, so that the plain-LoRA baseline is this very code.

The scale reaches the layers through a `ScaleState` (`scale_state.py` says why), not through `forward`, whose signature
in the backbone is not ours.

Legend of shape suffixes: N tokens of any leading shape, G trees, r LoRA ranks.
"""

import math
import zlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from scaleearth_pl.core.errors import ConfigError, TargetModuleError
from scaleearth_pl.core.gsd import rank_tier_sizes
from scaleearth_pl.model.baselines import build_gate
from scaleearth_pl.model.gate import Gate, GateConfig
from scaleearth_pl.model.keep_dtype import KeepsDtype
from scaleearth_pl.model.scale_state import ScaleState

__all__ = [
    "LANGUAGE_MODEL",
    "LORA_TARGETS",
    "AdapterConfig",
    "GatedLoRALinear",
    "LoRAWeight",
    "ScaleState",
    "attach",
    "update_magnitude",
]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear projection of the language model's blocks, by last name component."""

LANGUAGE_MODEL = "model.language_model"
"""Where they are inside Qwen3-VL: never in the vision tower, never the lm_head."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapters of a whole model.

    Attributes:
        rank: r, shared by the three rank tiers (at least one each).
        lora_alpha: LoRA's numerator; the update is scaled by lora_alpha / rank. Not the gate's sharpness.
        targets: last name components of the layers to adapt, matched exactly.
        gate: what opens the ranks.
        dtype: in which A and B are kept and trained, whatever `.to()` says. They are multiplied in the
            activations' dtype, so float32 under a bfloat16 backbone costs memory (4 bytes a weight), not time.
            Sharded 4-bit training needs the backbone's dtype here.
        seed: of A's initial values, which depend on it and on the module's name alone.
    """

    rank: int = 64
    lora_alpha: int = 32
    targets: tuple[str, ...] = LORA_TARGETS
    gate: GateConfig = field(default_factory=GateConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        rank_tier_sizes(self.rank)
        if self.lora_alpha <= 0:
            raise ConfigError(
                "lora_alpha must be positive",
                field="adapters.lora_alpha",
                value=self.lora_alpha,
                remedy="the paper uses 32",
            )
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(
                "targets must be distinct names, at least one",
                field="adapters.targets",
                value=self.targets,
                remedy=f"the paper adapts {LORA_TARGETS}",
            )


class LoRAWeight(KeepsDtype):
    """A or B: a matrix [out, in] that keeps its own dtype and multiplies in its input's."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        """Product x W^T; casting W [r, in], not x [T, in], is the cheap side."""
        return linear(x, self.weight.to(x.dtype))

    def add_to(self, y: Float[Tensor, "*N out"], x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        """Sum y + x W^T, in y's dtype. Where both have one dtype the product accumulates into y's own memory.

        That saves writing the product, reading it again and writing the sum: 15 % of a gate or up projection at tiny
        size. It is legal because nothing keeps y for a backward, and in half precision it rounds once, not twice.
        `baddbmm_` because it takes [1, T, out] as it is: in place on a reshaped view, autograd would copy.
        """
        if y.ndim != 3 or x.dtype != y.dtype or torch.is_autocast_enabled(y.device.type):
            total: Tensor = y + self(x).to(y.dtype)
        else:
            total = y.baddbmm_(x, self.weight.to(x.dtype).T.expand(len(x), -1, -1))
        return total


class GatedLoRALinear(nn.Module):
    """A frozen linear layer and its gated low-rank update.

    Args:
        base: `nn.Linear` or a subclass (bitsandbytes' `Linear4bit` is one); its parameters stop requiring gradient.
        rank: r.
        lora_alpha: see `AdapterConfig`.
        gate: its own, or one shared by many layers.
        scale: the state shared by all layers of the model.
        dtype: of A and B.
        generator: for A; None takes torch's global one.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        lora_alpha: int,
        gate: Gate,
        scale: ScaleState,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.rank, self.lora_alpha = base.requires_grad_(False), rank, lora_alpha
        device = base.weight.device
        self.lora_A = LoRAWeight(_kaiming(rank, base.in_features, device, generator).to(dtype))
        self.lora_B = LoRAWeight(torch.zeros(base.out_features, rank, device=device, dtype=dtype))
        self.gate, self.scale = gate.to(device), scale
        if not gate.always_open:
            scale.register(self.gate, self.scaling)

    @property
    def scaling(self) -> float:
        """lora_alpha / rank."""
        return self.lora_alpha / self.rank

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        """Base output plus update, in the base output's dtype: the input's, or autocast's."""
        y: Tensor = self.base(x)
        low: Tensor = self.lora_A(x)
        low = low * self.scaling if self.gate.always_open else self.scale.apply(self.gate, low)
        return self.lora_B.add_to(y, low)


def _kaiming(rank: int, in_features: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """A at start, uniform in +-1/sqrt(in) as in PEFT; drawn on the host, so that devices and dtypes agree."""
    if device.type == "meta":
        return torch.empty(rank, in_features, device=device)
    weight = torch.empty(rank, in_features, dtype=torch.float32, device="cpu")
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator).to(device)


def attach(
    backbone: nn.Module, config: AdapterConfig, scale: ScaleState, inside: str = LANGUAGE_MODEL
) -> dict[str, GatedLoRALinear]:
    """Freezes the backbone and wraps every target layer of its language model, in place.

    Args:
        backbone: a Qwen3-VL model, full precision, 4-bit or on the meta device.
        config: adapters and gates.
        scale: the state that all layers will read.
        inside: the submodule to search.

    Returns:
        The new layers in the backbone's order, by full name, such as `model.language_model.layers.0.self_attn.q_proj`.

    Raises:
        TargetModuleError: a target matches no linear layer.
    """
    backbone.requires_grad_(False)
    bases = _find_targets(backbone, config.targets, inside)
    shared = build_gate(config.gate, config.rank) if config.gate.share_thresholds else None
    adapters: dict[str, GatedLoRALinear] = {}
    for name, base in bases.items():
        adapters[name] = GatedLoRALinear(
            base,
            rank=config.rank,
            lora_alpha=config.lora_alpha,
            gate=shared or build_gate(config.gate, config.rank),
            scale=scale,
            dtype=getattr(torch, config.dtype),
            generator=torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode())),
        )
        backbone.set_submodule(name, adapters[name])
    return adapters


def _find_targets(backbone: nn.Module, targets: tuple[str, ...], inside: str) -> dict[str, nn.Linear]:
    """The target layers by full name, in the order of the model."""
    modules = backbone.get_submodule(inside).named_modules(prefix=inside)
    candidates = {name: m for name, m in modules if isinstance(m, nn.Linear)}
    last = {name: name.rpartition(".")[2] for name in candidates}
    for target in targets:
        if target not in last.values():
            raise TargetModuleError(
                f"LoRA target matches no linear layer in {inside}",
                field="adapters.targets",
                value=target,
                remedy=f"linear layers there are {sorted(set(last.values()))}",
            )
    return {name: m for name, m in candidates.items() if last[name] in targets}


@torch.no_grad()
def update_magnitude(layer: GatedLoRALinear) -> Float[Tensor, ""]:
    """Effective update magnitude (lora_alpha / r) * ||B A||_F of the paper's Figure 8(f), with all gates open.

    ||B A||_F^2 = tr(B^T B A A^T) needs two r x r matrices instead of one out x in: 64^2 numbers for 4096 x 12288.
    """
    A, B = layer.lora_A.weight.float(), layer.lora_B.weight.float()
    return layer.scaling * ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt()
