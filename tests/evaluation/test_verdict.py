"""From files of runs and measurements to words and pages: planted answers come out with their sign, group and name."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.runs import EXPERIMENTS
from fakes.tables import view_table
from scipy.stats import spearmanr

from scaleearth_pl.core.run_files import Prediction, SseuReading
from scaleearth_pl.evaluation.evaluator.views import View, shift_views, spoof_views
from scaleearth_pl.evaluation.falsify import main, measure
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.falsify.report import Evidence, as_html, verdict_document, verdict_rows, verdict_section
from scaleearth_pl.evaluation.falsify.runs import Setting
from scaleearth_pl.evaluation.falsify.verdicts import Verdict
from scaleearth_pl.evaluation.predictions import write_rows

PLAN = replace(Plan.load(EXPERIMENTS / "falsify/hypotheses.yaml"), n_resamples=499, seeds=(1, 2))
N_PLACES = 60
SCALES = (0.05, -0.5, 0.95, 0.5, 1.4)
"""log10 metres by place: the first and the third lie near an edge of the buckets."""
NEAR = (0, 2)
TRUTHS = (-0.75, 0.25, 1.25)

Right = Callable[[int, int, int], bool]
RIGHT: dict[str, Right] = {
    OURS: lambda place, q, seed: True,
    "plain_lora": lambda place, q, seed: q % (seed + 1) == 0,
    "gsd_text": lambda place, q, seed: True,
    "bucketed": lambda place, q, seed: place % len(SCALES) not in NEAR,
    "constant_gate": lambda place, q, seed: False,
}
"""Whether a variant answers: of the scale-specific questions 2 to 7, plain LoRA has three right, then two."""


def answers(right: Right, seed: int) -> list[Prediction]:
    return [
        Prediction(
            image_id=f"i{place}", place_id=f"p{place}", source="world", qa_id=f"{q}", type="width",
            family="scale_specific" if q > 1 else "identification", question="How wide?", answer="2", prediction=None,
            correct=right(place, q, seed), gsd_m=10 ** SCALES[place % len(SCALES)], tier="mid", has_scale_cue=True,
        )
        for place in range(N_PLACES)
        for q in range(8)
    ]  # fmt: skip


def readings(seed: int, *, shuffled: bool) -> list[SseuReading]:
    """Errors as large as sigma says, sigma in steps, so that ranks tie; or somebody else's sigma."""
    rng = np.random.default_rng(seed)
    sigma = rng.integers(1, 17, 600) / 20
    error = sigma * rng.standard_normal(600)
    stated = rng.permutation(sigma) if shuffled else sigma
    return [
        SseuReading(
            image_id=f"i{i}", place_id=f"p{i % N_PLACES}", gsd_m=1.0, provenance_weight=1.0, mu=float(error[i]),
            sigma=float(stated[i]), has_scale_cue=True, tier="mid",
        )
        for i in range(600)
    ]  # fmt: skip


