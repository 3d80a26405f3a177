"""A gated adapter at one scale *is* a plain LoRA: A' = diag(h(s, sigma)) A, B' = B.

    y = W x + (a/r) B (h * A x) = W x + (a/r) B (A' x)

exactly, because the gate multiplies ranks and does not look at x. So one scale costs one folder of the adapter's own
size, and a bank of them over a grid serves any GSD by its nearest neighbour in log10 GSD. What that costs is known
beforehand: inside a cell of half-width d decades no gate moves by more than tanh(sharpness d / 4) (the logistic curve's
largest rise over d; 0.040 for the default sharpness 4 and cells of 0.08 decades), and how far the update itself moves,

    E(s, s') = || (a/r) B diag(h(s) - h(s')) A ||_F / || (a/r) B diag(h(s')) A ||_F        over all modules together,

is computed from r x r matrices, d^T ((B^T B) o (A A^T)) d, without forming any update.

Legend of shape suffixes: S scales, M adapted modules, r ranks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import check_gsd_m, log10_gsd
from scaleearth_pl.model.gated_lora import GatedLoRALinear

CELL_POINTS = 9
"""Scales of a cell, edges included, at which the update's error is computed."""

MAX_SCALES = 1000
"""Most folders of one bank."""

Adapters = Mapping[str, GatedLoRALinear]


@dataclass(frozen=True, kw_only=True)
class FoldScale:
    """One scale to fold at: metres per pixel *seen by the model*, and sigma in decades (0 is the paper's gate)."""

    gsd_m: float
    sigma_log10: float = 0.0

    def __post_init__(self) -> None:
        check_gsd_m(self.gsd_m)
        if not 0 <= self.sigma_log10 < math.inf:
            raise ConfigError("sigma must not be negative", field="sigma", value=self.sigma_log10, remedy="in decades")

    @property
    def name(self) -> str:
        """Name of the folded adapter, such as `gsd-0p5m` or `gsd-0p5m-sigma-0p3`: PEFT allows no dot in a name."""
        sigma = f"-sigma-{self.sigma_log10:.4g}" if self.sigma_log10 else ""
        return f"gsd-{self.gsd_m:.4g}m{sigma}".replace(".", "p")


def parse_grid(text: str) -> list[float]:
    """GSDs of a grid such as "0.1:30:0.08dex": both ends, evenly in log10, steps of at most 0.08 decades.

    Raises:
        ConfigError: not of that form, not rising, or more than `MAX_SCALES` points.
    """
    remedy = "LOW:HIGH:STEPdex in metres and decades, such as 0.1:30:0.08dex"
    parts = text.removesuffix("dex").split(":")
    try:
        low_m, high_m, step = (float(part) for part in parts)
    except ValueError as error:
        raise ConfigError("not a grid of GSDs", field="grid", value=text, remedy=remedy) from error
    ends = log10_gsd(check_gsd_m(low_m, field="grid")), log10_gsd(check_gsd_m(high_m, field="grid"))
    if not (text.endswith("dex") and ends[0] < ends[1] and 0 < step < math.inf):
        raise ConfigError("grid must rise, in steps of decades", field="grid", value=text, remedy=remedy)
    n_steps = math.ceil((ends[1] - ends[0]) / step - 1e-9)
    if n_steps >= MAX_SCALES:
        raise ConfigError(f"grid of more than {MAX_SCALES} GSDs", field="grid", value=text, remedy="widen the step")
    return [10 ** (ends[0] + (ends[1] - ends[0]) * i / n_steps) for i in range(n_steps + 1)]


@torch.no_grad()
def fold(adapters: Adapters, scale: FoldScale, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A' and B of every module under PEFT's keys, on the host; multiplied in float32, then cast."""
    s_S, sigma_S = torch.tensor([log10_gsd(scale.gsd_m)]), torch.tensor([scale.sigma_log10])
    folded: dict[str, Tensor] = {}
    for name, layer in adapters.items():
        A, B = layer.lora_A.weight, layer.lora_B.weight
        h_r = layer.gate(s_S.to(A.device), sigma_S.to(A.device))[0]
        key = f"base_model.model.{name}.lora"
        folded[f"{key}_A.weight"] = (h_r[:, None] * A.float()).to(dtype).cpu()
        folded[f"{key}_B.weight"] = B.to(dtype).cpu()
    return folded


@torch.no_grad()
def gates(adapters: Adapters, log10_gsd_S: Tensor, sigma_S: Tensor) -> Tensor:
    """Openness h [M, S, r] of every module at (mean, sigma) pairs, float32, on the host."""
    return torch.stack([a.gate(log10_gsd_S.to(_device(a)), sigma_S.to(_device(a))).cpu() for a in adapters.values()])


def _device(layer: GatedLoRALinear) -> torch.device:
    return layer.lora_A.weight.device


class UpdateMetric:
    """Norms of the adapter's update by its gates, from (a/r)^2 (B^T B) o (A A^T) of every module [M, r, r]."""

    @torch.no_grad()
    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        gram = []
        for layer in adapters.values():
            A, B = layer.lora_A.weight.double(), layer.lora_B.weight.double()
            gram.append((layer.scaling**2 * (B.T @ B) * (A @ A.T)).cpu())
        self._gram_Mrr = torch.stack(gram)

    def norm(self, h_MSr: Tensor) -> Tensor:
        """||(a/r) B diag(h) A||_F over all modules together, [S]."""
        h = h_MSr.double()
        return torch.einsum("msr,mrq,msq->s", h, self._gram_Mrr, h).clamp(min=0).sqrt()

    def errors(self, at: FoldScale, log10_gsd_S: Tensor, sigma_S: Tensor) -> "FoldErrors":
        """What it costs to use the adapter folded `at` one scale in place of the gate at each of S others."""
        here = gates(self._adapters, torch.tensor([log10_gsd(at.gsd_m)]), torch.tensor([at.sigma_log10]))
        there = gates(self._adapters, log10_gsd_S, sigma_S)
        update_S = self.norm(there - here) / self.norm(here).clamp(min=1e-30)
        return FoldErrors(gate=float((there - here).abs().max()), update=float(update_S.max()))


@dataclass(frozen=True, kw_only=True)
class FoldErrors:
    """Worst over some scales: of any single gate (absolute), and of the whole update (relative, Frobenius)."""

    gate: float
    update: float


def cell(scales: Sequence[float], index: int) -> tuple[float, float]:
    """(low, high) log10 GSD served by point `index` of a sorted grid: to the midpoints; the ends reach half a step on."""
    middle = scales[index]
    left = scales[index - 1] if index else None
    right = scales[index + 1] if index + 1 < len(scales) else None
    half_left = (middle - left) / 2 if left is not None else (right - middle) / 2 if right is not None else 0.0
    half_right = (right - middle) / 2 if right is not None else half_left
    return middle - half_left, middle + half_right


def cell_errors(metric: UpdateMetric, at: FoldScale, edges: tuple[float, float]) -> FoldErrors:
    """Worst over a cell at the fold's own sigma. Gates are monotone in s, so theirs is at an edge: exact, not sampled."""
    s_S = torch.linspace(*edges, CELL_POINTS, dtype=torch.float64).float()
    return metric.errors(at, s_S, torch.full_like(s_S, at.sigma_log10))
