"""Figure 6: effects on answers whose truth is known, the plan, the page, and an overlay. (The command: test_falsify_fast.)"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fakes.runs import EXPERIMENTS, make_data, tiny_model
from PIL import Image

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.falsify import ablations
from scaleearth_pl.evaluation.falsify.ablation_effects import ALL, effects_of
from scaleearth_pl.evaluation.falsify.ablation_report import AblationReport, difference_rows, write_ablations
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.model.resolver import Resolver, ResolverConfig

REGISTERED = EXPERIMENTS / "falsify/ablations.yaml"
GROUP = "by_family/scale_specific"
N_PLACES, PER_PLACE = 50, 8


def table(rate: float, *, predicted: float | None = None, seed: int = 0, specific: float | None = None) -> ViewTable:
    """Answers right with probability `rate` (on scale-specific questions `specific`), told SSE-U's word `predicted`."""
    rng = np.random.default_rng(seed)
    n = N_PLACES * PER_PLACE
    family_N = np.where(np.arange(n) % 2, "scale_specific", "identification")
    rates = [np.where(family_N == "scale_specific", rate if specific is None else specific, rate)]
    rates += [] if predicted is None else [np.full(n, predicted)]
    views = [View(policy="metadata"), View(policy="predicted")][: len(rates)]
    places_N = np.array([f"p{i // PER_PLACE}" for i in range(n)])
    return ViewTable(
        subject="fake", views=tuple(views), correct_VN=rng.random((len(rates), n)) < np.stack(rates),
        nll_VN=np.zeros((len(rates), n)), image_N=places_N, place_N=places_N, qa_N=np.array([f"q{i}" for i in range(n)]),
        type_N=family_N, family_N=family_N, tier_N=np.full(n, "mid"), cue_N=np.ones(n, np.int64),
        log10_gsd_N=np.zeros(n), readings=(),
    )  # fmt: skip


def effect(tables: dict[str, list[ViewTable]], variant: str, told: str, group: str):
    effects = effects_of(tables, group=GROUP, n_resamples=1000)
    return next((e for e in effects if (e.variant, e.told, e.group) == (variant, told, group)), None)


def test_a_loss_is_negative_and_its_interval_holds_the_truth() -> None:
    tables = {"less": [table(0.5, seed=1)], OURS: [table(0.7, predicted=0.6)]}
    found = effect(tables, "less", "metadata", ALL)
    truth = tables["less"][0].correct_VN[0].mean() - tables[OURS][0].correct_VN[0].mean()
    low, high = found.difference.interval(0.05)
    assert low < truth < high < 0
    assert found.difference.estimate == pytest.approx(truth)
    assert found.accuracy == tables["less"][0].correct_VN[0].mean()


def test_only_the_group_that_suffers_shows_it() -> None:
    tables = {OURS: [table(0.7)], "less": [table(0.7, specific=0.3)]}
    specific = effect(tables, "less", "metadata", "scale-specific").difference.estimate
    assert specific == pytest.approx(-0.4, abs=0.07)
    assert effect(tables, "less", "metadata", ALL).difference.estimate == pytest.approx(specific / 2)


def test_ours_differs_from_itself_by_nothing() -> None:
    found = effect({OURS: [table(0.7, predicted=0.6)]}, OURS, "predicted", ALL)
    assert found.difference.estimate == 0
    assert found.difference.interval(0.05) == (0, 0)


def test_what_a_variant_cannot_be_told_is_not_shown() -> None:
    tables = {OURS: [table(0.7, predicted=0.6)], "no_sse_u": [table(0.7)]}
    assert effect(tables, "no_sse_u", "predicted", ALL) is None


def test_seeds_are_averaged_and_kept() -> None:
    ours, less = [[table(rate, seed=s) for s in range(3)] for rate in (0.7, 0.5)]
    found = effect({OURS: ours, "less": less}, "less", "metadata", ALL).difference
    assert len(found.seeds) == 3
    assert found.estimate == pytest.approx(np.mean(found.seeds))


