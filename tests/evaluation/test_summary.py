"""summary.json is the document of docs/contracts.md, to the key."""

import json
import sys
from collections import Counter
from dataclasses import replace

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import write_json
from scaleearth_pl.evaluation import summary as module
from scaleearth_pl.evaluation.predictions import RunFolder, write_rows
from scaleearth_pl.evaluation.summary import parse_seconds, summarise

GATES = {m: {"object": 0.9, "structure": 0.5, "semantic": 0.1} for m in ("0.1", "1", "10", "30")}
SCHEMA = {
    "experiment": str, "stage": str, "size": str, "corpus": str, "commit": str, "versions": dict,
    "seconds": {"install": None, "corpus": None, "stage1": None, "stage2": None},
    "qas_per_second": float,
    "accuracy": {"overall": float, "by_tier": dict, "by_family": dict, "by_type": dict, "majority": float},
    "sse_u": dict.fromkeys(("mae_decades", "nll", "calibration_ratio", "coverage90", "sigma_error_spearman"), float),
    "gates": {m: {"object": float, "structure": float, "semantic": float} for m in GATES},
}  # fmt: skip


def assert_schema(document, schema):
    assert list(document) == list(schema)
    for name, kind in schema.items():
        if isinstance(kind, dict):
            assert_schema(document[name], kind)
        elif kind is not None:
            assert isinstance(document[name], kind), name


@pytest.fixture
def folder(run_folder, predictions, readings):
    path = run_folder("cs_hlora", predictions(lambda i, q: q != 1 or i % 2 == 0))
    write_rows(path / "sse_u.jsonl", readings)
    write_json(path / "gates.json", GATES)
    return path


def test_document_has_exactly_the_keys_of_the_contract(folder):
    assert module.main([str(folder)]) == 0
    document = json.loads((folder / "summary.json").read_text())
    assert_schema(document, SCHEMA)
    assert list(document["accuracy"]["by_tier"]) == ["high", "mid", "low"]
    assert set(document["accuracy"]["by_family"]) == {"identification", "scale_specific"}


def test_accuracies_and_floor_are_counts(folder, predictions):
    rows = RunFolder.load(folder).predictions
    document = summarise(RunFolder.load(folder)).document
    assert document["accuracy"]["overall"] == sum(r.correct for r in rows) / len(rows) == 0.875
    best = sum(max(Counter(r.answer for r in rows if r.type == t).values()) for t in ("presence", "width_m"))
    assert document["accuracy"]["majority"] == best / len(rows)


def test_stage_one_has_nulls_and_no_gates(run_folder, predictions):
    document = summarise(RunFolder.load(run_folder("s1", predictions(), stage="stage1"))).document
    assert document["gates"] == {}
    assert set(document["sse_u"].values()) == {None}
    assert document["seconds"]["stage1"] == 12.5
    assert document["seconds"]["stage2"] is None


def test_seconds_come_from_run_stage_one_make_and_command_line(run_folder, predictions, tmp_path, monkeypatch):
    stage1 = run_folder("s1", predictions(), stage="stage1", seconds={"fit": 99.0})
    folder = run_folder("s2", predictions(), stage1=str(stage1 / "hf"))
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / ".installed").write_text("31\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    seconds = summarise(RunFolder.load(folder)).document["seconds"]
    assert seconds == {"install": 31.0, "corpus": None, "stage1": 99.0, "stage2": 12.5}
    assert module.main([str(folder), "--stage1", str(folder), "--seconds", "corpus=7"]) == 0
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert seconds == {"install": 31.0, "corpus": 7.0, "stage1": 12.5, "stage2": 12.5}
    for bad in ("stage3=1", "corpus", "corpus=-1", "corpus=inf", "corpus=nan"):
        with pytest.raises(ConfigError):
            parse_seconds([bad])


def test_details_hold_intervals_floors_cues_and_rsvqa(folder, prediction):
    rows = RunFolder.load(folder).predictions
    more = [
        prediction(
            image_id=f"r{i}", place_id="r", source="rsvqa_lr", qa_id=f"rsvqa_lr-q{i}", type="count", answer=str(i),
            prediction="5",
        )
        for i in range(9)
    ]  # fmt: skip
    run = RunFolder.load(folder)
    details = summarise(replace(run, predictions=(*rows, *more)), image_only=(*rows, *more)).details
    low, high = details["accuracy"]["by_family/scale_specific"]["ci95"]
    assert low <= details["accuracy"]["by_family/scale_specific"]["estimate"] <= high
    assert details["counts"]["places"] == 11
    assert details["floors"]["image_only"]["overall"] == details["accuracy"]["overall"]["estimate"]
    assert set(details["sse_u_by_cue"]) == {"all", "cue", "no_cue"}
    assert details["rsvqa"][0]["types"]["count"]["official"] == pytest.approx(8 / 9)
    json.dumps(details, allow_nan=False)


def test_tables_show_floors_beside_accuracy(folder, capsys):
    assert module.main([str(folder), "--image-only", str(folder)]) == 0
    shown = capsys.readouterr().out
    for text in ("majority", "question + GSD", "87.5", "calibration_ratio", "no_cue", "mean gate", "scale_specific"):
        assert text in shown, text


def test_a_folder_that_was_never_tested_says_so(tmp_path, capsys):
    assert module.main([str(tmp_path)]) == 2
    assert "scaleearth test" in capsys.readouterr().err


def test_an_error_is_printed_as_it_stands(tmp_path, capsys):
    """A folder that looks like the markup of the terminal's library."""
    assert module.main([str(tmp_path / "[bold]x[/y]")]) == 2
    assert "[bold]x[/y]" in capsys.readouterr().err
