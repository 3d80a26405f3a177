"""SSE-U's diagrams and the prediction files: figures from all ranks' images, rows that no number of ranks changes."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from fakes.toy_training import ToyModule, points, read_board, toy_eval, toy_fit, toy_loader, toy_trainer

from scaleearth_pl.core.errors import ConfigError, ScaleEarthError
from scaleearth_pl.core.metrics import GaussianNll
from scaleearth_pl.evaluation.predictions import read_predictions, read_sse_u
from scaleearth_pl.model.losses import gaussian_nll
from scaleearth_pl.training.callbacks.predictions import (
    Predictions,
    _merge_parts,
    answer_rows,
    merge_answers,
    merge_sse_u,
    sse_u_rows,
)
from scaleearth_pl.training.callbacks.sse_u_diagrams import SseUDiagrams, reliability_figure, scatter_figure
from scaleearth_pl.training.report import EvalReport, merge_reports

SCALARS = ("mae_decades", "mae_decades_cue", "mae_decades_no_cue", "nll", "calibration_ratio", "coverage90")
QUESTION_KEYS = ["image_id", "place_id", "source", "qa_id", "type", "family", "question", "answer"]
QUESTION_KEYS += ["prediction", "correct", "gsd_m", "tier", "has_scale_cue"]
IMAGE_KEYS = ["image_id", "place_id", "gsd_m", "provenance_weight", "mu", "sigma", "has_scale_cue", "tier"]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(folder, callback, how, *, sse_u=True, n_batches=2):
    trainer = toy_trainer(folder, [callback])
    getattr(trainer, how)(ToyModule(sse_u=sse_u), toy_loader(n_batches), verbose=False)
    trainer.logger.experiment.close()


def test_diagrams_after_validation_and_test(tmp_path):
    board = toy_fit(tmp_path / "fit", SseUDiagrams())
    assert {f"val/sse_u/{name}" for name in (*SCALARS, "sigma_error_spearman")} <= set(board.Tags()["scalars"])
    assert {"figures/val/sse_u_reliability", "figures/val/sse_u_scatter"} <= set(board.Tags()["images"])
    assert [step for step, _ in points(board, "val/sse_u/nll")] == [6], "the sanity check is not logged"
    evaluate(tmp_path / "test", SseUDiagrams(), "test")
    assert "test/sse_u/mae_decades" in read_board(tmp_path / "test").Tags()["scalars"]


def test_sigma_follows_the_error_in_the_toy(tmp_path):
    board = toy_fit(tmp_path, SseUDiagrams())
    assert points(board, "val/sse_u/sigma_error_spearman")[0][1] > 0.95


def test_without_sse_u_nothing_is_written(tmp_path):
    board = toy_fit(tmp_path, SseUDiagrams(), sse_u=False)
    assert not [tag for tag in board.Tags()["scalars"] if "sse_u" in tag]
    assert not board.Tags()["images"]


def test_a_second_validation_starts_from_nothing(tmp_path):
    callback = SseUDiagrams()
    trainer = toy_trainer(tmp_path, [callback], steps=4, val_check_interval=2)
    trainer.fit(ToyModule(), toy_loader(4), toy_loader(2))
    trainer.logger.experiment.close()
    values = [value for _, value in points(read_board(tmp_path), "val/sse_u/mae_decades")]
    assert len(values) == 2
    assert values[0] == values[1]


def test_figures_label_their_axes_and_show_metres():
    report = toy_eval(40)
    known = report.nll_weight > 0
    columns = [report.log10_gsd, report.mu, report.log_var, report.nll_weight, torch.ones(40)]
    records_N5 = torch.stack(columns, dim=1)[known]
    for figure in (reliability_figure(records_N5, 5), scatter_figure(records_N5, 10)):
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    (ax,) = figure.axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "m per pixel" in ax.get_xlabel()
    drawn = sum(len(line.get_xdata()) for line in ax.lines) - 2
    assert 0 < drawn <= 10, "max_points thins the scatter"


def labelled(ax):
    """(x, y) of the drawn series, by their names."""
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in ax.lines}


def test_the_reliability_diagram_draws_coverage_by_trust_and_error_over_sigma():
    """One image errs by one sigma and is trusted; the others err by two and are half trusted."""
    sigma, z = torch.tensor([0.1, 0.1, 0.4, 0.4]), torch.tensor([1.0, -2.0, -2.0, 2.0])
    s, weight = torch.zeros(4), torch.tensor([1.0, 0.5, 0.5, 0.5])
    left, right = reliability_figure(torch.stack([s, z * sigma, 2 * sigma.log(), weight, s], dim=1), 2).axes
    level, inside = labelled(left)["SSE-U"]
    expected = [0.0 if p < 0.6827 else 0.4 if p < 0.9545 else 1.0 for p in level]
    assert inside == pytest.approx(expected)
    mean_sigma, mean_error = labelled(right)["2 bins of sigma"]
    assert mean_sigma == pytest.approx([0.1, 0.4])
    assert mean_error == pytest.approx([(0.1 + 0.5 * 0.2) / 1.5, 0.8])


def test_the_scatter_draws_predicted_over_true_gsd_and_bars_of_one_sigma():
    s, mu, sigma = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.5, 0.0, -1.5]), torch.tensor([0.1, 0.2, 0.3])
    cue = torch.tensor([1.0, 1.0, 0.0])
    (ax,) = scatter_figure(torch.stack([s, mu, 2 * sigma.log(), torch.ones(3), cue], dim=1), 10).axes
    assert (ax.get_xlabel()[:8], ax.get_ylabel()[:9]) == ("true GSD", "predicted")
    series = labelled(ax)
    for label, images in (("scale cue (2)", [0, 1]), ("no scale cue (1)", [2])):
        x, y = series[label]
        assert x == pytest.approx((10 ** s[images]).tolist())
        assert y == pytest.approx((10 ** mu[images]).tolist())
    bars = np.concatenate([bars.get_segments() for bars in ax.collections])
    ends = [[[10**x, 10 ** (m - d)], [10**x, 10 ** (m + d)]] for x, m, d in torch.stack([s, mu, sigma], 1).tolist()]
    assert bars == pytest.approx(np.array(ends), rel=1e-5)


@pytest.mark.parametrize("how", ["validate", "test"])
def test_files_hold_every_question_and_image_in_the_agreed_schema(tmp_path, how):
    callback = Predictions()
    evaluate(tmp_path, callback, how)
    questions, images = rows(tmp_path / "predictions.jsonl"), rows(tmp_path / "sse_u.jsonl")
    assert (len(questions), len(images)) == (callback.n_questions, callback.n_images) == (48, 24)
    assert list(questions[0]) == QUESTION_KEYS
    assert list(images[0]) == IMAGE_KEYS
    assert {row["prediction"] for row in questions} == {"9 m", None}
    unknown = [row for row in images if row["gsd_m"] is None]
    assert unknown
    assert all(row["tier"] == "unknown" and row["provenance_weight"] == 0 for row in unknown)
    assert not list(tmp_path.glob("*.rank*"))


def test_validation_inside_fit_writes_no_file(tmp_path):
    toy_fit(tmp_path, Predictions())
    assert not list(tmp_path.glob("*.jsonl*"))


def test_without_sse_u_no_stale_estimates_remain(tmp_path):
    evaluate(tmp_path, Predictions(), "test")
    evaluate(tmp_path, Predictions(), "test", sse_u=False)
    assert (tmp_path / "predictions.jsonl").exists()
    assert not (tmp_path / "sse_u.jsonl").exists()


def test_rows_do_not_depend_on_ranks(tmp_path):
    evaluate(tmp_path, Predictions(), "test")
    parts = [tmp_path / f"part{rank}" for rank in (0, 1)]
    for part, offset in zip(parts, (12, 0)):
        part.write_text("".join(json.dumps(asdict(r)) + "\n" for r in answer_rows(toy_eval(12, offset=offset))))
    assert _merge_parts(parts, tmp_path / "merged", 48, merge_answers) == 48
    assert rows(tmp_path / "merged") == rows(tmp_path / "predictions.jsonl")


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_lost_rows_are_noticed(tmp_path, damage):
    part = tmp_path / "part"
    if damage == "cut":
        part.write_text("{}\n")
    with pytest.raises(ScaleEarthError, match="ranks wrote 2 rows"):
        _merge_parts([part], tmp_path / "merged", 2, merge_answers)


def test_parts_of_an_image_add_up_to_its_trust():
    row = {"image_id": "a", "place_id": "p", "provenance_weight": 0.25}
    (merged,) = merge_sse_u([row, row]).values()
    assert merged["provenance_weight"] == 0.5
    assert row["provenance_weight"] == 0.25


def test_one_question_delivered_twice_counts_once_but_two_questions_may_not_share_an_id():
    row = asdict(next(answer_rows(toy_eval(1))))
    assert len(merge_answers([row, row])) == 1
    with pytest.raises(ScaleEarthError, match="share an id"):
        merge_answers([row, row | {"question": "How long?"}])


def test_merged_reports_point_to_their_own_trees():
    parts = [toy_eval(3), toy_eval(2, offset=3)]
    merged = merge_reports(parts)
    apart = [row for part in parts for row in answer_rows(part)]
    assert list(answer_rows(merged)) == apart
    assert list(sse_u_rows(merged)) == [row for part in parts for row in sse_u_rows(part)]
    assert float(merged.vlm_loss_sum) == pytest.approx(sum(float(p.vlm_loss_sum) for p in parts))
    assert merge_reports([]).correct_B.numel() == 0


def test_a_report_with_half_of_sse_u_is_refused():
    whole = toy_eval(2)
    with pytest.raises(ConfigError, match="all of SSE-U's vectors or none"):
        EvalReport(**(vars(whole) | {"mu": None}))
    with pytest.raises(ConfigError, match="one prediction per branch"):
        EvalReport(**(vars(whole) | {"predictions": ()}))


def test_evaluation_reads_what_was_written(tmp_path):
    evaluate(tmp_path, Predictions(), "test")
    questions, images = read_predictions(tmp_path / "predictions.jsonl"), read_sse_u(tmp_path / "sse_u.jsonl")
    assert (len(questions), len(images)) == (48, 24)
    assert questions[0].correct is rows(tmp_path / "predictions.jsonl")[0]["correct"]


def test_the_metric_is_the_loss_that_was_trained():
    report = toy_eval(20)
    columns = (report.mu, report.log_var, report.log10_gsd, report.nll_weight)
    metric = GaussianNll()
    metric.update(*columns)
    assert float(metric.compute()) == pytest.approx(float(gaussian_nll(*columns) / report.nll_weight.sum()))