def run_folder(folder: Path, variant: str, seed: int, *, shuffled: bool) -> Path:
    write_rows(folder / "predictions.jsonl", answers(RIGHT[variant], seed))
    if variant == OURS:
        write_rows(folder / "sse_u.jsonl", readings(seed, shuffled=shuffled))
    record: dict[str, Any] = {"experiment": variant, "stage": "stage2", "size": "tiny", "corpus": "world"}
    record |= {"commit": f"c{seed}", "versions": {}, "seconds": {}, "qas_per_second": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def measured(job: measure.Task) -> Path:
    """With cues the prediction loses each tenth answer, without them all; told a GSD, all is best a quarter decade off."""
    file = job.out / f"{job.what}-{job.variant}-{job.seed}.{'json' if job.what == 'probes' else 'npz'}"
    if job.what == "probes":
        file.write_text(json.dumps({"block_diagonality": 0.4 + 0.1 * job.seed, "null": [0.29, 0.3, 0.31] * 200}))
        return file
    views = (View(policy="metadata"), View(policy="predicted"))
    if job.what == "spoof":
        views = (View(policy="metadata"), *spoof_views(job.grid_m), *shift_views((-1.0, 1.0)))
    table = view_table(views, lambda view: 1.0, n_places=N_PLACES)
    n = len(table.qa_N)
    truth_N = np.array(TRUTHS)[np.arange(n) // 10 % 3]
    correct_VN = np.zeros((len(views), n), bool)
    for row, view in zip(correct_VN, views, strict=True):
        if view.spoof_gsd_m is not None:
            row[:] = np.abs(np.log10(view.spoof_gsd_m) - truth_N - 0.25) < 0.3
        elif not view.shift_decades:
            row[:] = view.policy == "metadata" or (table.cue_N == 1) & (np.arange(n) % 10 > 0)
    replace(table, correct_VN=correct_VN, log10_gsd_N=truth_N).save(file)
    return file


def measured_all(jobs: Sequence[measure.Task], _: int) -> dict[tuple[str, str, int], Path]:
    return {(job.what, job.variant, job.seed): measured(job) for job in jobs}


def judged(folder: Path, *, shuffled: bool = False) -> Evidence:
    """The command's own `falsify`, but for training, measuring and drawing."""
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "index.json").write_text(json.dumps({"content_hash": "abcdef0123"}))
    runs = {
        name: [run_folder(folder / f"{name}-{seed}", name, seed, shuffled=shuffled) for seed in PLAN.seeds]
        for name in PLAN.variants
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "train_missing", lambda *_: runs)
        patch.setattr(measure, "measure_all", measured_all)
        patch.setattr(main, "write_report", lambda *_: None)
        return main.falsify(PLAN, Setting(corpus=corpus), folder / "out", fast=False)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return judged(tmp_path_factory.mktemp("honest"))


def named(evidence: Evidence, name: str) -> Verdict:
    return next(verdict for verdict in evidence.verdicts if verdict.name == name)


def test_each_claim_gets_the_word_that_was_planted(evidence: Evidence) -> None:
    assert {verdict.name: verdict.verdict for verdict in evidence.verdicts} == {
        "H1": "supported",
        "H2": "refuted",
        "H3": "supported",
        "H4": "supported",
        "H5": "described",
        "H6": "supported",
        "H7": "refuted",
        "H8": "supported",
    }


def test_differences_are_ours_minus_the_twin_s_on_the_plan_s_group(evidence: Evidence) -> None:
    (first,) = named(evidence, "H1").statistics
    assert first.seeds == pytest.approx((1 / 2, 2 / 3))
    assert named(evidence, "H2").statistics[0].estimate == 0
    assert named(evidence, "H3").statistics[0].estimate == pytest.approx(len(NEAR) / len(SCALES))


def test_edges_are_told_from_elsewhere(evidence: Evidence) -> None:
    near, elsewhere = named(evidence, "H5").statistics
    assert ("near an edge" in near.name, "elsewhere" in elsewhere.name) == (True, True)
    assert (near.estimate, elsewhere.estimate) == (1, 0)
    assert any(note.startswith(f"{N_PLACES * 8 * len(NEAR) // len(SCALES)} ") for note in named(evidence, "H5").notes)


def test_told_gsds_are_those_of_the_grid(evidence: Evidence) -> None:
    (distance,) = named(evidence, "H4").statistics
    assert distance.estimate == pytest.approx(0.25, abs=1e-3)


def test_a_policy_is_compared_with_the_truth_on_scenes_with_cues(evidence: Evidence) -> None:
    (difference,) = named(evidence, "H7").statistics
    assert difference.seeds == pytest.approx((-0.1, -0.1))


def test_probes_are_read_seed_by_seed(evidence: Evidence) -> None:
    (above,) = named(evidence, "H8").statistics
    assert above.seeds == pytest.approx((0.2, 0.3))


def test_sigmas_of_other_images_are_not_called_sure(evidence: Evidence, tmp_path: Path) -> None:
    shuffled = named(judged(tmp_path, shuffled=True), "H6")
    assert shuffled.verdict != "supported"
    for found, is_shuffled in ((named(evidence, "H6"), False), (shuffled, True)):
        correlation = found.statistics[-1]
        assert (correlation.p_value() > 0.05) is is_shuffled
        for seed, value in zip(PLAN.seeds, correlation.seeds, strict=True):
            rows = readings(seed, shuffled=is_shuffled)
            expected = spearmanr([abs(row.mu) for row in rows], [row.sigma for row in rows]).statistic
            assert value == pytest.approx(expected, abs=1e-9)


def test_the_table_has_a_row_for_each_statistic(evidence: Evidence) -> None:
    head, *rows = verdict_rows(evidence.verdicts)
    assert all(len(row) == len(head) for row in rows)
    assert len(rows) == sum(len(verdict.statistics) for verdict in evidence.verdicts)
    by_name = {row[0]: row for row in rows if row[0]}
    assert list(by_name) == ["H1", "H2 *", "H3 *", "H4", "H5", "H6", "H7", "H8"]
    assert by_name["H7"][2:5] == ["refuted", named(evidence, "H7").statistics[0].name, "-0.100 (-0.100 to -0.100)"]
    assert (by_name["H1"][5], by_name["H5"][6]) == ("+0.500 +0.667", "")
    (empty,) = verdict_rows([replace(named(evidence, "H1"), statistics=())])[1:]
    assert "not measured" in empty


def test_the_document_names_what_was_judged(evidence: Evidence) -> None:
    document: Any = json.loads(json.dumps(verdict_document(evidence), allow_nan=False))
    assert (document["schema"], document["plan_sha256"]) == ("scaleearth-verdict/1", PLAN.digest)
    assert (document["commits"], document["seeds"], document["fast"]) == (["c1", "c2"], [1, 2], False)
    found = document["hypotheses"]["H7"]
    assert (found["verdict"], found["ci95"], found["seeds"]) == ("refuted", pytest.approx([-0.1] * 2), [-0.1, -0.1])
    assert len(document["hypotheses"]["H6"]["statistics"]) == 3


def test_the_page_prints_a_refuted_claim_like_a_supported_one(evidence: Evidence) -> None:
    odd = replace(named(evidence, "H2"), claim="a < b & c")
    page = as_html([verdict_section(replace(evidence, verdicts=(odd, named(evidence, "H3"))))])
    assert '<td class="refuted">refuted</td>' in page
    assert '<td class="supported">supported</td>' in page
    assert "<td>a &lt; b &amp; c</td>" in page
    assert "no verdicts" not in page
    assert "H2 (a &lt; b &amp; c): refuted" in page
