"""Matcher x GSD policy x variant: the numbers by hand, the floors beside them, and what must not stand side by side."""

import json
import re

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.predictions import write_rows
from scaleearth_pl.evaluation.rsvqa.command import main
from scaleearth_pl.evaluation.rsvqa.table import FLOOR, MARK, read_evaluations, write_table

TRUTH = [
    ("rsvqa_lr", "count", "5"), ("rsvqa_lr", "count", "50"), ("rsvqa_lr", "count", "7"), ("rsvqa_lr", "presence", "yes"),
    ("rsvqa_hr", "area", "0m2"), ("rsvqa_hr", "area", "22m2"), ("rsvqa_hr", "presence", "no"), ("rsvqa_hr", "comp", "yes"),
]  # fmt: skip


@pytest.fixture
def evaluation(tmp_path, prediction):
    def make(variant, policy, said, truth=TRUTH, fingerprint="0f0f0f0f1234", ids=None):
        folder = tmp_path / "evaluate" / f"{variant}-{fingerprint[:8]}" / "rsvqa-test" / policy
        rows = [
            prediction(
                source=s,
                qa_id=(ids or {}).get(i, f"{s}-q{i}"),
                type=t,
                question=f"About {t}?",
                answer=a,
                prediction=text,
                correct=a == text,
            )
            for i, ((s, t, a), text) in enumerate(zip(truth, said, strict=True))
        ]
        write_rows(folder / "predictions.jsonl", rows)
        row = {"subject": variant, "configuration": {"view": policy}, "counts": {"images": 1, "questions": len(rows)}}
        row |= {"fingerprint": fingerprint, "seconds": 1.5, "commit": "abcdef0123456789"}
        (folder / "row.json").write_text(json.dumps(row))
        return folder

    return make


