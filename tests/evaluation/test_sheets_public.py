"""Sheets of public benchmarks: a row a sub-task, the official verdict, images of any size."""

import base64
import json
from dataclasses import replace

import pytest
from test_omniearth import LAND, WEATHER, raw
from test_sheets import encoded

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.evaluation.benchmarks import BENCHMARKS, open_benchmark, xlrs
from scaleearth_pl.evaluation.benchmarks.choice import Choice
from scaleearth_pl.evaluation.sheets import main as command
from scaleearth_pl.evaluation.sheets.choose import Draw, Variant
from scaleearth_pl.evaluation.sheets.public import thumbnail

OPTIONS = ["(A) Two", "(B) a harbour", "(C) Six", "(D) red"]
TASKS = ("Counting/Overall counting", "Complex reasoning/Route planning")


@pytest.fixture
def lite(tmp_path, prediction):
    """Six questions of two sub-tasks of XLRS-Bench-lite, and two variants' answers."""
    file, rows = tmp_path / "lite.jsonl", []
    with file.open("w") as stream:
        for k in range(6):
            image = base64.b64encode(encoded(k, size=(1600, 800), kind="JPEG")).decode()
            row = {
                "index": k, "question": "Where?", "multi-choice options": OPTIONS, "answer": "B", "category": TASKS[k % 2],
                "l2-category": f"detail {k}", "image": [image],
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")
            common = {
                "image_id": f"xlrs-{k}",
                "place_id": f"xlrs-{k}",
                "qa_id": str(k),
                "source": "xlrs",
                "question": xlrs.prompt(row),
            }
            kind = {"type": f"{TASKS[k % 2]}/detail {k}", "family": "single", "gsd_m": None, "tier": "unknown"}
            rows.append(prediction(**common, **kind, answer="B", prediction="(B)", correct=False))
    return file, rows


def test_sub_tasks_of_a_benchmark_are_marked_by_its_own_extractor(lite, run_folder, tmp_path, monkeypatch):
    file, rows = lite
    monkeypatch.setattr(command, "ROWS_A_PAGE", 1)
    second = run_folder("second", [replace(row, prediction="C") for row in rows])
    words = [
        f"ours={run_folder('first', rows)}",
        f"other={second}",
        "--xlrs",
        str(file),
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main(words) == 0
    page = (tmp_path / "out" / "xlrs.html").read_text()
    assert page.count('class="right"') == 2 and page.count('class="wrong"') == 2, "a row a sub-task, two variants"
    assert "ours 2 of 2, 100.0 %; other 0 of 2, 0.0 %" in page and "all 3 of this type" in page
    assert "Counting/Overall counting · single · GSD not stated" in page
    assert "Where?\n(A) Two\n(B) a harbour\n(C) Six\n(D) red<br>truth" in page and "Select" not in page
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["xlrs-1.png", "xlrs-2.png"]


def test_answers_that_do_not_fit_the_files_are_refused(lite, run_folder, tmp_path):
    file, rows = lite
    for name, changed, message in [
        ("silent", [replace(row, prediction=None) for row in rows], r"(?s)answer without text.*--teacher-forced"),
        (
            "foreign",
            [replace(row, qa_id=row.qa_id + "x") for row in rows],
            r"(?s)do not hold.*value '0x'.*evaluate --xlrs",
        ),
    ]:
        variant = Variant.load("a", run_folder(name, changed))
        with pytest.raises(ConfigError, match=message):
            command.benchmark_sheets([variant], Draw(), name="xlrs", files=[file], out=tmp_path)


def test_a_row_for_every_path_of_omniearth(prediction, run_folder, tmp_path):
    file = tmp_path / "omni.jsonl"
    file.write_text("".join(json.dumps(raw(k, task=(LAND, WEATHER)[k % 2])) + "\n" for k in range(4)))
    rows = [
        prediction(
            image_id=f"o{k}", qa_id=choice.id, type="/".join(choice.task), family=choice.kind, gsd_m=None, tier="unknown",
            question=choice.prompt, answer=choice.answer, prediction="BA"[k % 2], correct=False,
        )
        for k, choice in enumerate(open_benchmark("omniearth", [file]).choices().values())
    ]  # fmt: skip
    words = [f"ours={run_folder('a', rows)}", "--omniearth", str(file), "--out", str(tmp_path / "out")]
    assert command.main(words) == 0
    page = (tmp_path / "out" / "omniearth.html").read_text()
    assert "ours 1 of 2, 50.0 %" in page and page.count("<tr>") == 3
    assert all(" / ".join(task) in page for task in (LAND, WEATHER))


def test_official_verdicts_of_choices_and_boxes():
    choice = Choice(id="1", prompt="?", options=("(A) 1", "(B) 2"), answer="B", task=("a", "b", "c", "d"))
    for benchmark in BENCHMARKS.values():
        assert benchmark.is_right(choice, "(B)") and not benchmark.is_right(choice, "A")
    is_right = BENCHMARKS["omniearth"].is_right
    box = replace(choice, kind="grounding", answer="[0.1, 0.1, 0.5, 0.5]", options=())
    assert is_right(box, "[100, 100, 500, 520]") and not is_right(box, "[0, 0, 200, 200]")


def test_large_images_become_thumbnails_and_bad_ones_are_named():
    assert thumbnail(encoded(1, size=(3000, 1500), kind="JPEG"), "x").size == (512, 256)
    with pytest.raises(SampleError, match="file xlrs 7"):
        thumbnail(b"no image", "xlrs 7")
