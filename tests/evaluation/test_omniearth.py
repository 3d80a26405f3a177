"""OmniEarth-Bench on generated rows: both schemas, both harnesses and their bug, boxes, items without a GSD."""

import json

import pytest
from fakes.subjects import tiny_subject
from test_xlrs import _b64

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks import omniearth
from scaleearth_pl.evaluation.benchmarks.boxes import best_overlap, grounding_scores, overlap, read_box
from scaleearth_pl.evaluation.benchmarks.choice import Choice, Reply
from scaleearth_pl.evaluation.evaluator.choice import evaluate_choice, open_benchmark
from scaleearth_pl.evaluation.evaluator.run import Decoding
from scaleearth_pl.evaluation.evaluator.views import View

OPTIONS = ("(A) 1", "(B) 2", "(C) Unable to decide")
LAND, WEATHER = ("Pedosphere", "Urban", "Perception", "Counting"), ("Atmosphere", "Typhoon", "Reasoning", "Track")


def raw(number, task=LAND, kind="Single Choice", **more):
    names = dict(zip(("L1-task", "L2-task", "L3-task", "L4-task"), task, strict=True))
    return {
        "Question_id": f"x/{number}",
        "Question Type": kind,
        "Text": "How many?",
        "Answer Choices": list(OPTIONS),
        "Ground Truth": "B",
        "Images": [_b64(number)],
        **names,
        "Dataset": "d",
        **more,
    }


def reply(text, task=LAND, answer="B", options=OPTIONS, kind="single", why=None):
    choice = Choice(id="1", prompt="?", options=options, answer=answer, task=task, kind=kind, gsd_undefined=why)
    return Reply(choice=choice, text=text)


def test_prompts_name_as_many_letters_as_there_are():
    one = omniearth.prompt(raw(0), kind="single")
    assert one.startswith("How many?The choices are listed below:\n(A) 1\n(B) 2\n(C) Unable to decide\n\nSelect")
    assert one.endswith("the correct answer (A, B, C).\nThe answer is:")
    several = omniearth.prompt(raw(0), kind="multiple")
    assert several.endswith("correct answer(s) (A, B, C), with multiple choices separated by spaces.\nThe answer is:")
    assert omniearth.prompt(raw(0, **{"Answer Choices": None}), kind="grounding") == "How many?"


