"""SSE-U's five numbers, of all images and apart by whether the image shows its scale.

One definition for training curves and for the summary: `core.metrics.sse_u_metrics`. Every image is weighted by the
trust in its GSD; images whose GSD is unknown do not count. A number that cannot be computed (no image, one image, a
constant sigma) is null.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.metrics import sse_u_metrics
from scaleearth_pl.evaluation.predictions import SseuReading

NUMBERS = ("mae_decades", "nll", "calibration_ratio", "coverage90", "sigma_error_spearman")
"""Keys of `sse_u` in summary.json."""


def sse_u_numbers(readings: Sequence[SseuReading]) -> dict[str, float | None]:
    """`NUMBERS` over the images with a trusted GSD: errors in decades, nll in nats, coverage of the 90 % interval."""
    known = [r for r in readings if r.gsd_m is not None and r.provenance_weight > 0]
    if not known:
        return dict.fromkeys(NUMBERS)
    metrics = sse_u_metrics()
    metrics.update(
        mu=_tensor([r.mu for r in known]),
        log_var=_tensor([2 * math.log(r.sigma) for r in known]),
        log10_gsd=_tensor([log10_gsd(r.gsd_m) for r in known if r.gsd_m is not None]),
        weight=_tensor([r.provenance_weight for r in known]),
        has_scale_cue=_tensor([-1.0 if r.has_scale_cue is None else float(r.has_scale_cue) for r in known]),
    )
    values = {name: float(value) for name, value in metrics.compute().items()}
    return {name: values[name] if math.isfinite(values[name]) else None for name in NUMBERS}


def sse_u_by_cue(readings: Sequence[SseuReading]) -> dict[str, dict[str, Any]]:
    """The same, with `images` and `mean_sigma`, for 'all', 'cue', 'no_cue' and 'cue_unknown'; empty groups left out."""
    groups = {
        "all": list(readings),
        "cue": [r for r in readings if r.has_scale_cue is True],
        "no_cue": [r for r in readings if r.has_scale_cue is False],
        "cue_unknown": [r for r in readings if r.has_scale_cue is None],
    }
    return {
        name: {"images": len(rows), "mean_sigma": sum(r.sigma for r in rows) / len(rows), **sse_u_numbers(rows)}
        for name, rows in groups.items()
        if rows
    }


def _tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
