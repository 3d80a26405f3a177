"""The rules of the verdict, on data whose truth is known, and the bookkeeping of runs."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.subjects import tiny_subject
from torch.utils.tensorboard import SummaryWriter

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import Prediction, SseuReading
from scaleearth_pl.evaluation.bootstrap import Places
from scaleearth_pl.evaluation.falsify import figures, findings, measure, runs, takeover
from scaleearth_pl.evaluation.falsify.options import refuse_mixing
from scaleearth_pl.evaluation.falsify.plan import Plan
from scaleearth_pl.evaluation.falsify.verdicts import Finding, Statistic, holm, judge

REGISTERED = Path(__file__).parents[2] / "experiments/falsify/hypotheses.yaml"
N_PLACES, PER_PLACE = 60, 8


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.load(REGISTERED)


@pytest.fixture(scope="module")
def places() -> Places:
    return Places([f"p{i}" for i in range(N_PLACES)], n_resamples=2000)


def hypothesis(plan: Plan, name: str):
    return next(h for h in plan.hypotheses if h.name == name)


def answers(rate: float, seed: int) -> list[Prediction]:
    """Answers right with probability `rate`; the same questions whatever the seed."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    rows = []
    for place in range(N_PLACES):
        gsd_m = float(10 ** world.uniform(-1, 1.5))
        for q in range(PER_PLACE):
            rows.append(
                Prediction(
                    image_id=f"i{place}", place_id=f"p{place}", source="world", qa_id=f"{q}", type="width",
                    family="scale_specific" if q else "identification", question="How wide?", answer="2", prediction=None,
                    correct=bool(rng.random() < rate), gsd_m=gsd_m, tier="mid", has_scale_cue=bool(place % 3),
                )
            )  # fmt: skip
    return rows


