"""Anybody's predictions file: columns found, rows counted, numbers worked out by hand, floors beside them."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.command import main, report
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS, matcher
from scaleearth_pl.evaluation.rsvqa.rows import read_table
from scaleearth_pl.evaluation.rsvqa.score import score_table
from scaleearth_pl.evaluation.rsvqa.types import type_name, type_of_question

REAL = Path(__file__).parents[3] / "shared" / "real"

ROWS = [
    # target, prediction, type
    ("yes", "Yes", "presence"), ("yes", "yes.", "presence"), ("no", "yes", "presence"), ("yes", "", "presence"),
    ("no", "no", "comp"), ("no", "no, there are less", "comp"),
    ("0", None, "count"), ("403", "427", "count"), ("5", "50", "count"), ("0", "0", "count"),
    ("rural", "rural", "rural_urban"), ("urban", "an", "rural_urban"),
]  # fmt: skip
"""By hand, right answers per type: official 2/4 1/2 2/4 1/2; exact 1/4 1/2 1/4 1/2; lhrs 3/4 1/2 - 2/2;
earthdial 2/4 2/2 - 1/2; internvl 1/4 1/2 4/4 1/2."""

EXPECTED = {
    "official_binned": {"presence": 2 / 4, "comp": 1 / 2, "count": 2 / 4, "rural_urban": 1 / 2},
    "exact": {"presence": 1 / 4, "comp": 1 / 2, "count": 1 / 4, "rural_urban": 1 / 2},
    "lhrs": {"presence": 3 / 4, "comp": 1 / 2, "rural_urban": 2 / 2},
    "earthdial": {"presence": 2 / 4, "comp": 2 / 2, "rural_urban": 1 / 2},
    "internvl": {"presence": 1 / 4, "comp": 1 / 2, "count": 4 / 4, "rural_urban": 1 / 2},
}


@pytest.fixture
def write(tmp_path):
    def make(rows, name="preds.jsonl") -> Path:
        path = tmp_path / name
        if name.endswith(".json"):
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return make


def rows_of(truth="gt", pred="pred", kind="type"):
    return [{"question": "?", truth: t, pred: p, kind: k} for t, p, k in ROWS]


@pytest.mark.parametrize("name", MATCHERS)
def test_hand_computed_file(write, name):
    score = score_table(read_table(write(rows_of())), matcher(name))
    found = {k: t.score for k, t in score.types.items()}
    assert found == pytest.approx(EXPECTED[name])
    weights = Counter(k for *_, k in ROWS if k in found)
    assert score.n == weights.total() and score.dataset == "lr"
    assert score.aa == pytest.approx(sum(found.values()) / len(found))
    assert score.oa == pytest.approx(sum(found[k] * n for k, n in weights.items()) / weights.total())
    assert score.skipped == ({} if "count" in found else {"count": 4})


def test_repositories_own_numbers(write):
    table = read_table(write(rows_of()))
    internvl = score_table(table, matcher("internvl")).repository
    assert internvl["total_score"] == round(7 / 12, 4) and internvl["total_score_useful"] == round(3 / 8, 4)
    assert score_table(table, matcher("lhrs")).repository["Total"] == pytest.approx(100 * 6 / 8)
    assert score_table(table, matcher("earthdial")).repository == {"comp": 1.0, "presence": 0.5, "rural_urban": 0.5}


def test_floors_stand_beside_and_lhrs_rewards_silence(write):
    table = read_table(write(rows_of()))
    official = score_table(table, matcher("official_binned"))
    assert official.types["presence"].majority == 3 / 4 and official.types["presence"].majority_class == "yes"
    assert official.types["count"].majority == 2 / 4 and official.types["count"].majority_class == "0"
    assert official.majority_oa == pytest.approx((3 + 2 + 2 + 1) / 12)
    silent = {name: score_table(table, rule).types["presence"].empty_answer for name, rule in MATCHERS.items()}
    assert silent == {"official_binned": 0, "exact": 0, "lhrs": 1, "earthdial": 0, "internvl": 0}


@pytest.mark.parametrize(
    ("truth", "pred", "kind"),
    [
        ("gt", "pred", "type"), ("answer", "output", "category"), ("ground_truth", "response", "type"),
        ("gt_answer", "response", "question_type"), ("annotation", "answer", "vqa_type"), ("target", "pred", "types"),
        ("groundtruth", "answer", "ttype"), ("Answer", "Prediction", "Type"), ("label", "text", "category"),
    ],
)  # fmt: skip
def test_usual_names_of_columns(write, truth, pred, kind):
    table = read_table(write(rows_of(truth, pred, kind)))
    assert (table.columns.target, table.columns.prediction, table.columns.type) == (truth, pred, kind)
    assert [(r.target, r.prediction, r.type) for r in table.rows] == ROWS


def test_user_may_name_columns(write):
    path = write([{"question": "Is there a road?", "answer": "yes", "x": "no"}])
    with pytest.raises(ConfigError, match="--column"):
        read_table(path)
    assert read_table(path, chosen={"prediction": "x"}).rows[0].prediction == "no"
    with pytest.raises(ConfigError, match="'z'"):
        read_table(path, chosen={"prediction": "z"})


def test_json_shapes_are_all_read(write):
    lines = read_table(write(rows_of())).rows
    for document in (rows_of(), {"outputs": rows_of(), "total_score": 1}, {str(i): r for i, r in enumerate(rows_of())}):
        assert read_table(write(document, "preds.json")).rows == lines
    path = write(rows_of())
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\r\n"))
    assert read_table(path).rows == lines


def test_every_loss_and_repair_is_counted(write):
    table = read_table(
        write(
            [
                {"question": "Is there a road?", "gt": " Yes", "pred": ["yes"]},
                {"question": "How many roads are there?", "gt": 12, "pred": 12.0, "type": "count"},
                {"question": "Is there a road?", "gt": ["yes", "yes"], "pred": None},
                {"question": "Is there a road?", "gt": True, "pred": {"text": "no"}},
                {"question": "Is there a road?", "gt": "no", "pred": float("nan")},
                {"question": "Is there a road?", "gt": "no", "pred": ["no", "yes"]},
                {"question": "Is there a road?", "gt": None, "pred": "yes"},
                {"question": "Is there a road?", "gt": ["yes", "no"], "pred": "yes"},
                {"question": "Describe the image.", "gt": "a city", "pred": "a city"},
                "{not json",
                "[1, 2]",
            ]
        )
    )
    cells = [(r.target, r.prediction, r.type) for r in table.rows]
    assert cells == [
        ("yes", "yes", "presence"),
        ("12", "12", "count"),
        ("yes", None, "presence"),
        ("yes", "no", "presence"),
        ("no", None, "presence"),
        ("no", "no, yes", "presence"),
    ]
    assert table.n_read == 11
    assert table.dropped == {"no_target": 1, "several_targets": 1, "no_type": 1, "not_json": 2}
    notes = {k: n for k, n in table.notes.items() if n}
    assert notes["prediction_null"] == 2 and notes["type_from_question"] == 5 and notes["target_respelled"] == 1
    assert notes["prediction_list_unwrapped"] == 2 and notes["prediction_object_unwrapped"] == 1
    scores = [score_table(table, matcher("exact"))]
    assert report(table, scores)["counts"]["dropped"]["not_json"] == 2


def test_prediction_reaches_the_matcher_untouched(write):
    table = read_table(write([{"question": "Is there a road?", "gt": "yes", "pred": " yes"}]))
    assert score_table(table, matcher("internvl")).oa == 0 and score_table(table, matcher("exact")).oa == 1


@pytest.mark.parametrize(
    ("rows", "name", "dataset"),
    [
        ([("rural", "rural_urban", None)], "p.jsonl", "lr"),
        ([("0m2", "area", None)], "p.jsonl", "hr"),
        ([("3", "count", None)], "rsvqa_lr_test.jsonl", "lr"),
        ([("3", "count", None)], "USGS_phili.jsonl", "hr"),
        ([("3", "count", "rsvqa_hr_phili")], "lr.jsonl", "hr"),
        ([("403", "count", None)], "p.jsonl", "lr"),
        ([("3", "count", None)], "p.jsonl", "hr"),
    ],
)
def test_bins_follow_the_evidence_for_the_data_set(write, rows, name, dataset):
    path = write([{"gt": t, "pred": t, "type": k, **({"source": s} if s else {})} for t, k, s in rows], name)
    assert score_table(read_table(path), matcher("official_binned")).dataset == dataset
    assert score_table(read_table(path), matcher("official_binned"), dataset="lr").dataset == "lr"


def test_types_from_words_and_spellings():
    prompt = "[hr_rgb_0.5] <image>\\n Are there less  roads than parks? Answer the question using a single word."
    assert type_of_question(prompt) == "comp"
    assert type_of_question("Is it a rural or an urban area") == "rural_urban"
    assert [type_name(x) for x in ("Rural-Urban", "Comparison", "COUNT", "vqa")] == ["rural_urban", "comp", "count", ""]


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real tiles are not here")
def test_type_of_every_real_question():
    rows = [r for f in REAL.glob("rsvqa_*/*questions.json") for r in json.loads(f.read_text())["questions"]]
    active = [r for r in rows if r.get("active")]
    assert len(active) == 7006 and all(type_of_question(r["question"]) == r["type"] for r in active)


def test_command_line_prints_table_and_json(write, capsys):
    path = write(rows_of())
    assert main(["score", str(path), "--matcher", "all", "--split", "test1", "--out", str(path.parent / "s.json")]) == 0
    out = capsys.readouterr().out
    assert "majority floor" in out and "test1" in out and "no evidence about continuity" in out.replace("\n", " ")
    document = json.loads((path.parent / "s.json").read_text())
    assert json.loads(out[out.index("\n{\n") :]) == document
    assert set(document["matchers"]) == set(MATCHERS)
    assert main(["score", str(path.parent / "absent.jsonl"), "--matcher", "exact"]) == 2


def test_the_package_is_the_command(write, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rsvqa", "score", str(write(rows_of())), "--matcher", "lhrs", "--format", "json"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("scaleearth_pl.evaluation.rsvqa", run_name="__main__")
    assert stop.value.code == 0
    assert list(json.loads(capsys.readouterr().out)["matchers"]) == ["lhrs"]