def section(text, title):
    """Cells of a section's table by its first two columns."""
    body = re.split(r"^#+ ", text, flags=re.M)
    lines = next(part for part in body if part.startswith(title)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {(row[0], row[1]): row[2:] for row in rows}


def test_numbers_by_hand_and_floors_above_them(evaluation, tmp_path):
    evaluation("ours", "metadata", ["9", "50", "0", "yes", "0", "22m2", "no.", "no"])
    evaluation("ours", "predicted", [""] * 8)
    text = write_table([tmp_path / "evaluate"], out=None, split="test1")
    assert text.startswith("RSVQA holds two GSDs: no evidence about continuity.")
    lr = section(text, "LR, `official_binned`")
    assert lr["variant", "GSD policy"] == ["count", "presence", "AA", "OA"]
    assert lr[FLOOR, ""] == ["66.7", "100.0", "83.3", "75.0"]
    assert lr["ours", "metadata"] == ["66.7", "100.0", "83.3", "75.0"]
    assert lr["ours", "predicted"] == ["0.0", "0.0", "0.0", "0.0"]
    exact = section(text, "LR, `exact`")
    assert (exact[FLOOR, ""], exact["ours", "metadata"]) == (
        ["33.3", "100.0", "66.7", "50.0"],
        ["33.3", "100.0", "66.7", "50.0"],
    )
    hr = section(text, "HR (USGS), `official_binned`")
    assert hr[FLOOR, ""] == ["50.0", "100.0", "100.0", "83.3", "75.0"]
    assert hr["ours", "metadata"] == ["**100.0**", "0.0", "100.0", "66.7", "75.0"]
    # LHRS-Bot leaves areas out and takes an empty answer for right; EarthDial does not take it.
    assert section(text, "HR (USGS), `lhrs`")["ours", "predicted"] == ["100.0"] * 4
    assert section(text, "HR (USGS), `lhrs`")["*empty answer*", ""][:2] == ["100.0", "100.0"]
    assert section(text, "HR (USGS), `earthdial`")["ours", "predicted"] == ["0.0"] * 4
    overview = section(text, "LR, test1: 4 questions (3 count, 1 presence)")
    assert overview["ours", "metadata"][:4] == ["75.0", "83.3", "50.0", "66.7"]
    assert section(text, "What was evaluated")["ours", "metadata"][-1] == "abcdef012345"


def test_other_questions_do_not_stand_side_by_side(evaluation, tmp_path):
    evaluation("ours", "metadata", ["x"] * 8)
    evaluation("twin", "metadata", ["x"] * 7, TRUTH[:7])
    with pytest.raises(ConfigError, match="twin, metadata"):
        read_evaluations([tmp_path / "evaluate"])


def test_what_cannot_be_put_in_a_table_is_refused(evaluation, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"no predictions\.jsonl"):
        read_evaluations([tmp_path])
    with pytest.raises(ConfigError, match="no text was generated"):
        read_evaluations([evaluation("forced", "metadata", [None] * 8)])
    with pytest.raises(ConfigError, match="world"):
        read_evaluations([evaluation("world", "metadata", ["x"], [("world", "width_m", "3")])])
    unfinished = evaluation("unfinished", "metadata", ["x"] * 8)
    (unfinished / "row.json").unlink()
    assert main(["table", str(unfinished)]) == 2
    assert "row.json" in capsys.readouterr().err


def test_the_text_above_the_tables_is_kept(evaluation, tmp_path):
    folder, out = evaluation("ours", "metadata", ["x"] * 8), tmp_path / "docs" / "rsvqa.md"
    assert main(["table", str(folder), "--out", str(out)]) == 0
    written = out.read_text()
    out.write_text(
        written.replace("# RSVQA\n", "# RSVQA\n\nMine. RSVQA holds two GSDs: no evidence about continuity.\n", 1)
    )
    assert main(["table", str(folder), "--out", str(out)]) == 0
    assert out.read_text().startswith("# RSVQA\n\nMine.") and out.read_text().count(MARK) == 1
    assert out.read_text().partition(MARK)[2] == written.partition(MARK)[2]


def test_spoofed_gsds_share_one_table_and_generated_questions_stay_out(evaluation, tmp_path):
    truth = [*TRUTH, ("rsvqa_lr", "arrangement", "in rows")]
    right = [answer for _, _, answer in truth]
    for policy, said in {"metadata": right, "spoof-10m": ["0", *right[1:]], "spoof-0.1m": ["x"] * 9}.items():
        evaluation("ours", policy, said, truth)
    text = write_table([tmp_path / "evaluate"], out=None, split="test1")
    spoofed = section(text, "LR, spoofed GSD: OA under `official_binned`")
    assert spoofed == {
        ("variant", "told"): ["0.1 m", "10 m"],
        ("---", "---"): ["---:", "---:"],
        ("ours", "this GSD"): ["0.0", "75.0"],
    }
    assert ("ours", "spoof-10m") not in section(text, "LR, `exact`")
    assert section(text, "LR, test1: 4 questions (3 count, 1 presence)")["ours", "metadata"][0] == "**100.0**"


def test_a_generated_question_of_an_official_type_stays_out(evaluation, tmp_path):
    truth = [*TRUTH, ("rsvqa_lr", "presence", "yes")]
    right = [answer for _, _, answer in truth]
    evaluation("ours", "metadata", [*right[:-1], "no"], truth, ids={8: "5f2a91c077e4b3d0-1"})
    text = write_table([tmp_path / "evaluate"], out=None, split="test1")
    assert section(text, "LR, test1: 4 questions (3 count, 1 presence)")["ours", "metadata"][0] == "**100.0**"
    stranger = evaluation("strange", "metadata", ["yes"], [TRUTH[3]], ids={0: "5f2a91c077e4b3d0-1"})
    with pytest.raises(ConfigError, match="no question of RSVQA's own"):
        read_evaluations([stranger])


def test_two_trainings_of_one_name_share_no_row_and_no_curve(evaluation, tmp_path):
    right = [answer for _, _, answer in TRUTH]
    evaluation("ours", "metadata", right, fingerprint="aaaaaaaa01")
    evaluation("ours", "spoof-1m", right, fingerprint="aaaaaaaa01")
    evaluation("ours", "spoof-10m", ["x"] * 8, fingerprint="bbbbbbbb01")
    evaluation("plain", "metadata", right)
    text = write_table([tmp_path / "evaluate"], out=None, split="test1")
    assert section(text, "LR, spoofed GSD")["ours-aaaaaaaa", "this GSD"] == ["**100.0**", "-"]
    assert section(text, "LR, spoofed GSD")["ours-bbbbbbbb", "this GSD"] == ["-", "0.0"]
    assert {name for name, _ in section(text, "LR, `exact`")} >= {"ours-aaaaaaaa", "plain"}
    assert [name for name, _ in section(text, "What was evaluated")][2:] == ["ours-aaaaaaaa"] * 2 + [
        "ours-bbbbbbbb",
        "plain",
    ]
    alone = write_table([tmp_path / "evaluate" / "ours-aaaaaaaa"], out=None, split="test1")
    assert ("ours", "metadata") in section(alone, "LR, `exact`")
