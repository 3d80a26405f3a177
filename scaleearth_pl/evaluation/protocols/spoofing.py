"""Spoofing (the paper's Figure 10): tell the model another GSD and see whether it notices.

    absolute    every image is told the same pseudo-GSD; for a split of one GSD, such as RSVQA-HR (0.15 m)
    relative    every image is told its own GSD times 10^shift; for a split of many GSDs, such as the world

A model that uses the scale peaks near the truth; plain LoRA is exactly flat (it is not told); a bucketed mixture is flat
inside a bucket and jumps at its edges. The same images are asked at every grid point, so the whole curve is paired, and
the bands resample places.

**Peak.** The gate is monotone: a finer pseudo-GSD only opens ranks that fine images use anyway, so a plateau on the fine
side is expected, and an argmax on it is noise. So hypothesis H4 asks for the middle of a region: `falsify.findings.plateau`.

**Smoothness.** The largest jump between neighbouring grid points, in accuracy. A fair comparison needs one grid.

Legend: K grid points, N questions, R resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.bootstrap import Floats, interval, place_means
from scaleearth_pl.evaluation.evaluator.table import Bools, ViewTable
from scaleearth_pl.evaluation.evaluator.views import View


@dataclass(frozen=True, kw_only=True, eq=False)
class SpoofingCurve:
    """Accuracy over the pseudo-GSD.

    Attributes:
        log10_K: grid, log10 metres (absolute) or decades from the truth (relative), increasing.
        relative: which of the two.
        truth: the true value on that axis: 0 if relative, else the median of the images' log10 GSD.
        mean_K: accuracy, low_K and high_K its 95 % band over places.
        resampled_RK: accuracies of resampled places, for intervals of anything derived.
        n_questions, n_images, n_places: what it rests on.
    """

    log10_K: Floats
    relative: bool
    truth: float
    mean_K: Floats
    low_K: Floats
    high_K: Floats
    resampled_RK: Floats
    n_questions: int
    n_images: int
    n_places: int


def spoofing_curve(
    table: ViewTable, *, relative: bool, keep_N: Bools | None = None, n_resamples: int = 2000, seed: int = 0
) -> SpoofingCurve:
    """The curve of a table.

    Args:
        table: with views of spoofed GSDs, or of shifts and the truth.
        relative: take its shifts, not its pseudo-GSDs. The unshifted point is the metadata view itself.
        keep_N: questions to keep, for example one family; None for all.
        n_resamples: resamples of places.
        seed: of the resampling; equal seeds on equal questions pair two subjects.

    Raises:
        ConfigError: the table has no such grid, or nothing is kept.
    """
    points = {_position(view, relative): v for v, view in enumerate(table.views) if _on_grid(view, relative)}
    if len(points) < 2:
        raise ConfigError(
            "the table has no such grid", field="relative", value=relative, remedy="tabulate spoof_views or shift_views"
        )
    log10_K = np.array(sorted(points))
    rows = [points[x] for x in sorted(points)]
    keep = np.ones(table.correct_VN.shape[1], bool) if keep_N is None else keep_N
    correct_KN = table.correct_VN[rows][:, keep]
    mean_K, resampled_RK = place_means(correct_KN, table.place_N[keep], n_resamples=n_resamples, seed=seed)
    low_K, high_K = np.quantile(resampled_RK, [0.025, 0.975], axis=0)
    return SpoofingCurve(
        log10_K=log10_K,
        relative=relative,
        truth=0.0 if relative else float(np.nanmedian(table.log10_gsd_N[keep])),
        mean_K=mean_K,
        low_K=low_K,
        high_K=high_K,
        resampled_RK=resampled_RK,
        n_questions=int(keep.sum()),
        n_images=len(np.unique(table.image_N[keep])),
        n_places=len(np.unique(table.place_N[keep])),
    )


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


def _on_grid(view: View, relative: bool) -> bool:
    if relative:
        return view.policy == "metadata" and not view.noise_decades
    return view.policy == "spoof"


def _position(view: View, relative: bool) -> float:
    return view.shift_decades if relative else float(np.log10(view.spoof_gsd_m or np.nan))
