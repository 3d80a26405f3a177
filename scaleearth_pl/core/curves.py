"""Pure arithmetic behind what is said of an uncertain GSD: calibration, coverage, rank correlation, running means.

SSE-U says s ~ N(mu, sigma^2) with s = log10(metres per pixel), so errors and sigmas are in decades. An honest Gaussian
has E|mu - s| = sigma sqrt(2/pi): that constant is the reference of the calibration ratio (Fig. 8e of the paper).

Every statistic is *weighted*: the weight is the trust in an image's metadata GSD divided by the number of parts the
image was split into (`TreeBatch.nll_weight_G`). An image counts once however often it is seen, and images whose GSD is
unknown (weight 0, s = NaN) do not count. Callers of `weighted_mean`, `coverage_curve` and `sigma_bins` leave them out
beforehand, since 0 * NaN is NaN.

Legend of shape suffixes: N images, L confidence levels, K bins.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

CALIBRATION_REFERENCE = math.sqrt(2 / math.pi)
"""E|error| / sigma of a calibrated Gaussian, 0.798."""

LOG_2PI = math.log(2 * math.pi)


def gaussian_nll_terms(
    mu_N: Float[Tensor, " N"], log_var_N: Float[Tensor, " N"], log10_gsd_N: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """-log p(s) = (log 2 pi + log_var + (mu - s)^2 / exp(log_var)) / 2, in nats per image: what is trained and measured."""
    return 0.5 * (LOG_2PI + log_var_N + (mu_N - log10_gsd_N).square() * torch.exp(-log_var_N))


def weighted_mean(value_N: Float[Tensor, " N"], weight_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Sum of weight x value over the sum of weights; NaN when nothing has weight."""
    return (weight_N * value_N).sum() / weight_N.sum()


def interval_half_width(level: float) -> float:
    """Half-width, in sigmas, of the central interval that holds `level` of a Gaussian: 0.9 -> 1.645."""
    return math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()


def coverage_curve(
    absolute_z_N: Float[Tensor, " N"], weight_N: Float[Tensor, " N"], level_L: Float[Tensor, " L"]
) -> Float[Tensor, " L"]:
    """Share of images whose error lies inside the central interval of each level; the diagonal is calibrated.

    Args:
        absolute_z_N: |mu - s| / sigma.
        weight_N: trust.
        level_L: nominal confidence in (0, 1).
    """
    nominal_N = torch.erf(absolute_z_N / math.sqrt(2))
    inside_LN = nominal_N[None, :] <= level_L[:, None]
    return (inside_LN * weight_N).sum(1) / weight_N.sum()


def sigma_bins(
    sigma_N: Float[Tensor, " N"], error_N: Float[Tensor, " N"], weight_N: Float[Tensor, " N"], n_bins: int
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """(mean sigma, mean |error|) of bins that hold about equally many images, ordered by sigma; empty bins left out.

    A head whose sigma means something rises along |error| = 0.798 sigma; one that is calibrated on average only is a
    horizontal line that crosses it.
    """
    order_N = torch.argsort(sigma_N)
    chunks = [c for c in torch.tensor_split(order_N, n_bins) if c.numel()]
    means = [(weighted_mean(sigma_N[c], weight_N[c]), weighted_mean(error_N[c], weight_N[c])) for c in chunks]
    if not means:
        return sigma_N.new_zeros(0), sigma_N.new_zeros(0)
    return torch.stack([sigma for sigma, _ in means]), torch.stack([error for _, error in means])


def weighted_ranks(value_N: Float[Tensor, " N"], weight_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Mid-ranks by weight: the weight below a value plus half the weight that ties with it."""
    unique, inverse_N = torch.unique(value_N, return_inverse=True)
    mass_U = torch.zeros(unique.numel(), dtype=torch.float64, device=value_N.device)
    mass_U.scatter_add_(0, inverse_N, weight_N.double())
    return (mass_U.cumsum(0) - mass_U / 2)[inverse_N]


def weighted_spearman(
    x_N: Float[Tensor, " N"], y_N: Float[Tensor, " N"], weight_N: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Pearson correlation of weighted mid-ranks; with equal weights exactly Spearman's rho, ties included.

    NaN when fewer than two images have weight or one side is constant: no order, nothing to correlate. (Asked of the
    values: the mean of equal ranks may miss them by a rounding, and noise would be correlated.)
    """
    x_N, y_N, weight_N = (v_N[weight_N > 0] for v_N in (x_N, y_N, weight_N.double()))
    if torch.unique(x_N).numel() < 2 or torch.unique(y_N).numel() < 2:
        return weight_N.new_full((), torch.nan)
    rank_x_N, rank_y_N = weighted_ranks(x_N, weight_N), weighted_ranks(y_N, weight_N)
    rank_x_N = rank_x_N - weighted_mean(rank_x_N, weight_N)
    rank_y_N = rank_y_N - weighted_mean(rank_y_N, weight_N)
    covariance = (weight_N * rank_x_N * rank_y_N).sum()
    spread = ((weight_N * rank_x_N.square()).sum() * (weight_N * rank_y_N.square()).sum()).sqrt()
    return covariance / spread


class DebiasedEma:
    """Exponential moving average that starts unbiased: sum of (1-b) b^(t-i) x_i over 1 - b^t.

    Without the division the first 1/(1-b) steps would show the start value, not the loss. It works on tensors in
    place of their device, so that following a loss costs no host synchronisation.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.total: float | Tensor = 0.0
        self.mass = 0.0

    def update(self, value: Tensor) -> Tensor:
        """Takes one value in, returns the average so far."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.mass = self.decay * self.mass + (1 - self.decay)
        return self.total / self.mass

    def state_dict(self) -> dict[str, float]:
        """Two numbers, for resuming; costs one synchronisation."""
        return {"total": float(self.total), "mass": self.mass}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on where `state_dict` was taken."""
        # A tensor again: a Python float would be multiplied in fp64, and the resumed curve would differ in its last bit.
        self.total, self.mass = torch.tensor(state["total"]), state["mass"]
