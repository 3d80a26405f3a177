"""`checkpointing: auto`: recompute activations only where they would not fit.

Recomputing costs 1.4 times the time, so it is off wherever the predicted peak of the largest micro-batch stays below a
share of the device's memory. Decided per rank from its own device: it changes no number, so ranks may differ. The
prediction counts weights, moments and activations (`preflight.predicted_peak_bytes`); the share leaves room for what it
does not know, such as logits, fragments and kernels' scratch. `micro_token_budget: auto` fills half of the memory by the
same count, which turns recomputing on only where the weights take a third.
"""

import logging
import os

import torch

from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.preflight import predicted_peak_bytes

log = logging.getLogger(__name__)

USABLE_SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Of a GPU nearly all is ours; a host has other work, and other ranks."""


def device_bytes(device: torch.device) -> tuple[int, str]:
    """Memory of a device, and its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "cuda"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu"


def decide_checkpointing(model: ScaleEarth, *, tokens: int, device: torch.device) -> bool:
    """Switches activation checkpointing on where memory demands it; whether it is on.

    Args:
        model: before it is wrapped or sharded.
        tokens: of the largest micro-batch that can occur.
        device: on which it will be trained.
    """
    total, kind = device_bytes(device)
    usable = USABLE_SHARE[kind] * total
    plain = predicted_peak_bytes(model, tokens, checkpointing=False)
    wanted = plain > usable
    if wanted:
        model.backbone.activation_checkpointing_enable()
    word = "on" if wanted else "off"
    log.info("checkpointing auto: %s (%.1f GB predicted without, %.1f usable)", word, plain / 1e9, usable / 1e9)
    return wanted
