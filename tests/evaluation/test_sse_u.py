"""SSE-U's numbers of the summary."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm, spearmanr

from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.evaluation.sse_u import LEVELS, NUMBERS, sse_u_by_cue, sse_u_numbers, sse_u_report


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


@pytest.fixture
def half_trusted(readings):
    """Every second image counts half, and its mu is biased: what ignores trust is off by far."""
    return [r if i % 2 else replace(r, provenance_weight=0.5, mu=r.mu + 0.4) for i, r in enumerate(readings)]


def test_the_distribution_is_its_definitions_by_trust(half_trusted):
    """CRPS as its integral of (F - step)^2, all else as numpy's weighted means and histograms."""
    report = sse_u_report(half_trusted)["all"]
    s = np.array([math.log10(r.gsd_m) for r in half_trusted])
    mu, sigma, weight = np.array([(r.mu, r.sigma, r.provenance_weight) for r in half_trusted]).T
    z, grid = (s - mu) / sigma, np.linspace(-6, 6, 24_001)
    squares = [np.where(grid < s_i, norm.cdf(grid, m, d), norm.sf(grid, m, d)) ** 2 for s_i, m, d in zip(s, mu, sigma)]
    assert report["crps"] == pytest.approx(np.average(np.trapezoid(squares, grid), weights=weight), rel=1e-3)
    assert report["bias_decades"] == pytest.approx(np.average(mu - s, weights=weight))
    histogram = np.histogram(norm.cdf(z), bins=10, range=(0, 1), weights=weight / weight.sum())[0]
    assert report["pit"] == pytest.approx(histogram.tolist())
    inside = [np.average(np.abs(z) <= norm.ppf(0.5 + level / 2), weights=weight) for level in LEVELS]
    assert np.array(report["coverage_curve"]) == pytest.approx(np.stack([LEVELS, inside], axis=1))
    bins = np.array_split(np.argsort(sigma), 8)
    means = [[np.average(x[b], weights=weight[b]) for x in (sigma, np.abs(s - mu))] for b in bins]
    assert np.array(report["sigma_bins"]) == pytest.approx(np.array(means))


def test_trust_is_repetition(half_trusted):
    """An image of twice the trust is two images, also where no definition is at hand (the PIT's distance)."""
    twice = [replace(r, provenance_weight=1.0) for r in half_trusted for _ in range(int(2 * r.provenance_weight))]
    one, other = (sse_u_report(rows)["all"] for rows in (half_trusted, twice))
    for name in ("crps", "bias_decades", "pit", "pit_distance"):
        assert one[name] == pytest.approx(other[name]), name