def test_the_registered_plan_loads(plan: Plan) -> None:
    assert [h.name for h in plan.hypotheses] == [f"H{i}" for i in range(1, 9)]
    assert {h.name for h in plan.hypotheses if h.headline} == {"H2", "H3"}
    assert len(plan.seeds) >= 3
    for overlay in [o for overlays in plan.variants.values() for o in overlays]:
        assert (REGISTERED.parents[2] / overlay).exists()


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("kind: edges", "kind: guess", "kind"),
        ("smallest: 0.01", "smalest: 0.01", "H1"),
        ("twin: bucketed", "twin: buckets", "twin"),
        ("schema: scaleearth-falsify/1", "schema: scaleearth-falsify/2", "schema"),
        ("level: 0.05", "levle: 0.05", "key"),
    ],
)
def test_a_plan_with_a_slip_is_refused(tmp_path: Path, line: str, other: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(REGISTERED.read_text().replace(line, other))
    with pytest.raises(ConfigError, match=message):
        Plan.load(path)


@pytest.mark.parametrize(("ours", "twin", "word"), [(0.7, 0.45, "supported"), (0.5, 0.8, "refuted")])
def test_a_difference_is_judged(plan: Plan, places: Places, ours: float, twin: float, word: str) -> None:
    mine, theirs = ([answers(rate, base + s) for s in range(3)] for base, rate in ((1, ours), (10, twin)))
    found = findings.difference(hypothesis(plan, "H2"), mine, theirs, plan.group, places)
    (verdict,) = judge([found], level=0.05)
    assert verdict.verdict == word
    low, high = verdict.as_json()["ci95"]
    assert low < ours - twin < high
    assert len(verdict.as_json()["seeds"]) == 3


def test_no_difference_is_never_supported(plan: Plan, places: Places) -> None:
    """At most the level over repeated draws; 40 draws, so that a broken p-value shows."""
    words = []
    for draw in range(40):
        mine, theirs = ([answers(0.5, 1000 * draw + base + s) for s in range(3)] for base in (1, 10))
        words += judge([findings.difference(hypothesis(plan, "H2"), mine, theirs, plan.group, places)], level=0.05)
    assert sum(v.verdict == "supported" for v in words) <= 4
    assert any(v.verdict == "undecided" for v in words)


def test_seeds_that_disagree_are_not_supported(plan: Plan, places: Places) -> None:
    mine = [answers(0.9, 1), answers(0.9, 2), answers(0.3, 3)]
    theirs = [answers(0.4, 11), answers(0.4, 12), answers(0.4, 13)]
    (verdict,) = judge([findings.difference(hypothesis(plan, "H2"), mine, theirs, plan.group, places)], level=0.05)
    assert verdict.statistics[0].p_value() < 0.05
    assert verdict.verdict == "undecided"


def test_other_questions_are_refused(plan: Plan, places: Places) -> None:
    rows = answers(0.5, 1)
    for other in (rows[:-1], [replace(rows[0], answer="3"), *rows[1:]]):
        with pytest.raises(ConfigError, match="same questions: 1 differ"):
            findings.difference(hypothesis(plan, "H2"), [rows], [other], plan.group, places)


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_what_is_described_costs_nothing() -> None:
    statistic = Statistic(name="x", estimate=1.0, resamples=np.linspace(0.5, 1.5, 1000), low=0.0)
    judged = Finding(name="H1", claim="", statistics=(statistic,))
    described = Finding(name="H5", claim="", statistics=(statistic,), description=True)
    alone, both = judge([judged], level=0.05)[0], judge([judged, described], level=0.05)
    assert both[0].p_adjusted == alone.p_adjusted
    assert both[1].verdict == "described"
    assert judge([replace(judged, statistics=())], level=0.05)[0].verdict == "undecided"


def readings(sharp: float, seed: int) -> list[SseuReading]:
    """SSE-U whose errors have `sharp` times the deviation it states."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(600):
        sigma, s = float(rng.uniform(0.05, 0.8)), float(rng.uniform(-1, 1))
        mu = s + float(rng.normal(0, sharp * sigma))
        rows.append(
            SseuReading(
                image_id=f"i{i}", place_id=f"p{i % N_PLACES}", gsd_m=10**s, provenance_weight=1.0, mu=mu, sigma=sigma,
                has_scale_cue=True, tier="mid",
            )
        )  # fmt: skip
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("sharp", "word"), [(1.0, "supported"), (3.0, "refuted")])
def test_calibration_is_judged(plan: Plan, places: Places, sharp: float, word: str) -> None:
    found = findings.calibration(hypothesis(plan, "H6"), [readings(sharp, s) for s in range(2)], places)
    assert judge([found], level=0.05)[0].verdict == word


def test_calibration_pairs_the_images_of_seeds_whatever_their_order(plan: Plan) -> None:
    few = Places([f"p{i}" for i in range(N_PLACES)], n_resamples=100)
    first, second = readings(1.0, 1), readings(2.0, 2)
    one, other = (findings.calibration(hypothesis(plan, "H6"), [first, s], few) for s in (second, second[::-1]))
    for a, b in zip(one.statistics, other.statistics, strict=True):
        assert b.resamples == pytest.approx(a.resamples, nan_ok=True)
    with pytest.raises(ConfigError, match="same images"):
        findings.calibration(hypothesis(plan, "H6"), [first, second[1:]], few)


def spoofed(shift: float) -> np.ndarray:
    """Accuracy that peaks `shift` decades from the truth: [1 seed, grid, questions]."""
    grid = np.log10(GRID_M)
    rng = np.random.default_rng(0)
    truth = np.log10([r.gsd_m or 1 for r in answers(0.5, 0)])
    chance = np.exp(-((grid[:, None] - truth[None] - shift) ** 2) / 0.1)
    return (rng.random(chance.shape) < chance)[None].astype(float)


GRID_M = [10 ** (-1.5 + i / 4) for i in range(15)]


@pytest.mark.parametrize(("shift", "word"), [(0.0, "supported"), (1.5, "refuted")])
def test_spoofing_is_judged(plan: Plan, places: Places, shift: float, word: str) -> None:
    rows = answers(0.5, 0)
    truth, of_row = np.log10([r.gsd_m for r in rows]), [r.place_id for r in rows]
    found = findings.spoofing(hypothesis(plan, "H4"), GRID_M, spoofed(shift), truth, of_row, places)
    verdict = judge([found], level=0.05)[0]
    assert verdict.verdict == word
    assert len(verdict.notes) == 3


@pytest.mark.parametrize(("loss", "word"), [(0.0, "supported"), (0.1, "refuted")])
def test_a_policy_may_lose_two_points(plan: Plan, places: Places, loss: float, word: str) -> None:
    rng = np.random.default_rng(0)
    of_row = [f"p{i % N_PLACES}" for i in range(3000)]
    difference = -(rng.random((3, 3000)) < loss).astype(float)
    assert judge([findings.policy(hypothesis(plan, "H7"), difference, of_row, places)], level=0.05)[0].verdict == word


@pytest.mark.parametrize(("observed", "word"), [(0.5, "supported"), (0.33, "undecided")])
def test_probes_against_their_null(plan: Plan, observed: float, word: str) -> None:
    null = np.random.default_rng(0).normal(0.33, 0.02, (3, 200))
    assert judge([findings.probes(hypothesis(plan, "H8"), [observed] * 3, null)], level=0.05)[0].verdict == word


def test_plateau_is_one_region() -> None:
    accuracy = np.array([0.5, 0.9, 0.89, 0.5, 0.895])
    middle, first, last = findings.plateau(np.arange(5.0), accuracy, 0.015)
    assert (first, last, middle) == (1.0, 2.0, 1.5)
    assert findings.plateau(np.arange(5.0), np.array([0.5, 0.895, 0.9, 0.892, 0.7]), 0.01) == (2.0, 1.0, 3.0)
    assert findings.plateau(np.arange(5.0), np.array([0.9, 0.5, 0.895, 0.9, 0.7]), 0.01) == (0.0, 0.0, 0.0)
    assert findings.plateau(np.arange(-2.0, 3.0), np.full(5, 0.6), 0.01) == (0.0, -2.0, 2.0), "flat: its middle"


def corpus(root: Path, content: str = "abc") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "index.json").write_text(json.dumps({"content_hash": content}))
    return root


def test_runs_are_taken_over_only_from_this_corpus_and_stage_1(tmp_path: Path) -> None:
    root, stage1 = corpus(tmp_path / "world"), tmp_path / "stage1"
    (stage1 / "v1/hf").mkdir(parents=True)
    (stage1 / "latest").symlink_to("v1")
    latest = tmp_path / "ours/latest"
    latest.mkdir(parents=True)
    (latest / "predictions.jsonl").touch()
    record = {"corpus_hash": "abc", "stage1": str(stage1 / "v1/hf")}
    (latest / "run.json").write_text(json.dumps(record))
    (latest / "config.yaml").write_text("{}")

    def taken_over() -> bool:
        return takeover.finished(tmp_path / "ours", root, needs="predictions.jsonl", command=(), stage1=stage1)

    assert taken_over()
    (stage1 / "v2/hf").mkdir(parents=True)
    (stage1 / "latest").unlink()
    (stage1 / "latest").symlink_to("v2")
    assert not taken_over()
    (latest / "run.json").write_text(json.dumps(record | {"stage1": str(stage1 / "v2/hf")}))
    assert taken_over()
    corpus(tmp_path / "world", "def")
    assert not taken_over()


def test_a_run_that_fails_names_its_log(tmp_path: Path) -> None:
    bad = (sys.executable, "-c", "raise SystemExit('no room')")
    with pytest.raises(ConfigError, match=r"no room.*falsify\.log"):
        runs.run_all([runs.Job(name="bad", command=bad, folder=tmp_path / "bad")], 1, title="test")


def test_a_table_is_read_again_only_for_the_same_question(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another grid, or another corpus under the same path, is another file."""
    asked, corpus, subject = [], tmp_path / "corpus", tiny_subject(fake_corpus)
    shutil.copytree(fake_corpus, corpus)

    class Written(list):
        def save(self, file: Path) -> None:
            asked.append([view.spoof_gsd_m for view in self if view.policy == "spoof"])
            file.touch()

    monkeypatch.setattr(measure, "load_subject", lambda _: subject)
    monkeypatch.setattr(measure, "tabulate", lambda _subject, _images, views, **_: Written(views))
    task = measure.Task(
        variant="ours", seed=1, run=tmp_path, what="spoof", corpus=corpus, out=tmp_path, grid_m=(0.1, 1.0), family="x"
    )
    file = measure.measure(task)
    assert measure.measure(task) == file
    assert asked == [[0.1, 1.0]]
    assert measure.measure(replace(task, grid_m=(10.0,))) != file
    assert asked[1:] == [[10.0]]
    index = json.loads((corpus / "index.json").read_text())
    (corpus / "index.json").write_text(json.dumps(index | {"content_hash": "0" * 64}))
    assert measure.measure(task) != file


def test_a_smoke_test_never_lies_over_a_result(tmp_path: Path) -> None:
    record = tmp_path / "verdict.json"
    refuse_mixing(record, fast=True)
    record.write_text(json.dumps({"fast": False}))
    refuse_mixing(record, fast=False)
    with pytest.raises(ConfigError, match="full run"):
        refuse_mixing(record, fast=True)
    record.write_text(json.dumps({"fast": True}))
    with pytest.raises(ConfigError, match="smoke test"):
        refuse_mixing(record, fast=False)


def test_curves_of_a_resumed_run_are_whole(tmp_path: Path) -> None:
    """Two event files, and a step that both have: the resumed one counts."""
    for steps, value in (((0, 1, 2), 0.0), ((2, 3), 1.0)):
        with SummaryWriter(str(tmp_path)) as writer:
            for step in steps:
                writer.add_scalar("train/loss", value, step)
    steps, values = figures.scalars(tmp_path)["train/loss"]
    assert steps.tolist() == [0, 1, 2, 3]
    assert values.tolist() == [0, 0, 1, 1]
    assert figures.scalars(tmp_path / "none") == {}
