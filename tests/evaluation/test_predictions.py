"""The files of a run folder: what is written is read, and nothing else is."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.files import write_json
from scaleearth_pl.core.run_files import Prediction, SseuReading
from scaleearth_pl.evaluation.evaluator.engine import GroupAnswers
from scaleearth_pl.evaluation.evaluator.run import _lines
from scaleearth_pl.evaluation.predictions import (
    RunFolder,
    read_gates,
    read_predictions,
    read_run,
    read_sse_u,
    write_rows,
)
from scaleearth_pl.training.callbacks.predictions import answer_rows, sse_u_rows
from scaleearth_pl.training.report import EvalReport


def test_rows_survive_the_file(tmp_path, predictions, readings):
    rows = predictions()
    write_rows(tmp_path / "predictions.jsonl", rows)
    write_rows(tmp_path / "sse_u.jsonl", readings)
    assert list(read_predictions(tmp_path / "predictions.jsonl")) == rows
    assert list(read_sse_u(tmp_path / "sse_u.jsonl")) == readings


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\n"])
def test_breaks_inside_a_text_are_no_line_ends(tmp_path, predictions, break_):
    """`str.splitlines` cuts at all of these; older runs hold them as they are, for they were written unescaped."""
    row = replace(predictions()[0], question=f"How{break_}wide?", prediction=f"2{break_}m")
    for escaped in (True, False):
        text = json.dumps(asdict(row), ensure_ascii=escaped) + "\n"
        (tmp_path / "predictions.jsonl").write_text(text, encoding="utf-8")
        assert list(read_predictions(tmp_path / "predictions.jsonl")) == [row]


def test_training_and_the_evaluator_write_what_is_read():
    tree = TreeInfo(image_id="i", place_id="p", source="s", gsd_m=None, effective_tier="unknown", has_scale_cue=None)
    branch = BranchInfo(tree=0, qa_id="q", type="t", family="f", question="?", answer="a", options=None)
    one = torch.ones(1)
    report = EvalReport(
        vlm_loss_sum=torch.tensor(0.0),
        n_supervised=torch.tensor(1),
        trees=(tree,),
        branches=(branch,),
        correct_B=torch.tensor([True]),
        predictions=(None,),
        log10_gsd=one * torch.nan,
        mu=one,
        log_var=one,
        nll_weight=one * 0,
    )
    said = GroupAnswers(
        batch=SimpleNamespace(trees=(tree,), branches=(branch,), nll_weight_G=one * 0),
        correct_VB=np.array([[True]]),
        answer_nll_VB=np.zeros((1, 1), np.float32),
        texts=None,
        mu_G=one.numpy(),
        sigma_G=torch.exp(0.5 * one).numpy(),
    )
    (answer,), (reading,) = answer_rows(report), sse_u_rows(report)
    (line,) = _lines(said, seconds=0.5, commit="abc")
    assert answer.correct and reading.sigma == pytest.approx(1.6487, abs=1e-3)
    assert list(asdict(answer).items()) == list(line["answers"][0].items())
    assert list(asdict(reading).items()) == list(line["sse_u"].items())
    assert (Prediction(**line["answers"][0]), SseuReading(**line["sse_u"])) == (answer, reading)
    assert list(_lines(replace(said, mu_G=None, sigma_G=None), seconds=0.5, commit="abc")) == [line | {"sse_u": None}]


BAD_ROWS = {
    "unknown field": ({"gsd": 1.0}, SampleError, "gsd"),
    "answer not text": ({"answer": 3}, SampleError, "answer"),
    "verdict not a truth value": ({"correct": 1}, SampleError, "correct"),
    "other tier": ({"tier": "highest"}, SampleError, "tier"),
    "GSD zero": ({"gsd_m": 0}, GsdError, "gsd_m"),
    "GSD text": ({"gsd_m": "10m"}, GsdError, "gsd_m"),
    "GSD infinite": ({"gsd_m": float("inf")}, GsdError, "gsd_m"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused(tmp_path, prediction, case):
    change, kind, text = BAD_ROWS[case]
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({**asdict(prediction()), **change}) + "\n")
    with pytest.raises(kind, match=text):
        read_predictions(path)


def test_missing_field_cut_line_repeated_question_and_empty_file(tmp_path, prediction):
    path, row = tmp_path / "predictions.jsonl", asdict(prediction())
    short = {k: v for k, v in row.items() if k != "family"}
    for text, expected in (
        (json.dumps(short), "family"),
        (json.dumps(row)[:50], "predictions.jsonl:1"),
        (f"{json.dumps(row)}\n{json.dumps(row)}", "twice"),
        ("[1]", "not an object"),
    ):
        path.write_text(text)
        with pytest.raises(SampleError, match=expected):
            read_predictions(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="no question"):
        read_predictions(path)


@pytest.mark.parametrize("change", [{"sigma": 0.0}, {"mu": float("nan")}, {"provenance_weight": -1.0}, {"tier": "x"}])
def test_bad_readings_are_refused(tmp_path, readings, change):
    path = tmp_path / "sse_u.jsonl"
    path.write_text(json.dumps({**asdict(readings[0]), **change}))
    with pytest.raises(SampleError, match=next(iter(change))):
        read_sse_u(path)


def test_gates_hold_one_share_per_rank_tier(tmp_path):
    good = {"0.1": {"object": 1.0, "structure": 0.5, "semantic": 0}}
    write_json(tmp_path / "gates.json", good)
    assert read_gates(tmp_path / "gates.json") == good
    for bad in ({"0.1": {"object": 1.0}}, {"0.1": {**good["0.1"], "object": 1.2}}, {"0.1": None}):
        write_json(tmp_path / "gates.json", bad)
        with pytest.raises(SampleError, match="rank tier"):
            read_gates(tmp_path / "gates.json")


def test_run_folder_without_head_and_gate_is_stage_one(run_folder, predictions):
    folder = run_folder("stage1", predictions(), stage="stage1")
    run = RunFolder.load(folder)
    assert (run.sse_u, run.gates, run.run.stage) == ((), {}, "stage1")
    record = json.loads((folder / "run.json").read_text())
    record.pop("corpus")
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(SampleError, match="corpus"):
        read_run(folder / "run.json")
    (folder / "predictions.jsonl").unlink()
    (folder / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"run\.json"):
        RunFolder.load(folder)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
