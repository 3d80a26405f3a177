"""The gate: the ground sampling distance opens or closes each LoRA rank. The idea of the paper is this one line:

    h_k(s) = sigmoid(sharpness * (tau_k - s)),        s = log10(GSD in metres per pixel)

Rank k is open while pixels are finer than 10^tau_k metres and closes smoothly beyond. The thresholds tau are learnt,
without any supervision of the gates; they start in three bands, one for each *rank tier*:

    h  1.0 |#########################################              o  object     ranks, tau in [-0.8, 0.2]
           |              ooooo       +++++          ######        +  structure  ranks, tau in [ 0.2, 1.2]
       0.5 |                   oooo        ++++            ###     #  semantic   ranks, tau in [ 1.5, 2.5]
           |                       ooooo       +++++          ######
       0.0 |                            oooooooooooo++++++++++++++++#####
           +-----------+-----------+-----------+-----------+-----------+
        0.01 m       0.1 m        1 m        10 m        100 m      1 km        GSD

At 0.1 m every tier works; at 20 m little but the semantic ranks is left, and nobody drew a line between "fine" and
"coarse" imagery: neighbouring GSDs get neighbouring adapters, which a bucketed mixture of experts cannot promise.

A GSD is seldom known exactly. For s ~ N(mu, sigma^2) the gate takes its expectation, in the probit approximation
(MacKay, 1992), so that doubt flattens the gate towards one half instead of betting on mu:

    E[h_k(s)]  ~  sigmoid( sharpness * (tau_k - mu) / sqrt(1 + pi * sharpness^2 * sigma^2 / 8) )

It is off by at most 0.02 from the true integral, and sigma = 0 gives the paper's gate to the bit.

Price of the choice: h falls in s for every rank, so a rank cannot serve coarse images only, and fine images use more
of the adapter than coarse ones. Sharpness 4 per decade lets a rank go from 0.88 to 0.12 within one decade of GSD.

Legend of shape suffixes: G trees (one GSD each), r LoRA ranks, M gates.
"""

import math
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import RANK_TIER_BANDS, RANK_TIERS, TierBoundaries, rank_tier_sizes
from scaleearth_pl.model.keep_dtype import KeepsDtype


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What decides how open a rank is.

    Attributes:
        kind: "continuous" is ScaleEarth; "open" is plain LoRA and "bucketed" a hard choice by tier (`baselines.py`).
        sharpness: slope of the gate per decade of GSD.
        learn_sharpness: whether training may change it; it is then learnt as a logarithm, so it stays positive.
        tiers: False spreads the thresholds evenly over the whole span, the ablation of the three rank tiers.
        share_thresholds: one gate for all adapted modules instead of one for each.
        buckets: GSDs at which "bucketed" changes its expert.
    """

    kind: Literal["continuous", "open", "bucketed"] = "continuous"
    sharpness: float = 4.0
    learn_sharpness: bool = False
    tiers: bool = True
    share_thresholds: bool = False
    buckets: TierBoundaries = field(default_factory=TierBoundaries)

    def __post_init__(self) -> None:
        if not 0 < self.sharpness < math.inf:
            raise ConfigError(
                "gate sharpness must be finite and positive",
                field="gate.sharpness",
                value=self.sharpness,
                remedy="the default is 4 per decade",
            )
        if self.kind != "continuous" and (self.learn_sharpness or not self.tiers):
            raise ConfigError(
                "learn_sharpness and tiers belong to the continuous gate",
                field="gate.kind",
                value=self.kind,
                remedy="leave both at their defaults, or use kind 'continuous'",
            )


class Gate(KeepsDtype):
    """Base of all gates: maps one Gaussian of log10 GSD per tree to one factor in [0, 1] per rank, always float32."""

    always_open: ClassVar[bool] = False
    """True where the factor is 1 whatever the GSD: the layer then never asks the gate, and *is* plain LoRA."""

    def __init__(self, config: GateConfig, rank: int) -> None:
        super().__init__()
        self.config, self.rank = config, rank

    def forward(self, log10_gsd_G: Float[Tensor, " G"], sigma_G: Float[Tensor, " G"]) -> Float[Tensor, "G r"]:
        """Openness of every rank; `log10_gsd_G` in log10 metres per pixel, `sigma_G` its deviation in decades."""
        raise NotImplementedError


class ContinuousGate(Gate):
    """The paper's gate, marginal over the uncertainty of s. The thresholds [r] are all that it learns by default."""

    def __init__(self, config: GateConfig, rank: int) -> None:
        super().__init__(config, rank)
        self.thresholds = nn.Parameter(initial_thresholds(rank, tiers=config.tiers))
        log_sharpness = torch.tensor(math.log(config.sharpness), dtype=torch.float32)
        self.log_sharpness = nn.Parameter(log_sharpness) if config.learn_sharpness else None

    @property
    def sharpness(self) -> Tensor | float:
        """Slope per decade: the stated number, or the learnt one."""
        return self.config.sharpness if self.log_sharpness is None else self.log_sharpness.exp()

    def forward(self, log10_gsd_G: Float[Tensor, " G"], sigma_G: Float[Tensor, " G"]) -> Float[Tensor, "G r"]:
        """`openness` of this gate alone. Training asks `openness` for all gates at once: an edit belongs there."""
        return openness(self.thresholds[None], self.sharpness, log10_gsd_G, sigma_G)[0]


def openness(
    tau_Mr: Float[Tensor, "M r"],
    sharpness: float | Tensor,
    log10_gsd_G: Float[Tensor, " G"],
    sigma_G: Float[Tensor, " G"],
) -> Float[Tensor, "M G r"]:
    """THE FORMULA, E[sigmoid(sharpness (tau - s))] for s ~ N(log10_gsd, sigma^2): the slope loses what sigma takes.

    Training, answers, charts and `export` all come here, for M modules at G scales. (The viewer's page, which draws while
    the slider moves, has its own copy: `openness` in serving/viewer.html.)

    Args:
        tau_Mr: thresholds, log10 metres.
        sharpness: slope per decade; a number, a scalar or [M, 1].
        log10_gsd_G: mean of s. sigma_G: its deviation in decades.
    """
    flattening = torch.rsqrt(1 + math.pi / 8 * (sharpness * sigma_G.float()) ** 2)
    slope = (sharpness * flattening)[..., None]
    return torch.sigmoid(slope * (tau_Mr[:, None] - log10_gsd_G.float()[:, None]))


def rank_tier_slices(rank: int) -> dict[str, slice]:
    """Rank dimensions of each rank tier, finest first: 64 -> object 0:22, structure 22:43, semantic 43:64."""
    edges = accumulate(rank_tier_sizes(rank), initial=0)
    return {tier: slice(*edge) for tier, edge in zip(RANK_TIERS, pairwise(edges), strict=True)}


def initial_thresholds(rank: int, *, tiers: bool = True) -> Float[Tensor, " r"]:
    """Thresholds in log10 metres: even steps inside each rank tier's band, or over the whole span without tiers."""
    bands = [RANK_TIER_BANDS[tier] for tier in RANK_TIERS]
    if tiers:
        return torch.cat([_midpoints(*band, n) for band, n in zip(bands, rank_tier_sizes(rank), strict=True)])
    return _midpoints(bands[0][0], bands[-1][1], rank)


def _midpoints(low: float, high: float, n: int) -> Float[Tensor, " n"]:
    return low + (high - low) * (torch.arange(n, dtype=torch.float32) + 0.5) / n
