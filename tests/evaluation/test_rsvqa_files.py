"""Files as people have them: every container reads alike, nothing crashes, and what is no row is counted."""

import csv
import gzip
import json
from dataclasses import replace

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.command import main, report
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS, matcher
from scaleearth_pl.evaluation.rsvqa.rows import read_table
from scaleearth_pl.evaluation.rsvqa.score import score_table

ROWS = [
    {"question": "Is there a road?", "gt": "yes", "pred": "Yes, there is", "type": "presence"},
    {"question": "How many roads are there?", "gt": "12", "pred": "twelve", "type": "count"},
    {"question": "Is it a rural or an urban area", "gt": "rural", "pred": "rural.", "type": "rural_urban"},
    {"question": "Are there more roads than houses?", "gt": "no", "pred": "yes", "type": "comp"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "question,gt,pred,type\n" + "".join('"{question}",{gt},"{pred}",{type}\n'.format(**row) for row in ROWS)


def cells(table):
    return [(r.question, r.target, r.prediction, r.type) for r in table.rows]


EXPECTED = [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode(),
        LINES.replace("\n", "\r\n").encode("utf-8-sig"),
        LINES.encode("utf-16"),
        gzip.compress(LINES.encode(), mtime=0),
        LINES.replace("\n", "\n\n \t\n").encode(),
        LINES.replace("\n", ",\n").encode(),
        json.dumps(ROWS, indent=2).encode(),
        "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}).encode(),
        json.dumps({key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]}).encode(),
        json.dumps({"presence": ROWS[:1], "rest": ROWS[1:], "seed": 1, "matchers": ["exact"]}).encode(),
        json.dumps({"presence": {"0": ROWS[0]}, "rest": {str(i): row for i, row in enumerate(ROWS[1:])}}).encode(),
        CSV.encode(),
        CSV.replace(",", "\t").replace("Yes\t", "Yes,").replace("\n", "\r\n").encode("utf-8-sig"),
    ],
    ids=[
        "lines",
        "crlf-bom",
        "utf16",
        "gzip",
        "blank",
        "commas",
        "pretty",
        "jq",
        "columns",
        "pandas",
        "parts",
        "objects-in-parts",
        "csv",
        "tsv",
    ],
)
def test_every_container_holds_the_same_rows(tmp_path, data):
    (tmp_path / "results").write_bytes(data)
    table = read_table(tmp_path / "results")
    assert cells(table) == EXPECTED and table.n_read == 4 and not table.dropped


def test_every_list_with_truth_and_prediction_is_read_and_the_others_are_counted(tmp_path):
    path = tmp_path / "p.json"
    noted = [{**row, "note": "-"} for row in ROWS[2:]]
    others = {"config": [{"seed": 1}, {"seed": 2}], "asked": [{"question": "Is there a road?", "gt": "yes"}]}
    path.write_text(json.dumps({"presence": ROWS[:2], **others, "comp": noted}))
    table = read_table(path)
    assert cells(table) == EXPECTED and table.n_read == 7 and table.dropped == {"other_list": 3}
    assert table.examples == {"other_list": "row 5: ['seed']"}
    assert report(table, [])["counts"]["dropped"]["other_list"] == 3
    # Under other names it is another list: what the longest calls prediction would be none here.
    path.write_text(json.dumps({"presence": ROWS[:3], "comp": [{"gt": "no", "answer": "yes", "type": "comp"}]}))
    table = read_table(path)
    assert cells(table) == EXPECTED[:3] and table.dropped == {"other_list": 1}
    path.write_text(json.dumps({"presence": [{"gt": "yes", "x": "no", "type": "presence"}], "rest": ROWS[1:]}))
    table = read_table(path, chosen={"prediction": "x"})
    assert [row.prediction for row in table.rows] == ["no"] and table.dropped == {"other_list": 3}


def table_of(rows, cut):
    return "\n".join(cut.join(cells) for cells in [("question", "gt", "pred", "type"), *rows]) + "\n"


@pytest.mark.parametrize("cut", "\t;,")
@pytest.mark.parametrize(
    ("first", "last"), [(0, 6), (0, 1), (3, 7), (2, None)], ids=["far", "next", "to-the-end", "never-closed"]
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["middle", "end"])
def test_a_stray_quote_swallows_no_row(tmp_path, cut, first, last, order):
    said = ["yes", "no"] * 4
    said[first] = '"yes'
    if last is not None:
        said[last] = 'yes"'
    rows = [(f"Is there a road by house {i}?", "yes", text, "presence") for i, text in enumerate(said)]
    names, *lines = [("question", "gt", "pred", "type"), *rows]
    path = tmp_path / "p.csv"
    path.write_text("".join(cut.join(line[i] for i in order) + "\n" for line in (names, *lines)))
    table = read_table(path)
    assert table.n_read == 8 and not table.dropped and table.notes["stray_quotes"] == 1
    assert [row.prediction for row in table.rows] == said and {row.type for row in table.rows} == {"presence"}


