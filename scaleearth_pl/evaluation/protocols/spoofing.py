"""Spoofing (the paper's Figure 10): tell the model another GSD and see whether it notices.

    absolute    every image is told the same pseudo-GSD; for a split of one GSD, such as RSVQA-HR (0.15 m)
    relative    every image is told its own GSD times 10^shift; for a split of many GSDs, such as the world

A model that uses the scale peaks near the truth; plain LoRA is exactly flat (it is not told); a bucketed mixture is flat
inside a bucket and jumps at its edges. The same images are asked at every grid point, so the whole curve is paired, and
the bands resample places.

**Peak.** The gate is monotone: a finer pseudo-GSD only opens ranks that fine images use anyway, so a plateau on the fine
side is expected, and an argmax on it is noise. What is reported is the *middle of the region within `tolerance` of the
maximum* (the connected run of grid points around the argmax) and its distance to the truth in decades; beside it the
asymmetry: accuracy lost one decade to the fine and one to the coarse side.

**Smoothness.** The largest jump between neighbouring grid points, in accuracy. A fair comparison needs one grid.

Legend: K grid points, N questions, R resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.evaluation.evaluator.engine import Asked
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.table import Bools, Floats, ViewTable, interval, place_means, tabulate
from scaleearth_pl.evaluation.evaluator.views import SPOOF_GRID_M, View, quarter_decade_grid, shift_views, spoof_views

SHIFTS_DECADES = tuple(k / 4 for k in range(-8, 9))
"""Two decades to either side in quarter decades: the grid of hypothesis H4, relative to the truth."""

TOLERANCE = 0.01
"""One point of accuracy: what "within 1 point of the maximum" means."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpoofingCurve:
    """Accuracy over the pseudo-GSD.

    Attributes:
        subject: name of the model.
        log10_K: grid, log10 metres (absolute) or decades from the truth (relative), increasing.
        relative: which of the two.
        truth: the true value on that axis: 0 if relative, else the median of the images' log10 GSD.
        mean_K: accuracy, low_K and high_K its 95 % band over places.
        nll_K: mean cross-entropy of the true answer, nats per token.
        resampled_RK: accuracies of resampled places, for intervals of anything derived.
        n_questions, n_images, n_places: what it rests on.
    """

    subject: str
    log10_K: Floats
    relative: bool
    truth: float
    mean_K: Floats
    low_K: Floats
    high_K: Floats
    nll_K: Floats
    resampled_RK: Floats
    n_questions: int
    n_images: int
    n_places: int

    def as_json(self) -> dict[str, Any]:
        """Curve, peak and smoothness as plain data."""
        return {
            "subject": self.subject,
            "axis": "decades from the truth" if self.relative else "log10 metres per pixel",
            "grid": self.log10_K.round(6).tolist(),
            "truth": self.truth,
            "accuracy": self.mean_K.tolist(),
            "ci95": np.stack([self.low_K, self.high_K], axis=1).tolist(),
            "answer_nll": self.nll_K.tolist(),
            "questions": self.n_questions,
            "images": self.n_images,
            "places": self.n_places,
            "peak": peak(self),
            "smoothness": smoothness(self),
        }


def spoofing_table(
    subject: Subject,
    images: Iterable[Asked],
    *,
    grid_m: Sequence[float] | None = None,
    shifts_decades: Sequence[float] | None = None,
    extra: Sequence[View] = (View(policy="metadata"),),
    boundaries: TierBoundaries | None = None,
    budget_tokens: int = 8192,
) -> ViewTable:
    """Answers at every grid point (either grid, or both; neither is the quarter-decade shifts), plus `extra` views."""
    views: list[View] = [*extra]
    views += spoof_views(grid_m) if grid_m is not None else ()
    views += shift_views(shifts_decades) if shifts_decades is not None else ()
    if grid_m is None and shifts_decades is None:
        views += shift_views(SHIFTS_DECADES)
    return tabulate(subject, images, views, boundaries=boundaries, budget_tokens=budget_tokens)


def spoofing_curve(
    table: ViewTable, *, relative: bool, keep_N: Bools | None = None, n_resamples: int = 2000, seed: int = 0
) -> SpoofingCurve:
    """The curve of a table.

    Args:
        table: from `spoofing_table`.
        relative: take its shifts, not its pseudo-GSDs. The unshifted point is the metadata view itself.
        keep_N: questions to keep, for example one family; None for all.
        n_resamples: resamples of places.
        seed: of the resampling; equal seeds on equal questions pair two subjects.

    Raises:
        ConfigError: the table has no such grid, or nothing is kept.
    """
    points = {_position(view, relative): v for v, view in enumerate(table.views) if _on_grid(view, relative)}
    if len(points) < 2:
        raise ConfigError("the table has no such grid", field="relative", value=relative, remedy="see spoofing_table")
    log10_K = np.array(sorted(points))
    rows = [points[x] for x in sorted(points)]
    keep = np.ones(table.correct_VN.shape[1], bool) if keep_N is None else keep_N
    correct_KN = table.correct_VN[rows][:, keep]
    mean_K, resampled_RK = place_means(correct_KN, table.place_N[keep], n_resamples=n_resamples, seed=seed)
    low_K, high_K = np.quantile(resampled_RK, [0.025, 0.975], axis=0)
    return SpoofingCurve(
        subject=table.subject,
        log10_K=log10_K,
        relative=relative,
        truth=0.0 if relative else float(np.nanmedian(table.log10_gsd_N[keep])),
        mean_K=mean_K,
        low_K=low_K,
        high_K=high_K,
        nll_K=table.nll_VN[rows][:, keep].mean(1),
        resampled_RK=resampled_RK,
        n_questions=int(keep.sum()),
        n_images=len(np.unique(table.image_N[keep])),
        n_places=len(np.unique(table.place_N[keep])),
    )


