"""The referee's protocols on known answers, and SSE-U's distribution on an honest, a sure and a biased head."""

import json
from dataclasses import replace

import pytest
from fakes.subjects import tiny_subject
from fakes.tables import view_table

from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.table import tabulate
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.protocols.referee import referee_report, referee_views
from scaleearth_pl.evaluation.protocols.referee_figures import save_noise_figure, save_sse_u_figure
from scaleearth_pl.evaluation.sse_u import sse_u_report


def chance(view):
    return {"predicted": 0.75, "fused": 0.8}.get(
        view.policy, 0.8 - (0.1 if view.tell_noise else 0.3) * view.noise_decades
    )


@pytest.fixture
def table(readings):
    return view_table(referee_views(), chance, readings=tuple(readings))


def test_views_of_the_protocols():
    names = [v.name for v in referee_views(levels_decades=(0.0, 0.5))]
    assert names == ["metadata", "predicted", "fused", "metadata-noise-0.5-seed0", "metadata-noise-0.5-told-seed0"]
    assert [v.policy for v in referee_views(levels_decades=())] == ["metadata", "predicted", "fused"]


def test_differences_to_the_oracle_are_paired(table):
    report = referee_report(table, n_resamples=300)
    views = report["groups"]["all"]["views"]
    assert views["metadata"]["minus_oracle"] == {"estimate": 0.0, "ci95": [0.0, 0.0]}
    assert views["predicted"]["minus_oracle"]["estimate"] == pytest.approx(-0.05, abs=0.002)
    width = [views["predicted"]["ci95"], views["predicted"]["minus_oracle"]["ci95"]]
    assert width[1][1] - width[1][0] < width[0][1] - width[0][0], "pairing narrows the interval"
    untold, told = (views[f"metadata-noise-1{t}-seed0"]["minus_oracle"]["estimate"] for t in ("", "-told"))
    assert untold == pytest.approx(-0.3, abs=0.002) and told == pytest.approx(-0.1, abs=0.002)
    assert report["groups"]["cue"]["questions"] == 450 and report["groups"]["scale_specific"]["questions"] == 300
    json.dumps(report, allow_nan=False)


def test_an_honest_head_is_calibrated_and_others_are_caught(readings):
    honest = sse_u_report(readings)["all"]
    assert honest["pit_distance"] < 0.12 and abs(honest["bias_decades"]) < 0.05
    assert sum(honest["pit"]) == pytest.approx(1) and len(honest["coverage_curve"]) == 19
    sure = sse_u_report([replace(r, sigma=r.sigma / 5) for r in readings])["all"]
    assert sure["pit"][0] + sure["pit"][-1] > 0.6 and sure["crps"] > honest["crps"]
    biased = sse_u_report([replace(r, mu=r.mu + 0.5) for r in readings])["all"]
    assert biased["bias_decades"] == pytest.approx(honest["bias_decades"] + 0.5) and biased["pit_distance"] > 0.3
    unsure = sse_u_report([replace(r, sigma=r.sigma * 5) for r in readings])["all"]
    assert unsure["pit_distance"] > honest["pit_distance"] and unsure["crps"] > honest["crps"]


def test_crps_by_hand(readings):
    """Right on the mean with sigma 1: CRPS = 2 phi(0) - 1/sqrt(pi) = 0.23370. With sigma -> 0: the absolute error."""
    one = replace(readings[0], gsd_m=1.0, mu=0.0, sigma=1.0)
    assert sse_u_report([one])["all"]["crps"] == pytest.approx(0.233695, abs=1e-5)
    assert sse_u_report([replace(one, mu=0.3, sigma=1e-6)])["all"]["crps"] == pytest.approx(0.3, abs=1e-5)


def test_groups_by_cue_and_tier(readings):
    report = sse_u_report(
        [*readings, replace(readings[0], image_id="x", gsd_m=None, provenance_weight=0.0, tier="unknown")]
    )
    assert {"all", "cue", "no_cue", "high", "mid", "low", "unknown"} == set(report)
    assert report["unknown"]["crps"] is None and report["no_cue"]["mean_sigma"] > report["cue"]["mean_sigma"]
    assert sse_u_report([]) == {}


def test_from_a_model(fake_corpus):
    subject = tiny_subject(fake_corpus)
    corpus = CorpusSplit.open(fake_corpus, "test", limit_images=2)
    table = tabulate(subject, corpus.images(subject), referee_views(levels_decades=(0.5,)))
    assert table.correct_VN.shape[0] == 5 and len(table.readings) == 2
    assert referee_report(table, n_resamples=100)["sse_u"]["all"]["images"] == 2


def test_figures(tmp_path, table):
    report = referee_report(table, n_resamples=100)
    save_noise_figure(tmp_path / "n.png", {"ours": report})
    save_sse_u_figure(tmp_path / "s.png", report["sse_u"])
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("n.png", "s.png"))
    assert View(policy="metadata").name in report["groups"]["all"]["views"]
