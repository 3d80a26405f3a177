"""The resolver: the one place that decides which GSD the gate believes, and how firmly.

    policy      s seen by the gate                              sigma
    metadata    metadata                                        its provenance's
    predicted   SSE-U's mu                                      SSE-U's sigma
    fused       (s_m var_u + mu var_m) / (var_m + var_u)        var_m var_u / (var_m + var_u), as a root
    spoof       log10(spoof_gsd_m), for every image             0

`fused` is the product of two Gaussians, written without a division by var_m, which may be 0. A GSD that is unknown
(NaN) leaves SSE-U's word in `predicted` and `fused`; under `metadata` evaluation refuses it, because a table headed
"metadata" must not hold predictions, while training gates the tree by SSE-U's word, because its questions are good.

While training, a share of the trees is gated by the prediction although metadata is there, so that the adapter meets
SSE-U's errors before it depends on them: the trees whose `gate_draw` (a hash of image id and epoch) lies below
`predicted_share(progress)`. What reaches the gate is detached: SSE-U learns from labels only, never to please the VLM
loss. In a model without SSE-U, an unknown GSD of a training tree becomes the prior that an untrained SSE-U would state
(2 m, give or take 0.7 decades), at which the marginal gate is half as steep.

`marginal=False` sets sigma to 0 everywhere, the gate without a margin, as an ablation.

The paper's rule, metadata where known and SSE-U where not, is what training does. Evaluation has no such policy on
purpose: `fused` does nearly that (exact metadata, 0.01 decades, keep the last word) and says so image by image.

Legend of shape suffixes: G trees.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import check_gsd_m, log10_gsd
from scaleearth_pl.model.gsd_head import LOG_VAR_AT_START, MU_AT_START


@dataclass(frozen=True, kw_only=True)
class ResolverConfig:
    """Whom the gate believes.

    Attributes:
        policy: see the module's table.
        spoof_gsd_m: the pseudo-GSD of policy "spoof", metres per pixel *seen by the model*.
        marginal: False lets the gate ignore all uncertainty.
        train_predicted_share: share of training trees that SSE-U gates once it is warm.
        warmup_share: part of the run before SSE-U gates anything but trees without a GSD.
        ramp_share: part of the run over which the share of trees then rises to its full value.
    """

    policy: Literal["metadata", "predicted", "fused", "spoof"] = "metadata"
    spoof_gsd_m: float | None = None
    marginal: bool = True
    train_predicted_share: float = 0.2
    warmup_share: float = 0.2
    ramp_share: float = 0.2

    def __post_init__(self) -> None:
        if (self.policy == "spoof") != (self.spoof_gsd_m is not None):
            raise ConfigError(
                "spoof_gsd_m belongs to policy 'spoof', and policy 'spoof' needs it",
                field="resolver.spoof_gsd_m",
                value=self.spoof_gsd_m,
                remedy="set both or neither",
            )
        if self.spoof_gsd_m is not None:
            check_gsd_m(self.spoof_gsd_m, field="resolver.spoof_gsd_m")
        for name in ("train_predicted_share", "warmup_share", "ramp_share"):
            _check_share(getattr(self, name), field=f"resolver.{name}")


@dataclass(frozen=True)
class Resolver:
    """Applies a `ResolverConfig`; holds no state, so evaluation may make another one from the same model."""

    config: ResolverConfig

    def predicted_share(self, progress: float) -> float:
        """Share of training trees that SSE-U gates: 0 through the warm-up, then linear to its full value.

        `progress` is the part of the run that is done, step / total steps, so that one configuration serves a run of
        300 steps and one of 4,500. Raises `ConfigError` outside [0, 1], which a bare step would soon be.
        """
        past = _check_share(progress, field="progress") - self.config.warmup_share
        if past < 0:
            return 0.0
        ramp = past / self.config.ramp_share if self.config.ramp_share else 1.0
        return self.config.train_predicted_share * min(1.0, ramp)

    def resolve(
        self,
        *,
        log10_gsd_G: Float[Tensor, " G"],
        sigma_log10_G: Float[Tensor, " G"],
        mu_G: Float[Tensor, " G"] | None,
        log_var_G: Float[Tensor, " G"] | None,
        gate_draw_G: Float[Tensor, " G"],
        predicted_share: float,
        training: bool,
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
        """What the gate takes: (log10 GSD, sigma in decades), detached, float32, finite.

        Args:
            log10_gsd_G: by metadata, log10 metres per pixel seen by the model; NaN where unknown.
            sigma_log10_G: its deviation in decades; not read where the GSD is unknown.
            mu_G: SSE-U's mean, in log10 metres; None in a model without SSE-U, together with `log_var_G`.
            log_var_G: SSE-U's log variance.
            gate_draw_G: uniform in [0, 1), fixed by (image id, epoch).
            predicted_share: trees with a draw below it are gated by SSE-U; 0 in evaluation.
            training: whether an unknown GSD under policy "metadata" is SSE-U's business (True) or an error (False).

        Raises:
            GsdError: unknown GSD under policy "metadata" outside training. Only this check waits for the device;
                training never does.
            ConfigError: the policy, or the share, needs a prediction that the model does not make.
        """
        if mu_G is None or log_var_G is None:
            self._refuse_missing_head(predicted_share)
            mu_G = torch.full_like(log10_gsd_G, MU_AT_START)
            log_var_G = torch.full_like(log10_gsd_G, LOG_VAR_AT_START)
        known_G = torch.isfinite(log10_gsd_G)
        if self.config.policy == "metadata" and not training:
            _refuse_unknown(known_G)
        metadata = log10_gsd_G.float(), sigma_log10_G.float()
        predicted = mu_G.detach().float(), torch.exp(0.5 * log_var_G.detach().float())
        log10_G, sigma_G = self._believe(metadata, predicted)
        by_sse_u_G = ~known_G | (gate_draw_G < predicted_share)
        if self.config.policy != "spoof":
            log10_G = torch.where(by_sse_u_G, predicted[0], log10_G)
            sigma_G = torch.where(by_sse_u_G, predicted[1], sigma_G)
        return log10_G, sigma_G if self.config.marginal else torch.zeros_like(sigma_G)

    def _refuse_missing_head(self, predicted_share: float) -> None:
        """Without SSE-U there is nothing to predict from."""
        if self.config.policy in ("predicted", "fused") or predicted_share > 0:
            raise ConfigError(
                "the resolver needs SSE-U's prediction, and the model has no SSE-U",
                field="resolver.policy, predicted_share",
                value=(self.config.policy, predicted_share),
                remedy="give the model a GSD head, or use policy 'metadata' or 'spoof' with share 0",
            )

    def _believe(self, metadata: tuple[Tensor, Tensor], predicted: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The policy's answer for known GSDs."""
        if self.config.policy == "predicted":
            return predicted
        if self.config.policy == "fused":
            return fuse(*metadata, *predicted)
        if self.config.spoof_gsd_m is not None:
            spoof_G = torch.full_like(metadata[0], log10_gsd(self.config.spoof_gsd_m))
            return spoof_G, torch.zeros_like(spoof_G)
        return metadata


def fuse(
    mean_a_G: Float[Tensor, " G"],
    sigma_a_G: Float[Tensor, " G"],
    mean_b_G: Float[Tensor, " G"],
    sigma_b_G: Float[Tensor, " G"],
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Product of two Gaussians: (mean, sigma). One sigma may be 0 (that source is then believed), not both."""
    var_a_G, var_b_G = sigma_a_G**2, sigma_b_G**2
    total_G = var_a_G + var_b_G
    return (mean_a_G * var_b_G + mean_b_G * var_a_G) / total_G, sigma_a_G * sigma_b_G / torch.sqrt(total_G)


def _check_share(value: float, *, field: str) -> float:
    if not 0 <= value <= 1:
        raise ConfigError("a share lies in [0, 1]", field=field, value=value, remedy="give a part of one, such as 0.2")
    return value


def _refuse_unknown(known_G: Tensor) -> None:
    unknown = int((~known_G).sum())
    if unknown:
        raise GsdError(
            f"{unknown} of {known_G.numel()} trees have no GSD, which policy 'metadata' needs",
            field="gsd_m_native",
            value=math.nan,
            remedy="evaluate with resolver policy 'predicted' or 'fused', or add the GSD to the samples",
        )
