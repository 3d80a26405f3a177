"""SSE-U's five numbers, of all images and apart by whether the image shows its scale.

One definition for training curves and for the summary: `core.metrics.sse_u_metrics`. Every image is weighted by the
trust in its GSD; images whose GSD is unknown do not count. A number that cannot be computed (no image, one image, a
constant sigma) is null.

`sse_u_report` adds what the referee asks for, by scale cue and by tier: CRPS, the probability integral transform (PIT) and
the coverage curve. For a Gaussian, with z = (s - mu) / sigma,

    CRPS = sigma ( z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi) )      in decades; |error| for sigma -> 0

which, unlike the NLL, no single over-confident image can own. The PIT is Phi(z): uniform where the Gaussian is honest,
U-shaped where it is too sure, leaning where mu is biased.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from scaleearth_pl.core.curves import coverage_curve, sigma_bins
from scaleearth_pl.core.gsd import Tier, log10_gsd
from scaleearth_pl.core.metrics import cue_number, sse_u_metrics
from scaleearth_pl.core.run_files import SseuReading

NUMBERS = ("mae_decades", "nll", "calibration_ratio", "coverage90", "sigma_error_spearman")
"""Keys of `sse_u` in summary.json."""

LEVELS = tuple(k / 20 for k in range(1, 20))
"""Nominal coverages of the curve: 5 % to 95 %."""

PIT_BINS = 10
SIGMA_BINS = 8


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
        has_scale_cue=_tensor([cue_number(r.has_scale_cue) for r in known]),
    )
    values = {name: float(value) for name, value in metrics.compute().items()}
    return {name: values[name] if math.isfinite(values[name]) else None for name in NUMBERS}


def sse_u_by_cue(readings: Sequence[SseuReading]) -> dict[str, dict[str, Any]]:
    """The same for 'all', 'cue', 'no_cue' and 'cue_unknown'; empty groups left out.

    `images` and `mean_sigma` are of all images of the group, `trusted` counts those whose GSD is known and trusted: the
    numbers are of these.
    """
    groups = {
        "all": list(readings),
        "cue": [r for r in readings if r.has_scale_cue is True],
        "no_cue": [r for r in readings if r.has_scale_cue is False],
        "cue_unknown": [r for r in readings if r.has_scale_cue is None],
    }
    return {name: {**_counts(rows), **sse_u_numbers(rows)} for name, rows in groups.items() if rows}


def sse_u_report(readings: Sequence[SseuReading]) -> dict[str, dict[str, Any]]:
    """`sse_u_by_cue`, the same by effective tier, each with CRPS, bias, PIT and coverage; {} without readings."""
    groups = {
        "all": list(readings),
        "cue": [r for r in readings if r.has_scale_cue is True],
        "no_cue": [r for r in readings if r.has_scale_cue is False],
        "cue_unknown": [r for r in readings if r.has_scale_cue is None],
        **{str(tier): [r for r in readings if r.tier == tier] for tier in Tier},
    }
    return {
        name: {**_counts(rows), **sse_u_numbers(rows), **_distribution(rows)} for name, rows in groups.items() if rows
    }


def _counts(rows: Sequence[SseuReading]) -> dict[str, Any]:
    trusted = sum(r.gsd_m is not None and r.provenance_weight > 0 for r in rows)
    return {"images": len(rows), "trusted": trusted, "mean_sigma": sum(r.sigma for r in rows) / len(rows)}


def _distribution(rows: Sequence[SseuReading]) -> dict[str, Any]:
    """What the predictive distribution is worth as a whole; nulls where no GSD is trusted."""
    known = [r for r in rows if r.gsd_m is not None and r.provenance_weight > 0]
    if not known:
        return dict.fromkeys(("crps", "bias_decades", "pit", "pit_distance", "coverage_curve", "sigma_bins"))
    weight_N = torch.tensor([r.provenance_weight for r in known], dtype=torch.float64)
    sigma_N = torch.tensor([r.sigma for r in known], dtype=torch.float64)
    error_N = torch.tensor([log10_gsd(r.gsd_m) - r.mu for r in known if r.gsd_m is not None], dtype=torch.float64)
    z_N = error_N / sigma_N
    phi_N = torch.exp(-z_N.square() / 2) / math.sqrt(2 * math.pi)
    pit_N = 0.5 * (1 + torch.erf(z_N / math.sqrt(2)))
    crps_N = sigma_N * (z_N * (2 * pit_N - 1) + 2 * phi_N - 1 / math.sqrt(math.pi))
    share = weight_N / weight_N.sum()
    bins = (pit_N * PIT_BINS).long().clamp(max=PIT_BINS - 1)
    order = torch.argsort(pit_N)
    upto_N = share[order].cumsum(0)
    before_N = upto_N - share[order]
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    covered = coverage_curve(z_N.abs(), weight_N, levels)
    by_sigma = sigma_bins(sigma_N, error_N.abs(), weight_N, SIGMA_BINS)
    return {
        "crps": float((share * crps_N).sum()),
        "bias_decades": float(-(share * error_N).sum()),
        "pit": torch.zeros(PIT_BINS, dtype=torch.float64).index_add_(0, bins, share).tolist(),
        "pit_distance": float(torch.maximum(upto_N - pit_N[order], pit_N[order] - before_N).max()),
        "coverage_curve": torch.stack([levels, covered], dim=1).tolist(),
        "sigma_bins": torch.stack(by_sigma, dim=1).tolist(),
    }


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