def test_a_stray_quote_beside_quoted_cells_keeps_to_its_cell(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "question,gt,pred,type\n"
        '"Is there, here, a road?",yes,"yes,presence\n'
        '"Is there, here, a road?",yes,"yes, there" is,presence\n'
        '"Is there, here, a road?",yes,"""yes"", I say",presence\n'
    )
    table = read_table(path)
    assert [row.prediction for row in table.rows] == ['"yes', "yes, there is", '"yes", I say']
    assert {row.question for row in table.rows} == {"Is there, here, a road?"} and table.notes["stray_quotes"] == 2


SPOKEN = [
    "Yes.\nThere is a road",
    'No.\r\n\r\nA "track", perhaps\n',
    "yes, it\nis, as it seems, small",
    "yes\nno\tno",
]


@pytest.mark.parametrize("cut", "\t;,")
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("names", [("question", "gt", "pred", "type"), ("question", "type", "gt", "pred")])
def test_answers_over_several_lines_stay_whole(tmp_path, cut, quoting, names):
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=cut, quoting=quoting)
        writer.writeheader()
        writer.writerows({**ROWS[0], "pred": text} for text in SPOKEN)
    table = read_table(tmp_path / "p.csv")
    assert [row.prediction for row in table.rows] == SPOKEN and not table.dropped
    assert table.notes["lines_inside_cells"] == 6 and not table.notes["stray_quotes"]


def test_a_table_of_strange_answers_believes_in_tabs_and_counts_what_quotes_enclose(tmp_path):
    rows = [("q", "a lake", '"a lake', "LC"), ("q", "a wood", "a wood", "LC"), ("q", "a moor", 'a moor"', "LC")]
    path = tmp_path / "p.csv"
    path.write_text(table_of(rows, "\t"))
    assert [row.prediction for row in read_table(path).rows] == ['"a lake', "a wood", 'a moor"']
    path.write_text(table_of(rows, ","))
    table = read_table(path)
    assert len(table.rows) == 1 and table.notes["lines_inside_cells"] == 2


def test_counts_of_a_table_with_a_gap_are_whole_on_both_sides(tmp_path):
    """pandas writes 12.0 for 12 where a column has a gap; in JSON the text "12.0" is what the model wrote."""
    told = [("12.0", "12.0"), ("3.0", "5.0"), ("", "1.0"), ("7", "7.0"), ("2", "a few")]
    rows = [("How many roads are there?", *pair, "count") for pair in told]
    path = tmp_path / "p.csv"
    path.write_text(table_of(rows, ","))
    table = read_table(path)
    found = [(row.target, row.prediction) for row in table.rows]
    assert found == [("12", "12"), ("3", "5"), ("7", "7.0"), ("2", "a few")]
    assert report(table, [])["counts"]["notes"]["prediction_respelled"] == 2
    scores = {name: score_table(table, rule, dataset="hr") for name, rule in MATCHERS.items() if not rule.skips}
    assert {name: score.oa for name, score in scores.items() if name != "internvl"} == pytest.approx(
        {"official_binned": 1 / 4, "exact": 1 / 4}
    )
    assert scores["internvl"].oa == pytest.approx(2 / 4)
    path.write_text(json.dumps([{"gt": "12.0", "pred": "12.0", "type": "count"}]))
    table = read_table(path)
    assert table.rows[0].prediction == "12.0" and score_table(table, MATCHERS["exact"]).oa == 0


