"""The tests of the plan, each from predictions to a `Finding`.

Seeds enter as the mean over seeds of the same question (or image); resamples are over places, which all seeds share. So
an interval says how sure the result is for other places, and the list of seeds says how much it owes to luck.

Legend of shape suffixes: S seeds, N questions, I images, G grid points, R resamples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scaleearth_pl.core.curves import weighted_spearman
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.run_files import PREDICTIONS, SSE_U, Prediction, SseuReading
from scaleearth_pl.evaluation.bootstrap import Places, Weights
from scaleearth_pl.evaluation.falsify.plan import Hypothesis
from scaleearth_pl.evaluation.falsify.verdicts import Finding, Statistic
from scaleearth_pl.evaluation.groups import correctness, group_masks
from scaleearth_pl.evaluation.pairing import in_order, refuse_other_questions

Rows = Sequence[Prediction]
BAND_DECADES = 0.25
"""Half-width of a band of true GSDs in the spoofing test."""

Z90 = 1.6449
"""Half-width of a 90 % interval, in sigmas, to the digits with which H6 was registered and judged."""


def difference(
    hypothesis: Hypothesis, ours: Sequence[Rows], twin: Sequence[Rows], group: str, places: Places
) -> Finding:
    """Accuracy of ours minus the twin's on the questions of `group`, paired; and on all questions, for the record."""
    rows, difference_SN = paired(ours, twin)
    mask_N = group_masks(rows).get(group)
    if mask_N is None:
        raise ConfigError("no question of this group was answered", field="group", value=group)
    bars = hypothesis.bars
    statistic = mean_over_seeds(
        f"ours - {bars['twin']}, {group.partition('/')[2] or group}",
        difference_SN[:, mask_N],
        _of(rows, mask_N),
        places,
    )
    judged = _with(statistic, low=bars["bound"], smallest=bars["smallest"], every_seed=True)
    everything = mean_over_seeds(
        f"ours - {bars['twin']}, all questions", difference_SN, [r.place_id for r in rows], places
    )
    note = f"over all questions {_signed(everything)}"
    return finding(hypothesis, [judged], notes=[note])


def edges(hypothesis: Hypothesis, ours: Sequence[Rows], twin: Sequence[Rows], places: Places) -> Finding:
    """Accuracy of ours minus the twin's near the edges of the buckets, and away from them."""
    rows, difference_SN = paired(ours, twin)
    distance_N = np.min(
        [
            np.abs([log10_gsd(r.gsd_m) - log10_gsd(edge) if r.gsd_m else np.inf for r in rows])
            for edge in hypothesis.bars["edges_m"]
        ],
        axis=0,
    )
    near_N = distance_N <= hypothesis.bars["within_decades"]
    statistics = [
        mean_over_seeds(
            f"ours - {hypothesis.bars['twin']}, {where}", difference_SN[:, mask_N], _of(rows, mask_N), places
        )
        for where, mask_N in (("near an edge", near_N), ("elsewhere", ~near_N))
        if mask_N.any()
    ]
    return finding(hypothesis, statistics, notes=[f"{int(near_N.sum())} questions lie near an edge"])


