"""Baselines are gates, not forks: the same layer, parameters and training, with another answer to "how open?".

    kind         h_k(s)                              what it is
    continuous   sigmoid(sharpness (tau_k - s))      ScaleEarth (`gate.py`)
    open         1                                   B2, plain LoRA: the GSD changes nothing
    bucketed     1 if tier(k) = tier(s) else 0       B4, a mixture of K = 3 LoRA experts routed by the tier of the GSD

B4 has A and B of equal size (its experts own 22 / 21 / 21 of 64 ranks) and the same lora_alpha / rank, so it differs
from ScaleEarth in the gate alone. Its price is the one the paper attacks: piecewise constant in s, with a jump at each
boundary, and only a third of the ranks at work for any image. It has no thresholds to learn, which costs it 64 of
some 700,000 parameters a module at 8B, and it ignores sigma, as a router of tokens would.

B1 (stage 1 only) has no adapter; B3 (GSD as text) is B2 with another prompt: see `data/processor.py`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from scaleearth_pl.model.gate import ContinuousGate, Gate, GateConfig, rank_tier_slices


class OpenGate(Gate):
    """Every rank open at every scale."""

    always_open = True

    def forward(self, log10_gsd_G: Float[Tensor, " G"], sigma_G: Float[Tensor, " G"]) -> Float[Tensor, "G r"]:  # noqa: ARG002
        """Ones; the layer does not even ask (`always_open`), only charts do."""
        return log10_gsd_G.new_ones(log10_gsd_G.shape[0], self.rank, dtype=torch.float32)


class BucketedGate(Gate):
    """One-hot over rank tiers by the tier of the GSD: high opens object, mid structure, low semantic ranks."""

    def __init__(self, config: GateConfig, rank: int) -> None:
        super().__init__(config, rank)
        expert_of_rank_r = torch.empty(rank, dtype=torch.long)
        for expert, ranks in enumerate(rank_tier_slices(rank).values()):
            expert_of_rank_r[ranks] = expert
        edges = [math.log10(config.buckets.high_below_m), math.log10(config.buckets.mid_below_m)]
        self.register_buffer("expert_of_rank_r", expert_of_rank_r, persistent=False)
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32), persistent=False)

    def forward(self, log10_gsd_G: Float[Tensor, " G"], sigma_G: Float[Tensor, " G"]) -> Float[Tensor, "G r"]:  # noqa: ARG002
        """1 for the ranks of the GSD's tier, else 0; an edge belongs to the coarser tier, as in `TierBoundaries`."""
        edges, expert_of_rank_r = self.get_buffer("edges"), self.get_buffer("expert_of_rank_r")
        expert_G = torch.bucketize(log10_gsd_G.float().contiguous(), edges, right=True)
        return (expert_G[:, None] == expert_of_rank_r).float()


def build_gate(config: GateConfig, rank: int) -> Gate:
    """The gate that `config.kind` names, for `rank` dimensions.

    Raises:
        ConfigError: `rank` is smaller than the number of rank tiers.
    """
    kinds: dict[str, type[Gate]] = {"continuous": ContinuousGate, "open": OpenGate, "bucketed": BucketedGate}
    return kinds[config.kind](config, rank)