def test_a_column_of_numbers_with_a_gap_on_the_side_of_the_predictions_alone(tmp_path):
    """No row of it says so; that every prediction is such a number does."""
    told = [("12", "12.0"), ("3", ""), ("7", "7.0")]
    path = tmp_path / "p.csv"
    path.write_text(table_of([("How many roads are there?", *pair, "count") for pair in told], ","))
    table = read_table(path)
    assert [(row.target, row.prediction) for row in table.rows] == [("12", "12"), ("3", ""), ("7", "7")]
    assert report(table, [])["counts"]["notes"]["prediction_respelled"] == 2
    path.write_text(json.dumps([{"gt": gt, "pred": pred, "type": "count"} for gt, pred in told]))
    assert [row.prediction for row in read_table(path).rows] == ["12.0", "", "7.0"]


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    said = "yes\u2028no\x85\u2029"
    (tmp_path / "p.jsonl").write_text(
        json.dumps({**ROWS[0], "pred": said}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read_table(tmp_path / "p.jsonl").rows[0].prediction == said


def test_rows_cut_off_or_spoilt_are_counted_and_the_rest_is_scored(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(ROWS, indent=2)[:-30])
    table = read_table(path)
    assert cells(table) == EXPECTED[:3] and table.dropped == {"not_json": 1}
    path.write_bytes(
        b"# a header\n" + LINES.encode() + b'{"gt": "no", "pred": "caf\xe9", "type": "comp"}\n{"gt"\n[1, 2]\nnull\n'
    )
    table = read_table(path)
    assert cells(table)[:4] == EXPECTED and table.rows[4].prediction == "caf\ufffd"
    assert table.n_read == 9 and table.dropped == {"not_json": 4} and table.notes["bytes_replaced"] == 1


HORRORS = [
    '{"gt": 3, "type": "count", "pred": ' + "9" * 5000 + "}",
    '{"gt": 3, "type": "count", "pred": 1e999}',
    '{"gt": "7", "type": "count", "pred": "' + "0" * 9000 + '"}',
    '{"gt": "7", "type": "count", "pred": "between 0 and ' + "9" * 9000 + '"}',
    '{"gt": "\u00b2", "type": "count", "pred": "\u00b2\u00b2"}',
    '{"gt": "yes", "type": "presence", "pred": ' + "[" * 300 + '"yes"' + "]" * 300 + "}",
    '{"gt": "yes", "type": "presence", "pred": ' + '{"a":' * 300 + '"yes"' + "}" * 300 + "}",
    '{"gt": "[/red]", "type": "[/x]", "pred": "[bold"}',
    '{"gt": "\\ud800", "type": "LC", "pred": "\\udfff"}',
    '{"gt": "yes", "type": "presence", "pred": "' + "no. " * 20_000 + '"}',
    '{"gt": "yes", "type": "presence", "pred": "' + "'\\\"n't" * 20_000 + '"}',
    '{"gt": "yes", "type": "presence", "pred": "tab\tinside"}',
    '{"gt": "yes", "type": "presence"}',
    '{"gt": "yes", "type": {"a": 1}, "question": ["Is there a road?"], "pred": {"content": [{"text": null}]}}',
]


def test_wrong_answers_count_as_wrong_and_never_crash(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(HORRORS) + "\n", encoding="utf-8")
    assert main(["score", str(path), "--matcher", "all", "--out", str(tmp_path / "s.json")]) == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["counts"]["scored"] == len(HORRORS) and document["matchers"]["exact"]["oa"] == 0
    assert all(document["matchers"][name]["oa"] == 0 for name in ("official_binned", "internvl"))
    assert "\\ud800" in capsys.readouterr().out


def test_a_very_long_answer_is_read_and_the_limit_of_others_stays(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "p.csv").write_text("question,gt,pred,type\nq,yes," + "x" * 200_000 + ",presence\n")
    rows = read_table(tmp_path / "p.csv").rows
    assert len(rows) == 1 and csv.field_size_limit() == before


def test_a_row_whose_json_is_bottomless_is_counted_as_none(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(LINES + '{"gt": "yes", "pred": ' + "[" * 100_000 + "\n")
    assert read_table(path).dropped == {"not_json": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n\n",
        b"null",
        b"5",
        b'["a"]',
        b'{"a": 1}\n',
        gzip.compress(b"x" * 99, mtime=0)[:-9],
        bytes(range(256)) * 9,
    ],
)
def test_what_is_no_predictions_file_is_refused_by_name(tmp_path, data, capsys):
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_table(tmp_path / "p")
    assert main(["score", str(tmp_path / "p"), "--matcher", "exact"]) == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({"gt": "Ground Truth", "pred": "Model Answer", "type": "Q Type"}, ["Ground Truth", "Model Answer", "Q Type"]),
        ({"gt": "groundTruth", "pred": "modelOutput"}, ["groundTruth", "modelOutput", "type"]),
        ({"gt": "label", "pred": "predict", "question": "prompt"}, ["label", "predict", "type"]),
        ({"gt": "gt_label", "pred": "qwen_prediction"}, ["gt_label", "qwen_prediction", "type"]),
        ({"gt": "annotation", "pred": "answer", "question": "text"}, ["annotation", "answer", "type"]),
        ({"gt": "answer", "pred": "text"}, ["answer", "text", "type"]),
        ({"gt": " GT ", "pred": "llava_output"}, [" GT ", "llava_output", "type"]),
    ],
)  # fmt: skip
def test_unusual_names_of_columns(tmp_path, names, found):
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({names.get(k, k): v for k, v in row.items()}) + "\n" for row in ROWS)
    )
    columns = read_table(tmp_path / "p.jsonl").columns
    assert [columns.target, columns.prediction, columns.type] == found


