"""Another gate than the paper's: the one that the README proposes to try."""

import torch
from torch import Tensor


def bell(tau_Mr: Tensor, sharpness: float, log10_gsd_G: Tensor, sigma_G: Tensor) -> Tensor:
    """`openness` of ranks that serve one scale and close to both sides, [M, G, r]."""
    return torch.exp(-(sharpness * (tau_Mr[:, None] - log10_gsd_G[:, None]) / 4).square())