def calibration(hypothesis: Hypothesis, seeds: Sequence[Sequence[SseuReading]], places: Places) -> Finding:
    """SSE-U's calibration ratio, coverage and rank correlation, on images whose GSD is trusted.

    Raises:
        ConfigError: seeds that read other images.
    """
    known = [_trusted(readings) for readings in seeds]
    if any([r.image_id for r in readings] != [r.image_id for r in known[0]] for readings in known):
        raise ConfigError("runs did not read the same images", field=SSE_U, value=[len(r) for r in known])
    error_SI = np.array([[abs(r.mu - log10_gsd(r.gsd_m or 1.0)) for r in readings] for readings in known])
    sigma_SI = np.array([[r.sigma for r in readings] for readings in known])
    of_image = [r.place_id for r in known[0]]

    def ratio(weight_I: Weights, seed: slice = slice(None)) -> float:
        return float(
            np.average(error_SI[seed].mean(0), weights=weight_I) / np.average(sigma_SI[seed].mean(0), weights=weight_I)
        )

    def coverage(weight_I: Weights, seed: slice = slice(None)) -> float:
        inside_I = (error_SI[seed] <= Z90 * sigma_SI[seed]).mean(0)
        return float(np.average(inside_I, weights=weight_I))

    def correlation(weight_I: Weights, seed: slice = slice(None)) -> float:
        weights = torch.from_numpy(weight_I)
        pairs = zip(torch.from_numpy(error_SI[seed]), torch.from_numpy(sigma_SI[seed]), strict=True)
        return float(np.mean([weighted_spearman(e, s, weights).item() for e, s in pairs]))

    ones = np.ones(len(of_image))
    statistics = []
    for name, function in (("ratio", ratio), ("coverage90", coverage), ("rank_correlation", correlation)):
        statistics.append(
            Statistic(
                name=name.replace("_", " "),
                estimate=function(ones),
                resamples=places.apply(function, of_image),
                seeds=tuple(function(ones, slice(i, i + 1)) for i in range(len(known))),
                **hypothesis.bars[name],
            )
        )
    return finding(hypothesis, statistics)


def _trusted(readings: Sequence[SseuReading]) -> list[SseuReading]:
    """Readings of images whose GSD is trusted, in one order for all seeds."""
    known = [r for r in readings if r.gsd_m is not None and r.provenance_weight > 0]
    return sorted(known, key=lambda r: r.image_id)


def policy(
    hypothesis: Hypothesis, difference_SN: NDArray[np.float64], of_row: Sequence[str], places: Places
) -> Finding:
    """Correctness under the policy minus that under the true GSD, on the questions that the plan names."""
    name = f"{hypothesis.bars['policy']} - metadata, scenes with{'' if hypothesis.bars['cue'] else 'out'} cues"
    return finding(
        hypothesis, [_with(mean_over_seeds(name, difference_SN, of_row, places), low=hypothesis.bars["bound"])]
    )


def probes(hypothesis: Hypothesis, observed_S: Sequence[float], null_SR: NDArray[np.float64]) -> Finding:
    """Block-diagonality above what permuted tier labels give; its interval is that of the null, not of places."""
    above_R = np.mean(np.asarray(observed_S)[:, None] - null_SR, axis=0)
    statistic = Statistic(
        name="block-diagonality above its null",
        estimate=float(above_R.mean()),
        resamples=above_R,
        seeds=tuple(float(o - null.mean()) for o, null in zip(observed_S, null_SR, strict=True)),
        low=hypothesis.bars["bound"],
        every_seed=True,
    )
    return finding(hypothesis, [statistic], notes=["the interval comes from permuted tier labels, not from places"])


def spoofing(
    hypothesis: Hypothesis,
    grid_m: Sequence[float],
    correct_SGN: NDArray[np.float64],
    log10_gsd_N: NDArray[np.float64],
    of_row: Sequence[str],
    places: Places,
) -> Finding:
    """Distance in decades between the truth and the middle of the best region, the mean over bands of true GSD."""
    grid_G, truths_m, within = (
        np.log10(np.asarray(grid_m)),
        hypothesis.bars["truths_m"],
        hypothesis.bars["within_points"],
    )
    bands = [(log10_gsd(m), np.abs(log10_gsd_N - log10_gsd(m)) <= BAND_DECADES) for m in truths_m]

    def mean_distance(weight_N: Weights, correct_GN: NDArray[np.float64]) -> float:
        weights = [(truth, weight_N * band_N) for truth, band_N in bands]
        curves = [(truth, correct_GN @ w_N / w_N.sum()) for truth, w_N in weights if w_N.sum()]
        return float(
            np.mean([abs(plateau(grid_G, curve_G, within)[0] - truth) for truth, curve_G in curves] or [np.nan])
        )

    ones, over_seeds_GN = np.ones(len(of_row)), correct_SGN.mean(0)
    statistic = Statistic(
        name="distance of the middle of the best region from the truth, decades",
        estimate=mean_distance(ones, over_seeds_GN),
        resamples=places.apply(lambda w_N: mean_distance(w_N, over_seeds_GN), of_row),
        seeds=tuple(mean_distance(ones, correct_GN) for correct_GN in correct_SGN),
        high=hypothesis.bars["high"],
    )
    told = zip(truths_m, (band_N for _, band_N in bands), strict=True)
    notes = [_band_note(grid_G, over_seeds_GN[:, band_N], m, within) for m, band_N in told]
    return finding(hypothesis, [statistic], notes=notes)


