"""The objective of stage 2:  L = L_VLM + lambda_eff(step) * L_NLL.

    L_VLM = - sum_t log p(target_t)                                          cross-entropy of the answers, in nats
    L_NLL = sum_i w_i / 2 * [log 2 pi + log var_i + (s_i - mu_i)^2 / var_i]  Gaussian NLL of s = log10(GSD in metres)

Both are raw *sums*: the training step divides each by its own global normaliser (supervised tokens, summed trust),
which no micro-batch can know. The weight w_i is the trust in the label (exact 1, nominal 0.5, imprecise or unknown 0),
divided by the number of parts its image was split into.

What lambda is not: with the vision tower frozen and the prediction detached where it reaches the gate, L_VLM and L_NLL
share no trainable parameter. See `lambda_eff`.

Legend of shape suffixes: N supervised tokens, V vocabulary, I images (or trees).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaleearth_pl.core.curves import gaussian_nll_terms
from scaleearth_pl.core.errors import ConfigError


def gaussian_nll(
    mu_I: Float[Tensor, " I"],
    log_var_I: Float[Tensor, " I"],
    target_I: Float[Tensor, " I"],
    weight_I: Float[Tensor, " I"],
) -> Float[Tensor, ""]:
    """Weighted sum of negative log densities, in nats, with the constant, so that it is a density like any other.

    Args:
        mu_I: predicted log10 GSD, in log10 metres.
        log_var_I: predicted log variance (natural log, decades squared).
        target_I: log10 GSD by metadata; NaN where it is unknown.
        weight_I: trust. Where it is 0 the target is never looked at: 0 * NaN would be NaN.

    Returns:
        A float32 scalar. A NaN target with a weight gives NaN on purpose: the loader should have refused the sample.
    """
    mu_I, log_var_I = mu_I.float(), log_var_I.float()
    target_I = torch.where(weight_I > 0, target_I.float(), mu_I.detach())
    return (weight_I.float() * gaussian_nll_terms(mu_I, log_var_I, target_I)).sum()


def vlm_cross_entropy_sum(logits_NV: Float[Tensor, "N V"], target_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Summed cross-entropy of the supervised positions, in nats, computed in float32 whatever the logits' dtype.

    A sum of bfloat16 terms stops growing after a few hundred of them. No supervised position gives 0, with a graph.
    """
    return cross_entropy(logits_NV.float(), target_N, reduction="sum")


def lambda_eff(step: int, lambda_gsd: float, warmup_steps: int) -> float:
    """Weight of the NLL at `step`: lambda_gsd * min(1, step / warmup_steps), linear from 0.

    With the vision tower frozen and the predictions detached for gating, the two losses share no trainable parameter:
    lambda scales SSE-U's own gradient and nothing else. Under Adam, which divides a gradient by its own size, even
    that fades; what the ramp does is a second warm-up of SSE-U. It is logged as the paper's Figure 9 shows it, and
    is not to be presented as a tuned trade-off.

    Raises:
        ConfigError: negative `lambda_gsd` or `warmup_steps`.
    """
    if lambda_gsd < 0 or warmup_steps < 0:
        raise ConfigError(
            "lambda_gsd and warmup_steps must not be negative",
            field="lambda_gsd, warmup_steps",
            value=(lambda_gsd, warmup_steps),
            remedy="0 switches SSE-U's training, or the ramp, off",
        )
    return lambda_gsd * (min(1.0, step / warmup_steps) if warmup_steps else 1.0)
