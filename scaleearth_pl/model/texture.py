"""The finest level that SSE-U can read: how rough each patch of pixels is, at every scale inside the patch.

    patch [C, t, p, p] --> mean over frames --> luminance and two colour differences [3, p, p]
                       --> at steps of 1, 2, 4, 8 pixels: mean squared difference to the neighbour, across and down
                       --> log, brought to order one                                    [3 colours + 2 * 3 * scales]

Scale is written in the spectrum of an image: the slope and the breaks of its energy over spatial frequency tell how far
away a scene is (Torralba and Oliva, "Depth estimation from image structure", IEEE TPAMI 24(9), 2002). A mean and a
deviation of features that are linear in the pixels do not hold it: of the tiny tower's levels, the patch embedding
included, none gave an error under 0.4 decades; these numbers alone give 0.13 (`gsd_head.py`).

The numbers are those of each patch, so they pool like any other level: the mean over patches is the geometric mean of
the roughness, their deviation says how unevenly it is spread. No parameters, no batch statistics: the same on every
rank and under every packing. The scaling is fixed, because pixels come normalised to about [-1, 1] from every
processor of this family: squared differences lie between `FLOOR` (half a grey level) and 4 in luminance, 16 in the
colour differences, so (log e + 5) / 2 is between -3.3 and 3.9. The price: what an image of another sensor's noise, or
one that was enlarged, shows at a step of one pixel is the sensor, not the ground; SSE-U is then to be trained on such
images.

Legend of shape suffixes: P patches, D numbers per patch in the processor's order, K statistics.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

FLOOR = 1e-5
"""Added to squared differences: an even patch has none, and its logarithm no bound."""

COLOURS = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.0, -1.0, 1.0))
"""Luminance, red against green, blue against green."""


def n_scales(patch_size: int) -> int:
    """How often a patch can be halved until one pixel is left: 4 at 16 pixels."""
    return patch_size.bit_length() - 1


def texture_width(patch_size: int) -> int:
    """K: 27 at 16 pixels."""
    return len(COLOURS) * (1 + 2 * n_scales(patch_size))


def patch_texture(pixel_values_PD: Float[Tensor, "P D"], patch_size: int) -> Float[Tensor, "P K"]:
    """Colours and log energies of each patch, float32.

    Args:
        pixel_values_PD: RGB patches as the vision tower gets them, D = 3 * frames * patch_size^2, colour first.
        patch_size: side of a patch in pixels.
    """
    with torch.autocast(pixel_values_PD.device.type, enabled=False):
        pixels = pixel_values_PD.float().unflatten(1, (len(COLOURS), -1, patch_size, patch_size)).mean(2)
        level = torch.einsum("kc,pcyx->pkyx", _colours(pixels.device), pixels)
        statistics = [level.mean((-1, -2))]
        for scale in range(n_scales(patch_size)):
            level = avg_pool2d(level, 2) if scale else level
            statistics += [_log_energy(level.diff(dim=-1)), _log_energy(level.diff(dim=-2))]
    return torch.cat(statistics, dim=-1)


@cache
def _colours(device: torch.device) -> Float[Tensor, "K C"]:
    """`COLOURS` on a device, copied there once: the host waits for a copy."""
    return torch.tensor(COLOURS, dtype=torch.float32, device=device)


def _log_energy(difference: Tensor) -> Tensor:
    return (torch.log((difference**2).mean((-1, -2)) + FLOOR) + 5) / 2