def test_the_type_is_what_names_types_of_rsvqa(tmp_path):
    path = tmp_path / "p.jsonl"

    def types_of(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = read_table(path)
        return [row.type for row in table.rows], {name: n for name, n in table.notes.items() if n}

    truth = [row["type"] for row in ROWS]
    assert types_of([{**row, "category": "LR", "type": "short answer", "vqa_type": row["type"]} for row in ROWS]) == (
        truth,
        {},
    )
    assert types_of([{**row, "type": 3} for row in ROWS]) == (truth, {"type_from_question": 4})
    bare = [{"gt": row["gt"], "pred": row["pred"]} for row in ROWS]
    assert types_of(bare) == (["yes_no", "count", "rural_urban", "yes_no"], {"type_from_target": 4})
    spelt = ["Presence/Absence", "object counting", "Urban or Rural", "comparison of numbers", "LC"]
    assert types_of([{"gt": "x", "pred": "x", "type": s} for s in spelt])[0] == [
        "presence",
        "count",
        "rural_urban",
        "comp",
        "lc",
    ]


def test_a_file_of_both_sets_is_binned_row_by_row(tmp_path):
    row = {"gt": "12", "pred": "11", "type": "count"}
    rows = [
        {**row, "dataset": "RSVQA-LR"},
        {**row, "dataset": "RSVQA-HR"},
        {**row, "dataset": "RSVQA-HR", "pred": "12"},
    ]
    (tmp_path / "allresults_three.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = read_table(tmp_path / "allresults_three.jsonl")
    score = score_table(table, matcher("official_binned"))
    assert score.oa == pytest.approx(2 / 3) and "row by row" in score.dataset_from
    assert score_table(table, matcher("official_binned"), dataset="hr").oa == pytest.approx(1 / 3)
    (tmp_path / "allresults_three.jsonl").write_text(json.dumps(row) + "\n")
    # Neither "lr" in "allresults" nor "hr" in "three" is the name of a set.
    assert (
        "nothing in the file"
        in score_table(read_table(tmp_path / "allresults_three.jsonl"), MATCHERS["exact"]).dataset_from
    )


@pytest.mark.parametrize(
    ("lr", "hr", "key"),
    [
        ({"dataset": "RSVQA", "split": "lr_test"}, {"dataset": "RSVQA", "split": "hr_test_phili"}, "split"),
        ({"image": "RSVQA_LR/7.tif"}, {"image": "RSVQA-HR/7.png"}, "image"),
        ({"source": "rsvqa_lr", "image": "hr/1.tif"}, {"source": "rsvqa_hr", "image": "lr/2.tif"}, "source"),
    ],
)
def test_a_set_that_is_named_by_the_way_tells_the_rows_apart(tmp_path, lr, hr, key):
    """12 is 11 in the bins of LR, and not on HR."""
    row = {"gt": "12", "pred": "11", "type": "count"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**row, **where}) + "\n" for where in (lr, hr, lr)))
    score = score_table(read_table(tmp_path / "p.jsonl"), matcher("official_binned"))
    assert score.oa == pytest.approx(2 / 3)
    assert score.dataset_from == f"the key {key!r}, row by row"


def test_a_mixed_file_that_does_not_tell_its_rows_apart_says_so(tmp_path):
    rows = [("rural", "rural", "rural_urban"), ("0m2", "0m2", "area"), ("12", "11", "count")]
    (tmp_path / "lr.jsonl").write_text("".join(json.dumps({"gt": g, "pred": p, "type": t}) + "\n" for g, p, t in rows))
    score = score_table(read_table(tmp_path / "lr.jsonl"), matcher("official_binned"))
    assert score.types["count"].score == 0
    assert "types of both sets" in score.dataset_from
    assert "--column source=KEY" in score.dataset_from


def test_a_split_is_named_only_where_number_and_types_are_its_own(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = read_table(tmp_path / "p.jsonl")

    def split_of(*types):
        rows = [replace(table.rows[0], type=types[i % len(types)]) for i in range(7057)]
        return report(replace(table, rows=rows), [])["split"]

    assert split_of("presence", "comp", "rural_urban") == "LR test without count"
    assert split_of("presence", "comp", "area") == "not stated"


def test_all_matchers_leave_out_those_that_have_nothing_to_score(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    assert main(["score", str(tmp_path / "p.jsonl"), "--matcher", "all", "--format", "json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["matchers"]) == {"official_binned", "exact", "internvl"}
    assert main(["score", str(tmp_path / "p.jsonl"), "--matcher", "lhrs"]) == 2
    assert (
        main(["score", str(tmp_path / "p.jsonl"), "--matcher", "exact", "--out", str(tmp_path / "p.jsonl" / "x")]) == 2
    )
