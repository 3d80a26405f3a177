"""SSE-U's numbers of the summary."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm, spearmanr

from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.evaluation.sse_u import NUMBERS, sse_u_by_cue, sse_u_numbers, sse_u_report


def test_numbers_are_their_definitions(readings):
    numbers = sse_u_numbers(readings)
    error = np.array([r.mu - math.log10(r.gsd_m) for r in readings])
    sigma = np.array([r.sigma for r in readings])
    expected = {
        "mae_decades": np.abs(error).mean(),
        "nll": (0.5 * (error / sigma) ** 2 + np.log(sigma) + 0.5 * math.log(2 * math.pi)).mean(),
        "calibration_ratio": np.abs(error).mean() / sigma.mean(),
        "coverage90": (np.abs(error) <= 1.6448536 * sigma).mean(),
        "sigma_error_spearman": spearmanr(sigma, np.abs(error)).statistic,
    }
    assert tuple(numbers) == NUMBERS
    assert numbers == pytest.approx(expected, rel=1e-4)


def test_an_honest_head_is_calibrated_and_unsure_without_cues(readings):
    groups = sse_u_by_cue(readings)
    assert groups["all"]["calibration_ratio"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.12)
    assert groups["no_cue"]["mean_sigma"] > 3 * groups["cue"]["mean_sigma"]
    assert groups["no_cue"]["mae_decades"] > groups["cue"]["mae_decades"]
    assert groups["cue"]["images"] + groups["no_cue"]["images"] == groups["all"]["images"] == len(readings)
    assert "cue_unknown" not in groups


def test_untrusted_gsds_do_not_count_and_nothing_is_null(readings):
    def with_gsd(r, gsd_m, weight, tier):
        return SseuReading(
            image_id=r.image_id,
            place_id=r.place_id,
            gsd_m=gsd_m,
            provenance_weight=weight,
            mu=r.mu,
            sigma=r.sigma,
            has_scale_cue=r.has_scale_cue,
            tier=tier,
        )

    wild = [with_gsd(r, 3000.0, 0.0, "low") for r in readings[:50]]
    unknown = [with_gsd(r, None, 0.0, "unknown") for r in readings[50:80]]
    assert sse_u_numbers([*readings, *wild, *unknown]) == sse_u_numbers(readings)
    assert sse_u_numbers(unknown) == dict.fromkeys(NUMBERS)
    assert sse_u_numbers([]) == dict.fromkeys(NUMBERS)
    assert sse_u_numbers(readings[:1])["sigma_error_spearman"] is None


def test_the_pit_distance_is_that_of_kolmogorov_and_smirnov(readings):
    """Against SciPy; of one image it is the larger part of the unit interval beside its PIT, whichever side that is."""
    pit = [norm.cdf((math.log10(r.gsd_m) - r.mu) / r.sigma) for r in readings]
    for n in (1, 2, 200):
        expected = kstest(pit[:n], "uniform").statistic
        assert sse_u_report(readings[:n])["all"]["pit_distance"] == pytest.approx(expected, abs=1e-9)
    high = replace(readings[0], mu=0.0, sigma=1.0, gsd_m=10.0)
    assert sse_u_report([high])["all"]["pit_distance"] == pytest.approx(norm.cdf(1.0))
