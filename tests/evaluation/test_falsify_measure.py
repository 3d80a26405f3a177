"""What is asked of which model: everything that is judged or drawn, and nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.corpus import GSDS_M
from fakes.subjects import tiny_subject

from scaleearth_pl.evaluation.bootstrap import Places
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.falsify import findings, measure
from scaleearth_pl.evaluation.falsify.plan import Plan
from scaleearth_pl.evaluation.falsify.verdicts import Finding

REGISTERED = Path(__file__).parents[2] / "experiments/falsify/hypotheses.yaml"
GRID_M = (0.03, 0.3, 3.0, 30.0)
NOWHERE_M = 1e4
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.load(REGISTERED)


@pytest.fixture
def spoofed(fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> measure.Task:
    """The spoofing task of a tiny model."""
    subject = tiny_subject(fake_corpus)
    monkeypatch.setattr(measure, "load_subject", lambda _: subject)
    return measure.Task(
        variant="ours",
        seed=1,
        run=tmp_path,
        what="spoof",
        corpus=fake_corpus,
        out=tmp_path,
        grid_m=GRID_M,
        truths_m=(GSDS_M[0],),
        family="scale_specific",
    )


def judged(plan: Plan, table: ViewTable, places: Places, truth_m: float) -> Finding:
    h4 = next(h for h in plan.hypotheses if h.kind == "spoofing")
    bars = {**h4.bars, "truths_m": [truth_m]}
    correct_SGN = table.correct_VN[None].astype(float)
    return findings.spoofing(
        replace(h4, bars=bars), GRID_M, correct_SGN, table.log10_gsd_N, table.place_N.tolist(), places
    )


def test_images_far_from_the_plans_truths_change_nothing_and_are_not_asked(plan: Plan, spoofed: measure.Task) -> None:
    near = ViewTable.load(measure.measure(spoofed))
    every = ViewTable.load(measure.measure(replace(spoofed, truths_m=(NOWHERE_M,))))
    assert np.unique(near.log10_gsd_N) == pytest.approx([np.log10(GSDS_M[0])])
    assert len(np.unique(every.log10_gsd_N)) == len(GSDS_M), "where no image is near, all are asked"
    assert {view.policy for view in near.views} == {"spoof"}
    places = Places(sorted(set(every.place_N.tolist())), n_resamples=50)
    a, b = (judged(plan, table, places, GSDS_M[0]) for table in (near, every))
    assert a.statistics[0].estimate == b.statistics[0].estimate
    np.testing.assert_array_equal(a.statistics[0].resamples, b.statistics[0].resamples)
    assert a.notes == b.notes


def test_every_seed_is_judged_and_the_first_is_drawn(plan: Plan, tmp_path: Path) -> None:
    folders = {name: [tmp_path / f"{name}{seed}" for seed in SEEDS] for name in plan.variants}
    asked = measure.tasks(plan, folders, SEEDS, corpus=tmp_path, out=tmp_path)
    of_what = {what: [(t.variant, t.seed) for t in asked if t.what == what] for what in ("spoof", "shifts", "policies")}
    assert of_what["spoof"] == of_what["policies"] == [("ours", seed) for seed in SEEDS]
    assert of_what["shifts"] == [(name, SEEDS[0]) for name in measure.SPOOFED]
    assert {t.truths_m for t in asked} == {(0.1778, 1.778, 17.78)}
