"""Metrics against their definitions, references in scipy and numpy, and two ranks against one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.ranks import in_group
from scipy.stats import norm, spearmanr

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.curves import (
    CALIBRATION_REFERENCE,
    coverage_curve,
    interval_half_width,
    sigma_bins,
    weighted_spearman,
)
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.metrics import (
    CalibrationRatio,
    GaussianNll,
    GroupedAccuracy,
    GsdRecords,
    IntervalCoverage,
    MaeDecades,
    SigmaErrorSpearman,
    cue_tensor,
    sse_u_metrics,
)

TIERS, FAMILIES, TYPES = (
    ("high", "mid", "low"),
    ("identification", "scale_specific"),
    ("präsenz", "width", "area", "no"),
)


def images(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Calibrated estimates of known GSDs, every seventh GSD unknown, some images in two parts."""
    generator = torch.Generator().manual_seed(seed)
    log10_gsd = torch.rand(n, generator=generator) * 2.5 - 1
    log_var = torch.rand(n, generator=generator) * 4 - 5
    mu = log10_gsd + torch.randn(n, generator=generator) * torch.exp(0.5 * log_var)
    weight = torch.where(torch.arange(n) % 3 == 0, 0.5, 1.0)
    unknown = torch.arange(n) % 7 == 6
    weight[unknown], log10_gsd[unknown] = 0.0, math.nan
    cue = (torch.arange(n) % 3 - 1).float()
    return {"mu": mu, "log_var": log_var, "log10_gsd": log10_gsd, "weight": weight, "has_scale_cue": cue}


def questions(n: int, seed: int = 0) -> tuple[torch.Tensor, tuple[BranchInfo, ...], tuple[TreeInfo, ...]]:
    trees = tuple(
        TreeInfo(image_id=t, place_id=t, source="t", gsd_m=1.0, effective_tier=t, has_scale_cue=None) for t in TIERS
    )
    branches = tuple(
        BranchInfo(
            tree=(i + seed) % 3,
            qa_id=str(i),
            type=TYPES[(i + seed) % 4],
            family=FAMILIES[i % 2],
            question="?",
            answer="!",
            options=None,
        )
        for i in range(n)
    )
    correct = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6
    return correct, branches, trees


def fed(metric, *batches):
    for batch in batches:
        metric.update(**batch)
    return metric.compute()


def pick(values, *names):
    return {name: values[name] for name in names}


HEAD = ("mu", "log_var", "log10_gsd", "weight")


def test_accuracy_by_every_group_equals_counting():
    metric, right, total = GroupedAccuracy(), {}, {}
    for seed, n in ((0, 11), (1, 5)):
        correct, branches, trees = questions(n, seed)
        metric.update(correct, branches, trees)
        for verdict, branch in zip(correct.tolist(), branches):
            tier = trees[branch.tree].effective_tier
            for group in ("overall", f"by_tier/{tier}", f"by_family/{branch.family}", f"by_type/{branch.type}"):
                right[group] = right.get(group, 0) + verdict
                total[group] = total.get(group, 0) + 1
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx({group: right[group] / total[group] for group in total})
    assert "by_type/präsenz" in got
    assert next(iter(got)) == "overall"


def test_accuracy_of_nothing_is_nan_not_zero():
    assert [(name, math.isnan(value)) for name, value in GroupedAccuracy().compute().items()] == [("overall", True)]


def test_accuracy_wants_one_verdict_per_question():
    correct, branches, trees = questions(3)
    with pytest.raises(ConfigError, match="one verdict per question"):
        GroupedAccuracy().update(correct[:2], branches, trees)


def test_counts_stay_exact_where_the_default_is_bfloat16():
    (correct, branches, trees), values = questions(1200), images(40)
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric, sse_u = GroupedAccuracy(), sse_u_metrics()
        metric.update(correct, branches, trees)
        sse_u.update(**values)
        got, head = metric.compute(), sse_u.compute()
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(got["overall"]) == pytest.approx(float(correct.float().mean()), rel=1e-6)
    exact = fed(sse_u_metrics(), values)
    assert {k: float(v) for k, v in head.items()} == pytest.approx({k: float(v) for k, v in exact.items()})


def test_nll_equals_scipy():
    values = images(50)
    known = values["weight"] > 0
    mu, log_var, s, weight = (values[name][known].double().numpy() for name in HEAD)
    expected = -(weight * norm.logpdf(s, mu, np.exp(log_var / 2))).sum()
    assert float(fed(GaussianNll(), pick(values, *HEAD))) == pytest.approx(expected / weight.sum(), rel=1e-5)


def test_calibrated_estimates_have_the_reference_ratio_and_coverage():
    values = pick(images(20_000), *HEAD)
    assert float(fed(CalibrationRatio(), values)) == pytest.approx(CALIBRATION_REFERENCE, abs=0.015)
    assert float(fed(IntervalCoverage(0.9), values)) == pytest.approx(0.9, abs=0.01)
    assert pytest.approx(0.79788, abs=1e-5) == CALIBRATION_REFERENCE


def test_an_overconfident_head_lies_above_the_reference_and_covers_less():
    values = pick(images(5_000), *HEAD)
    sure = values | {"log_var": values["log_var"] - 2 * math.log(2)}
    assert float(fed(CalibrationRatio(), sure)) == pytest.approx(2 * CALIBRATION_REFERENCE, rel=0.03)
    assert float(fed(IntervalCoverage(0.9), sure)) < 0.65