def test_other_questions_and_groups_are_refused() -> None:
    other = replace(table(0.5), qa_N=np.array([f"x{i}" for i in range(N_PLACES * PER_PLACE)]))
    with pytest.raises(ConfigError, match="other questions"):
        effects_of({OURS: [table(0.5)], "less": [other]}, group=GROUP, n_resamples=100)
    for group in ("by_tier/high", "by_family/discriminative", "overall"):
        with pytest.raises(ConfigError, match="group"):
            effects_of({OURS: [table(0.5)]}, group=group, n_resamples=100)


def test_the_plan_has_every_component_of_figure_6() -> None:
    plan = Plan.load(REGISTERED)
    assert [h.bars["twin"] for h in plan.hypotheses] == [v for v in plan.variants if v != OURS]
    overlays = [EXPERIMENTS.parent / o for of_variant in plan.variants.values() for o in of_variant]
    assert all(path.exists() for path in overlays)
    assert {p.stem for p in (EXPERIMENTS / "ablation").glob("*.yaml")} - {"plain_head"} <= set(plan.variants)


def test_each_command_refuses_the_plan_of_the_other(tmp_path: Path) -> None:
    from scaleearth_pl.evaluation.falsify import main

    for command, plan in ((main.main, REGISTERED), (ablations.main, main.PLAN)):
        status = command(["--plan", str(EXPERIMENTS.parent / plan), "--out", str(tmp_path), "--runs", str(tmp_path)])
        assert status == 2
    both = yaml.safe_load(REGISTERED.read_text())
    both["hypotheses"]["H7"] = {"kind": "policy", "claim": "", "policy": "predicted", "cue": True, "bound": 0.0}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both))
    with pytest.raises(ConfigError, match="plan of their own"):
        Plan.load(tmp_path / "both.yaml")


@pytest.fixture
def report() -> AblationReport:
    plan = Plan.load(REGISTERED)
    rng = np.random.default_rng(0)
    tables = {
        name: [
            table(float(rng.uniform(0.4, 0.7)), predicted=None if name in ("no_sse_u", "stage1_only") else 0.5, seed=i)
        ]
        for i, name in enumerate(plan.variants)
    }
    return AblationReport(
        plan=plan, effects=effects_of(tables, group=GROUP, n_resamples=500), n_questions=400, n_places=50, seeds=(1,),
        corpus="world", corpus_hash="abcdef0123", commits={name: ["abc"] for name in plan.variants},
    )  # fmt: skip


def test_the_page_says_every_number(report: AblationReport, tmp_path: Path) -> None:
    write_ablations(tmp_path, report)
    page, document = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "ablations.json").read_text())
    for name, label in report.labels.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
        numbers = document["variants"][name]
        first = numbers["metadata"][ALL]
        assert f"{100 * first['estimate']:+.1f} ({100 * first['ci95'][0]:+.1f}" in line
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4:] == ["no SSE-U"] * 2 or "predicted" in numbers
    assert len(difference_rows(report)) == 1 + len(report.labels)
    with Image.open(tmp_path / "ablations.png") as picture:
        assert picture.width > picture.height / 2
        assert len(set(picture.convert("RGB").get_flattened_data())) > 10


def test_trained_on_predicted_never_sees_metadata(fake_corpus: Path) -> None:
    """Other metadata, same gate, also while training: the answers' losses do not move; under ours they do."""
    overlay = yaml.safe_load((EXPERIMENTS / "ablation/trained_on_predicted.yaml").read_text())
    model, batch = tiny_model(fake_corpus, noise=0.3), make_data(fake_corpus).step_batch(0).micro[0]
    moved = replace(batch, log10_gsd_G=batch.log10_gsd_G + 1)
    for settings, same in ((overlay["model"]["init_args"]["resolver"], True), ({}, False)):
        model.resolver = Resolver(ResolverConfig(**settings))
        with torch.no_grad():
            assert torch.equal(model(batch).ce_sum, model(moved).ce_sum) is same