def plateau(grid_G: NDArray[np.float64], accuracy_G: NDArray[np.float64], within: float) -> tuple[float, float, float]:
    """(middle, from, to) in decades of the points within `within` of the maximum, as one region around the maximum.

    The gate is monotone, so the fine side may be flat: the region's ends are given with its middle.
    """
    best = int(np.argmax(accuracy_G))
    good_G = accuracy_G >= accuracy_G[best] - within
    first = last = best
    while first > 0 and good_G[first - 1]:
        first -= 1
    while last < len(good_G) - 1 and good_G[last + 1]:
        last += 1
    return float((grid_G[first] + grid_G[last]) / 2), float(grid_G[first]), float(grid_G[last])


def paired(ours: Sequence[Rows], twin: Sequence[Rows]) -> tuple[Rows, NDArray[np.float64]]:
    """The questions in the order of the first run, and the differences of correctness [S, N].

    Raises:
        ConfigError: other questions, or another number of seeds.
    """
    if len(ours) != len(twin):
        raise ConfigError("ours and twin need the same number of seeds", value=(len(ours), len(twin)))
    for rows in (*ours[1:], *twin):
        refuse_other_questions(ours[0], rows, file=PREDICTIONS, remedy="test all on the same corpus and split")
    keys = [row.key for row in ours[0]]
    right = [[correctness(in_order(rows, keys)) for rows in side] for side in (ours, twin)]
    return ours[0], np.stack([a - b for a, b in zip(*right, strict=True)])


def finding(hypothesis: Hypothesis, statistics: Sequence[Statistic], *, notes: Sequence[str] = ()) -> Finding:
    """Statistics under the hypothesis's name."""
    return Finding(
        name=hypothesis.name,
        claim=hypothesis.claim,
        headline=hypothesis.headline,
        description=hypothesis.description,
        statistics=tuple(statistics),
        notes=tuple(notes),
    )


def mean_over_seeds(name: str, value_SN: NDArray[np.float64], of_row: Sequence[str], places: Places) -> Statistic:
    """The mean of all rows, seeds averaged first; its resamples are of places."""
    mean_N = value_SN.mean(0)
    return Statistic(
        name=name,
        estimate=float(mean_N.mean()),
        resamples=places.means(mean_N[None], of_row)[:, 0],
        seeds=tuple(float(v) for v in value_SN.mean(1)),
    )


def _with(statistic: Statistic, **bars: Any) -> Statistic:
    return dataclasses.replace(statistic, **bars)


def _of(rows: Rows, mask_N: NDArray[np.bool_]) -> list[str]:
    return [row.place_id for row, kept in zip(rows, mask_N, strict=True) if kept]


def _signed(statistic: Statistic) -> str:
    low, high = statistic.interval(0.05)
    return f"{100 * statistic.estimate:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _band_note(grid_G: NDArray[np.float64], correct_GN: NDArray[np.float64], truth_m: float, within: float) -> str:
    if not correct_GN.shape[1]:
        return f"no image near {truth_m:g} m"
    middle, first, last = plateau(grid_G, correct_GN.mean(1), within)
    return f"true {truth_m:g} m: best from {10**first:.2g} to {10**last:.2g} m, middle {10**middle:.2g} m"