def test_gsd_error_by_cue():
    got = MaeDecades()
    got.update(
        mu=torch.tensor([0.0, 1.0, 2.0, 9.0]),
        log10_gsd=torch.tensor([0.1, 1.3, 2.5, math.nan]),
        weight=torch.tensor([1.0, 1.0, 1.0, 0.0]),
        has_scale_cue=torch.tensor([1, 0, -1, 1]),
    )
    expected = {"mae_decades": 0.3, "mae_decades_cue": 0.1, "mae_decades_no_cue": 0.3}
    assert {name: float(value) for name, value in got.compute().items()} == pytest.approx(expected)


def test_groups_that_were_not_seen_are_left_out_and_nothing_is_nan():
    empty = MaeDecades().compute()
    assert set(empty) == {"mae_decades"}
    assert math.isnan(empty["mae_decades"])
    assert math.isnan(GaussianNll().compute())
    assert math.isnan(SigmaErrorSpearman().compute())


@pytest.mark.parametrize("metric", [GaussianNll(), CalibrationRatio(), IntervalCoverage(), SigmaErrorSpearman()])
def test_unknown_gsds_do_not_count(metric):
    values = pick(images(40), *HEAD)
    known = {name: value[values["weight"] > 0] for name, value in values.items()}
    with_unknown = fed(metric, values)
    metric.reset()
    assert torch.equal(with_unknown, fed(metric, known))
    assert torch.isfinite(with_unknown)


def test_an_image_in_two_parts_counts_once():
    values = images(30)
    values["weight"] = torch.where(values["weight"] > 0, 1.0, 0.0)
    halved = {name: torch.cat([value, value]) for name, value in values.items()} | {
        "weight": torch.cat([values["weight"], values["weight"]]) / 2
    }
    whole, parts = fed(sse_u_metrics(), values), fed(sse_u_metrics(), halved)
    assert {k: float(v) for k, v in parts.items()} == pytest.approx({k: float(v) for k, v in whole.items()}, rel=1e-5)


def test_spearman_equals_scipy_with_ties():
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 6, (60,), generator=generator).float()
    y = x + torch.randint(0, 9, (60,), generator=generator)
    assert float(weighted_spearman(x, y, torch.ones(60))) == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert math.isnan(weighted_spearman(torch.ones(5), torch.arange(5.0), torch.ones(5)))


def test_a_head_that_is_always_equally_sure_has_no_rank_correlation():
    generator = torch.Generator().manual_seed(3)
    for n in range(2, 40):
        weight, error = torch.rand(n, generator=generator), torch.rand(n, generator=generator)
        assert math.isnan(weighted_spearman(torch.full((n,), 0.3), error, weight))
        assert math.isnan(weighted_spearman(error, torch.full((n,), 0.3), weight))


def test_spearman_weights_are_repetitions():
    x, y = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 5.0, 2.0])
    repeats = torch.tensor([1, 3, 2, 1])
    repeated = weighted_spearman(x.repeat_interleave(repeats), y.repeat_interleave(repeats), torch.ones(7))
    assert float(weighted_spearman(x, y, repeats.float())) == pytest.approx(float(repeated))


def test_coverage_curve_of_a_gaussian_is_the_diagonal():
    z = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).abs()
    level = torch.linspace(0.1, 0.9, 9)
    assert coverage_curve(z, torch.ones_like(z), level).tolist() == pytest.approx(level.tolist(), abs=0.01)
    assert interval_half_width(0.9) == pytest.approx(1.644854, abs=1e-5)


def test_sigma_bins_rise_and_keep_every_image():
    values = images(400)
    known = values["weight"] > 0
    sigma = torch.exp(0.5 * values["log_var"])[known]
    error = (values["mu"] - values["log10_gsd"]).abs()[known]
    mean_sigma, mean_error = sigma_bins(sigma, error, torch.ones_like(sigma), 8)
    assert mean_sigma.tolist() == sorted(mean_sigma.tolist())
    assert float(mean_error[-1]) > float(mean_error[0])
    assert sigma_bins(sigma[:3], error[:3], torch.ones(3), 8)[0].numel() == 3


def test_records_keep_known_images_only():
    values = images(14)
    assert fed(GsdRecords(), values).shape == (12, 5)
    assert GsdRecords().compute().shape == (0, 5)


def test_cues_as_numbers():
    trees = [
        TreeInfo(image_id="i", place_id="p", source="s", gsd_m=None, effective_tier="unknown", has_scale_cue=cue)
        for cue in (True, False, None)
    ]
    assert cue_tensor(trees, torch.device("cpu")).tolist() == [1.0, 0.0, -1.0]


def test_a_level_outside_the_unit_interval_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        IntervalCoverage(90)


def measure(batches: list[tuple[int, int]]) -> dict[str, float]:
    """All metrics over (seed, size) batches, as plain numbers."""
    accuracy, sse_u, records = GroupedAccuracy(), sse_u_metrics(), GsdRecords()
    for seed, n in batches:
        accuracy.update(*questions(n, seed))
        sse_u.update(**images(n, seed))
        records.update(**images(n, seed))
    values = accuracy.compute() | sse_u.compute()
    numbers = {name: float(value) for name, value in values.items()}
    return numbers | {"records": float(records.compute().shape[0])}


def test_two_ranks_equal_one_also_when_uneven_or_one_saw_nothing(tmp_path: Path):
    cases = [[[(0, 9), (1, 6)], [(2, 4)]], [[(0, 9), (1, 6)], []], [[], []]]
    apart = in_group(lambda rank: [measure(batches[rank]) for batches in cases], tmp_path)
    for case, first, second in zip(cases, *apart):
        together = measure(case[0] + case[1])
        assert first == pytest.approx(second, nan_ok=True)
        assert first == pytest.approx(together, rel=1e-6, nan_ok=True)
