"""SSE-U: reads the ground sampling distance from the image itself, and says how sure it is.

    level l of the vision tower [tokens, D_l] --> mean | standard deviation over the image's tokens [2 D_l]
                                              --> LayerNorm
    all levels, concatenated                  --> MLP --> (mu, log sigma^2) of s = log10(GSD)

The levels are those that one vision pass leaves anyway: last hidden state, merger output, DeepStack levels; the paper
says "a light head on ViT features" and no more. Mean *and* deviation, because scale shows in texture statistics:
a forest at 0.3 m is high-contrast crowns, at 30 m an even green. LayerNorm is per level, after pooling: levels differ
in size by orders of magnitude, and the ratio of deviation to mean inside one level is what must survive. Its price: the
overall size of a level is forgotten, so contrast shows only relative to other channels and to the mean.

`texture: true` puts one level before those: the roughness of the pixels that the tower reads (`texture.py`). It comes
scaled, so it has no LayerNorm; the tower's levels pass through a neck, or their 1,408 numbers drown its 54. That is our
addition: the paper's head is `texture: false, depth: 1`. Evidence (tiny; stage 2's 300 steps of 11 images replayed on
1,500 images of the procedural world, mean error on scenes with cues of 1,500 images that chose nothing, three seeds):
0.61 to 0.62 decades without, 0.13 to 0.14 with texture, three layers and neck; rank correlation of sigma and error 0.25
to 0.28 and 0.53 to 0.57. Depth alone left 0.62. Not tried on real imagery, nor on the features of a large tower.

The log variance is bounded, so that neither one lucky image (var -> 0) nor one hopeless one can own the loss; bounded
*softly*, raw -> c + h tanh((raw - c) / h) with c, h centre and half-width of the range, because a hard clamp has zero
gradient outside and a head that strays there never returns. The slope stays above 0.6 for sigma in [0.04, 2] decades
at the default range, and the head corrects for it, being linear in front of it.

Always float32, under any autocast: an error of 0.01 decades is a label's sigma, and bfloat16 cannot say it at s = 2.

Legend of shape suffixes: N tokens of one level, D its width, G trees (images of one GSD), F all features, H
hidden units.
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


QUIET = 0.1
"""LayerNorm gain of the tower's levels at the start where they stand beside texture."""

NECK = 16
"""Numbers that the tower's levels are projected to where they stand beside texture."""


@dataclass(frozen=True, kw_only=True)
class GsdHeadConfig:
    """Size and range of SSE-U.

    Attributes:
        hidden: width of the MLP.
        depth: its hidden layers.
        texture: the first level is `patch_texture` of the pixels; the others pass through a neck.
        log_var_min: lower bound of log sigma^2; -9 is sigma = 0.011 decades, the trust in an exact label.
        log_var_max: upper bound; 4 is sigma = 7.4 decades, "no idea".
    """

    hidden: int = 256
    depth: int = 1
    texture: bool = False
    log_var_min: float = -9.0
    log_var_max: float = 4.0

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ConfigError("SSE-U needs a hidden unit", field="head.hidden", value=self.hidden, remedy="try 256")
        if self.depth < 1:
            raise ConfigError("SSE-U needs a hidden layer", field="head.depth", value=self.depth, remedy="try 1 or 3")
        if not -math.inf < self.log_var_min < LOG_VAR_AT_START < self.log_var_max < math.inf:
            raise ConfigError(
                f"the range of the log variance must be finite and hold its start, {LOG_VAR_AT_START:.2f}",
                field="head.log_var_min, head.log_var_max",
                value=(self.log_var_min, self.log_var_max),
                remedy="the defaults are -9 and 4",
            )


class GsdHead(KeepsDtype):
    """Predicts a Gaussian of log10 GSD per tree from pooled vision features.

    Args:
        config: size and range.
        feature_dims: width D of each level, in the order in which `forward` gets them; with `texture` that comes first.
    """

    def __init__(self, config: GsdHeadConfig, feature_dims: Sequence[int]) -> None:
        super().__init__()
        self.feature_dims, self.config = tuple(feature_dims), config
        self.norms = nn.ModuleList(nn.LayerNorm(2 * dim, dtype=torch.float32) for dim in self.feature_dims)
        if config.texture:
            self.norms[0] = nn.Identity()
        n_pooled = [2 * dim for dim in self.feature_dims]
        if config.texture:
            self.neck = nn.Linear(sum(n_pooled[1:]), NECK, dtype=torch.float32)
            n_pooled = [n_pooled[0], NECK]
        self.first = nn.Linear(sum(n_pooled), config.hidden, dtype=torch.float32)
        deeper = (nn.Linear(config.hidden, config.hidden, dtype=torch.float32) for _ in range(config.depth - 1))
        self.deeper = nn.ModuleList(deeper)
        self.last = nn.Linear(config.hidden, 2, dtype=torch.float32)
        self._start_at_prior()

    @torch.no_grad()
    def _start_at_prior(self) -> None:
        """Small last weights, so that every image starts close to the prior yet the first layer gets gradient."""
        centre, half = self._range
        for norm in self.norms if self.config.texture else ():
            if isinstance(norm, nn.LayerNorm):
                nn.init.constant_(norm.weight, QUIET)
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
            pooled = [norm(pool(x_ND.float(), row_N, n_trees)) for norm, x_ND, row_N in levels]
            if self.config.texture:
                pooled = [pooled[0], self.neck(torch.cat(pooled[1:], dim=-1))]
            hidden_GH = gelu(self.first(torch.cat(pooled, dim=-1)))
            for layer in self.deeper:
                hidden_GH = gelu(layer(hidden_GH))
            mu_G, raw_G = self.last(hidden_GH).unbind(-1)
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