def test_harnesses_side_by_side_with_the_bug_under_its_flag():
    """Tasks of Pedosphere: 1/2 and 1/1; of Atmosphere: 0/1. Spheres: 3/4 and 0."""
    other = (*LAND[:3], "Area")
    replies = [reply("B"), reply("A"), reply("B", other), reply("C", WEATHER, why="weather maps")]
    fair = omniearth.score(replies)["choices"]["authors"]
    assert fair["micro"] == 2 / 4 and fair["overall_macro"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert fair["sphere_macro"] == {"Atmosphere": 0.0, "Pedosphere": 0.75}
    assert fair["by_level"]["L1"] == pytest.approx({"Pedosphere": 2 / 3, "Atmosphere": 0.0})
    assert fair["by_level"]["L4"]["/".join(LAND)] == 1 / 2
    assert fair["unable_to_decide"] == {"picked": 1, "questions_without_it": 0}
    assert fair["gsd_undefined"] == {"n": 1, "micro": 0.0, "micro_elsewhere": pytest.approx(2 / 3)}
    compat = omniearth.score(replies, vlmevalkit_compat=True)["choices"]["authors"]
    assert compat["overall_macro"] == pytest.approx((1 / 2 + 1 + 0 + 3 / 4 + 0) / 5)


def test_five_letters_cannot_read_an_f():
    options = tuple(f"({c}) x{c}" for c in "ABCDEFG")
    scores = omniearth.score([reply("(F)", answer="F", options=options)])["choices"]
    assert [scores[name]["micro"] for name in ("authors", "vlmevalkit", "strict")] == [0.0, 1.0, 1.0]
    assert [scores[name]["unreadable_answers"] for name in ("authors", "vlmevalkit", "strict")] == [1, 0, 0]
    assert scores["authors"]["unable_to_decide"]["questions_without_it"] == 1


def test_prefix_lists_differ():
    scores = omniearth.score([reply("The best option is B")])["choices"]
    assert scores["authors"]["micro"] == 1.0 and scores["vlmevalkit"]["micro"] == 0.0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("it is [0.1, 0.2, 0.3, 0.4].", (0.1, 0.2, 0.3, 0.4)), ("(10,20,30,40)", (10, 20, 30, 40)),
        ("(1, 2), (3, 4)", (1, 2, 3, 4)), ("left", (0, 0, 0, 0)), ("[1, 2, 3]", (0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_boxes_are_read_in_three_forms(text, box):
    assert read_box(text) == box


def test_best_of_four_scalings():
    truth = (0.1, 0.2, 0.5, 0.6)
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7) and overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    for box in [(0.1, 0.2, 0.5, 0.6), (100, 200, 500, 600), (10, 20, 50, 60)]:
        assert best_overlap(truth, box, None) == pytest.approx(1)
    assert best_overlap(truth, (64, 96, 320, 288), (640, 480)) == pytest.approx(1)
    assert best_overlap(truth, (64, 96, 320, 288), None) < 0.5


def test_grounding_reports_what_the_authors_code_reports():
    half = reply("[0, 0, 1, 0.5]", answer="[0, 0, 1, 1]", kind="grounding")
    whole = reply("[0, 0, 1, 1]", answer="[0, 0, 1, 1]", kind="grounding")
    scores = grounding_scores([half, whole])
    assert scores["iou"] == pytest.approx(0.75) and scores["acc@0.5"] == 1.0 and scores["acc@0.7"] == 0.5
    assert scores["authors_reported"] == scores["acc@0.9"] == 0.5
    assert omniearth.score([half, whole])["grounding"]["n"] == 2


@pytest.mark.parametrize(
    ("task", "dataset", "undefined"),
    [
        (LAND, "DOTA", False), (WEATHER, "", True), (("Biosphere", "Bird_distribution", "Perception", "x"), "", True),
        (("Lithosphere", "Seismic interpretation", "Reasoning", "x"), "", True),
        (("Oceansphere", "x", "Perception", "x"), "ERA5", True), (("Cryosphere", "Glacier", "Perception", "Lake"), "", False),
    ],
)  # fmt: skip
def test_gsd_undefined_says_why(task, dataset, undefined):
    why = omniearth.gsd_undefined(task, dataset)
    assert (why is not None) == undefined and (why is None or " " in why)


def test_both_schemas_through_the_evaluator(tmp_path, fake_corpus):
    converted = {
        "index": 7, "question": "Which?", "question_type": "Multiple Choice", "multi-choice options": list(OPTIONS),
        "answer": "AB", "image": [_b64(3), _b64(4)], "category": "Atmosphere", "l2-category": "a", "l3-category": "b",
        "l4-category": "c",
    }  # fmt: skip
    authors, lines = tmp_path / "L4.json", tmp_path / "vlm.jsonl"
    authors.write_text(json.dumps([raw(0), raw(1, WEATHER)]))
    lines.write_text(json.dumps(converted) + "\n")
    benchmark = open_benchmark("omniearth", [authors, lines])
    choices = list(benchmark.choices().values())
    assert [c.kind for c in choices] == ["single", "single", "multiple"]
    assert [c.gsd_undefined is None for c in choices] == [True, False, False]
    row = evaluate_choice(
        tiny_subject(fake_corpus), benchmark, View(policy="predicted"), out=tmp_path / "out",
        decoding=Decoding(max_new_tokens=2),
    )  # fmt: skip
    assert row["harness_scores"]["choices"]["strict"]["gsd_undefined"]["n"] == 2
    assert row["harness_scores"]["version"].startswith("unknown") and row["counts"]["unreadable_questions"] == 0
    lines.write_text(json.dumps({**converted, "question_type": "Essay"}) + "\n")
    with pytest.raises(ConfigError, match="Essay"):
        open_benchmark("omniearth", [lines]).choices()
