"""SSE-U: reads the ground sampling distance from the image itself, and says how sure it is.

    level l of the vision tower [tokens, D_l] --> mean | standard deviation over the image's tokens [2 D_l]
                                              --> LayerNorm
    all levels, concatenated                  --> Linear --> GELU --> Linear --> (mu, log sigma^2) of s = log10(GSD)

The levels are those that one vision pass leaves anyway: last hidden state, merger output, DeepStack levels; the paper
says "a light head on ViT features" and no more. Mean *and* deviation, because scale shows in texture statistics:
a forest at 0.3 m is high-contrast crowns, at 30 m an even green. LayerNorm is per level, after pooling: levels differ
in size by orders of magnitude, and the ratio of deviation to mean inside one level is what must survive. Its price: the
overall size of a level is forgotten, so contrast shows only relative to other channels and to the mean.

The log variance is bounded, so that neither one lucky image (var -> 0) nor one hopeless one can own the loss; bounded
*softly*, raw -> c + h tanh((raw - c) / h) with c, h centre and half-width of the range, because a hard clamp has zero
gradient outside and a head that strays there never returns. The slope stays above 0.6 for sigma in [0.04, 2] decades
at the default range, and the head corrects for it, being linear in front of it.

Always float32, under any autocast: an error of 0.01 decades is a label's sigma, and bfloat16 cannot say it at s = 2.

Legend of shape suffixes: N tokens of one level, D its width, G trees (images of one GSD), F all features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.keep_dtype import KeepsDtype

MU_AT_START = math.log10(2.0)
"""The middle of 0.1 to 30 m in decades, roughly: an untrained head says 2 m ..."""

LOG_VAR_AT_START = 2 * math.log(0.7)
"""... give or take 0.7 decades, the deviation of a uniform draw from that span."""


@dataclass(frozen=True, kw_only=True)
class GsdHeadConfig:
    """Size and range of SSE-U.

    Attributes:
        hidden: width of the MLP.
        log_var_min: lower bound of log sigma^2; -9 is sigma = 0.011 decades, the trust in an exact label.
        log_var_max: upper bound; 4 is sigma = 7.4 decades, "no idea".
    """

    hidden: int = 256
    log_var_min: float = -9.0
    log_var_max: float = 4.0

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ConfigError("SSE-U needs a hidden unit", field="sse_u.hidden", value=self.hidden, remedy="try 256")
        if not self.log_var_min < LOG_VAR_AT_START < self.log_var_max:
            raise ConfigError(
                f"the range of the log variance must hold its start, {LOG_VAR_AT_START:.2f}",
                field="sse_u.log_var_min, sse_u.log_var_max",
                value=(self.log_var_min, self.log_var_max),
                remedy="the defaults are -9 and 4",
            )


class GsdHead(KeepsDtype):
    """Predicts a Gaussian of log10 GSD per tree from pooled vision features.

    Args:
        config: size and range.
        feature_dims: width D of each level, in the order in which `forward` gets them.
    """

    def __init__(self, config: GsdHeadConfig, feature_dims: Sequence[int]) -> None:
        super().__init__()
        self.feature_dims, self.config = tuple(feature_dims), config
        self.norms = nn.ModuleList(nn.LayerNorm(2 * dim, dtype=torch.float32) for dim in self.feature_dims)
        self.first = nn.Linear(2 * sum(self.feature_dims), config.hidden, dtype=torch.float32)
        self.last = nn.Linear(config.hidden, 2, dtype=torch.float32)
        self._start_at_prior()

    @torch.no_grad()
    def _start_at_prior(self) -> None:
        """Small last weights, so that every image starts close to the prior yet the first layer gets gradient."""
        centre, half = self._range
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(self.config.hidden))
        raw_log_var = centre + half * math.atanh((LOG_VAR_AT_START - centre) / half)
        self.last.bias.copy_(torch.tensor([MU_AT_START, raw_log_var], dtype=torch.float32))

    @property
    def _range(self) -> tuple[float, float]:
        """Centre and half-width of the log variance."""
        low, high = self.config.log_var_min, self.config.log_var_max
        return (low + high) / 2, (high - low) / 2

    def forward(
        self, features: Sequence[Float[Tensor, "_ _"]], rows: Sequence[Int[Tensor, " _"]], n_trees: int
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
        """Pools every level over the tokens of a tree and predicts; several images of one tree share its GSD.

        Args:
            features: one [N, D] tensor per level, any float dtype.
            rows: for each level the tree of each of its tokens, in [0, n_trees).
            n_trees: G, given by the host so that nothing waits for the device.

        Returns:
            (mu_G in log10 metres, log_var_G in [log_var_min, log_var_max]), float32.

        Raises:
            ConfigError: another number of levels, or other widths, than the head was built for.
        """
        widths = tuple(x_ND.shape[-1] for x_ND in features)
        if widths != self.feature_dims or len(rows) != len(features):
            raise ConfigError(
                f"SSE-U was built for levels of widths {self.feature_dims}",
                field="features",
                value=widths,
                remedy="build it from the vision tower it will read; check the adapter folder's base",
            )
        with torch.autocast(features[0].device.type, enabled=False):
            levels = zip(self.norms, features, rows, strict=True)
            pooled_GF = torch.cat([norm(pool(x_ND.float(), row_N, n_trees)) for norm, x_ND, row_N in levels], dim=-1)
            mu_G, raw_G = self.last(gelu(self.first(pooled_GF))).unbind(-1)
            centre, half = self._range
            return mu_G, centre + half * torch.tanh((raw_G - centre) / half)


def pool(x_ND: Float[Tensor, "N D"], row_N: Int[Tensor, " N"], n_trees: int) -> Float[Tensor, "G 2*D"]:
    """Mean and standard deviation over the tokens of each tree; zeros for a tree without tokens.

    The deviation is two-pass (mean first), exact for features with a large offset, and its square root has an epsilon:
    an even image has deviation 0, where the root's slope is infinite.
    """
    count_G1 = x_ND.new_zeros(n_trees).index_add_(0, row_N, x_ND.new_ones(len(row_N))).clamp(min=1)[:, None]
    mean_GD = x_ND.new_zeros(n_trees, x_ND.shape[1]).index_add_(0, row_N, x_ND) / count_G1
    centred_ND = x_ND - mean_GD.index_select(0, row_N)
    var_GD = torch.zeros_like(mean_GD).index_add_(0, row_N, centred_ND**2) / count_G1
    return torch.cat([mean_GD, torch.sqrt(var_GD + 1e-6) - 1e-3], dim=-1)