def peak(curve: SpoofingCurve, *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Argmax, the region within `tolerance` of the maximum around it, its middle, and how it falls off.

    `distance_decades` is the middle's signed distance to the truth (positive: too coarse), with its interval over
    resampled places. `drop_finer` and `drop_coarser` are the accuracies lost one decade away, null beyond the grid.
    """
    first, last = region(curve.mean_K, tolerance)
    middle = (curve.log10_K[first] + curve.log10_K[last]) / 2
    spans_R = [region(mean_K, tolerance) for mean_K in curve.resampled_RK]
    middles_R = np.array([(curve.log10_K[a] + curve.log10_K[b]) / 2 for a, b in spans_R])
    finer, coarser = (_drop(curve, curve.truth + step) for step in (-1.0, 1.0))
    return {
        "argmax": float(curve.log10_K[int(curve.mean_K.argmax())]),
        "maximum": float(curve.mean_K.max()),
        "region": [float(curve.log10_K[first]), float(curve.log10_K[last])],
        "middle": float(middle),
        "distance_decades": float(middle - curve.truth),
        "distance_ci95": list(interval(middles_R - curve.truth)),
        "drop_finer": finer,
        "drop_coarser": coarser,
        "asymmetry": None if finer is None or coarser is None else coarser - finer,
        "contrast": float(curve.mean_K.max() - curve.mean_K.min()),
    }


def region(mean_K: Floats, tolerance: float = TOLERANCE) -> tuple[int, int]:
    """First and last index of the run of neighbours around the argmax that lie within `tolerance` of the maximum.

    Of several equal maxima the middle one is the argmax, so that a flat curve has its middle in the middle.
    """
    inside = mean_K >= mean_K.max() - tolerance
    best = np.flatnonzero(mean_K >= mean_K.max() - 1e-12)
    first = last = int(best[len(best) // 2])
    while first > 0 and inside[first - 1]:
        first -= 1
    while last < len(mean_K) - 1 and inside[last + 1]:
        last += 1
    return first, last


def smoothness(curve: SpoofingCurve) -> dict[str, Any]:
    """Largest jump between neighbouring grid points with its interval, where it is, and the jumps' total."""
    jump = np.abs(np.diff(curve.mean_K))
    at = int(jump.argmax())
    largest_R = np.abs(np.diff(curve.resampled_RK, axis=1)).max(1)
    return {
        "largest_jump": float(jump[at]),
        "largest_jump_ci95": list(interval(largest_R)),
        "between": [float(curve.log10_K[at]), float(curve.log10_K[at + 1])],
        "total_variation": float(jump.sum()),
        "share_of_contrast": float(jump[at] / max(np.ptp(curve.mean_K), 1e-12)),
    }


def spoofing_document(curves: Mapping[str, SpoofingCurve]) -> dict[str, Any]:
    """All subjects' curves with peaks and smoothness, as plain data."""
    return {name: curve.as_json() for name, curve in curves.items()}


def paper_grid_and_quarters(low_m: float = 0.01, high_m: float = 30.0) -> tuple[float, ...]:
    """The paper's eight pseudo-GSDs and the quarter-decade grid between its ends, sorted, none twice."""
    quarters = [x for x in quarter_decade_grid(low_m, high_m) if all(abs(np.log10(x / y)) > 0.02 for y in SPOOF_GRID_M)]
    return tuple(sorted([*SPOOF_GRID_M, *quarters]))


def _on_grid(view: View, relative: bool) -> bool:
    if relative:
        return view.policy == "metadata" and not view.noise_decades
    return view.policy == "spoof"


def _position(view: View, relative: bool) -> float:
    return view.shift_decades if relative else float(np.log10(view.spoof_gsd_m or np.nan))


def _drop(curve: SpoofingCurve, at: float) -> float | None:
    if not curve.log10_K[0] - 1e-9 <= at <= curve.log10_K[-1] + 1e-9:
        return None
    return float(np.interp(curve.truth, curve.log10_K, curve.mean_K) - np.interp(at, curve.log10_K, curve.mean_K))
