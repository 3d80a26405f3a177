"""OmniEarth-Bench on generated rows: both schemas, both harnesses and their bug, boxes, items without a GSD."""

import json

import pytest
from fakes.subjects import tiny_subject
from test_xlrs import _b64, picture

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks import omniearth, open_benchmark
from scaleearth_pl.evaluation.benchmarks.boxes import best_overlap, grounding_scores, overlap, read_box
from scaleearth_pl.evaluation.benchmarks.choice import Choice, Reply
from scaleearth_pl.evaluation.evaluator.choice import evaluate_choice
from scaleearth_pl.evaluation.evaluator.row import harness_table
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
    assert scores["sizes_known"] == 0
    assert scores["iou"] == pytest.approx(0.75) and scores["acc@0.5"] == 1.0 and scores["acc@0.7"] == 0.5
    assert scores["authors_reported"] == scores["acc@0.9"] == 0.5
    assert omniearth.score([half, whole])["grounding"]["n"] == 2


def test_grounding_truth_of_either_schema_is_in_parts_of_the_image(tmp_path):
    """The authors' JSON states pixels of an image of 96 x 64; their parquet parts, and the size beside them."""
    authors, parts = tmp_path / "vg.json", tmp_path / "vg.jsonl"
    task = dict(zip(("L1-task", "L2-task", "L3-task", "L4-task"), LAND, strict=True))
    box = {"Question Type": "Visual Grounding", "Ground Truth": "<24><16><48.0><32>", "Answer Choices": None}
    authors.write_text(json.dumps([{**raw(0), **box}]))
    converted = {
        "index": 0,
        "question_type": "Visual Grounding",
        "question": "Where?",
        "answer": [0.25, 0.25, 0.5, 0.5],
    }
    sized = {"image": _b64(1), "image_width": 96, "image_height": 64}
    parts.write_text(json.dumps({**converted, **sized, **task}) + "\n")
    choices = list(open_benchmark("omniearth", [authors, parts]).choices().values())
    assert [choice.size for choice in choices] == [(96, 64)] * 2
    for text in ("[0.25, 0.25, 0.5, 0.5]", "[24, 16, 48, 32]", "[250, 250, 500, 500]"):
        scores = omniearth.score([Reply(choice=choice, text=text) for choice in choices])["grounding"]
        assert scores["iou"] == pytest.approx(1, abs=1e-6), text
        assert scores["sizes_known"] == 2
    authors.write_text(json.dumps([{**raw(0), **box, "Ground Truth": "B"}]))
    with pytest.raises(ConfigError, match="no box"):
        open_benchmark("omniearth", [authors]).choices()


def test_rows_numbered_anew_in_every_task_stay_apart(tmp_path, fake_corpus):
    """Every task of the authors counts from 0: three rows "0" with three answers are three questions."""
    files = [tmp_path / name / "rows.jsonl" for name in ("one", "two")]
    rows = [[("A", LAND), ("B", WEATHER)], [("C", (*LAND[:3], "Area"))]]
    for file, some in zip(files, rows, strict=True):
        file.parent.mkdir()
        lines = [
            {**raw(number, task), "Question_id": "x/0", "Ground Truth": a} for number, (a, task) in enumerate(some)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmark = open_benchmark("omniearth", files)
    choices = benchmark.choices()
    assert [(name, choice.id, choice.answer) for name, choice in choices.items()] == [
        ("x/0", "x/0", "A"),
        ("x/0~2", "x/0~2", "B"),
        ("x/0~3", "x/0~3", "C"),
    ]
    subject = tiny_subject(fake_corpus)
    asked = [q.id for tree in benchmark.images(subject) for q in tree.questions]
    assert asked == list(choices)
    with pytest.raises(ConfigError, match="named twice"):
        open_benchmark("omniearth", [files[0], files[0]]).choices()


def test_an_image_is_looked_for_beside_its_own_file(tmp_path, fake_corpus):
    """Two parts with an image of one name each: neither is answered from the other's."""
    subject = tiny_subject(fake_corpus)
    files = []
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture(seed))
        files.append(tmp_path / name / "rows.jsonl")
        files[-1].write_text(json.dumps({**raw(seed), "Images": ["x.png"]}) + "\n")
    one, two = (tree.images[0].pixel_values_PD for tree in open_benchmark("omniearth", files).images(subject))
    assert not (one == two).all()


@pytest.mark.parametrize(
    ("task", "dataset", "undefined"),
    [
        (LAND, "DOTA", False), (WEATHER, "", True), (("Biosphere", "Bird_distribution", "Perception", "x"), "", True),
        (("Lithosphere", "Seismic interpretation", "Reasoning", "x"), "", True),
        (("Oceansphere", "x", "Perception", "x"), "ERA5", True), (("Cryosphere", "Glacier", "Perception", "Lake"), "", False),
        (("Lithosphere", "earthquake_monitoring_and_prediction", "Perception", "P-wave_phase_picking"), "", True),
        (("Lithosphere", "geophysics_imaging", "Perception", "salt_body_detection"), "", True),
        (("Oceansphere", "Extreme_Events", "Reasoning", "IOD_Forecast"), "", True),
        (("Oceansphere", "Phenomenon_Detection", "Perception", "Marine_Fog_Detection"), "", False),
        (("Cryosphere", "Sea_ice_forecast", "Reasoning", "SIV_Trend_Prediction"), "", True),
        (("Cross-sphere", "Bird_species_prediction", "Reasoning", "Species_richness_estimation"), "", True),
        (("Pedosphere", "Urban_Development", "Perception", "Overall_counting"), "", False),
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
    assert (table := harness_table([row])) is not None
    assert list(table.columns[4].cells) == ["authors", "vlmevalkit", "strict"]
    assert list(table.columns[5].cells) == ["3"] * 3 and harness_table([{**row, "harness_scores": None}]) is None
    lines.write_text(json.dumps({**converted, "question_type": "Essay"}) + "\n")
    with pytest.raises(ConfigError, match="Essay"):
        open_benchmark("omniearth", [lines]).choices()


def test_a_chain_of_thought_is_scored_apart_so_that_no_task_counts_twice(tmp_path):
    """The authors convert one JSON file into a shard of choices and into one with annotated steps."""
    files = [tmp_path / name for name in ("choice.jsonl", "cot.jsonl")]
    files[0].write_text(json.dumps(raw(0)) + "\n")
    files[1].write_text(json.dumps({**raw(0), "key_annotation_steps": ["Step 1: count"]}) + "\n")
    choices = list(open_benchmark("omniearth", files).choices().values())
    assert [choice.kind for choice in choices] == ["single", "steps"]
    scores = omniearth.score([Reply(choice=choices[0], text="B"), Reply(choice=choices[1], text="A")])
    assert [
        (scores[part]["strict"]["n"], scores[part]["strict"]["micro"]) for part in ("choices", "chain_of_thought")
    ] == [
        (1, 1.0),
        (1, 0.0),
    ]


def test_the_version_is_told_by_the_questions_there_are_and_a_score_of_none_is_no_zero():
    scores = omniearth.score([reply("B")], n_questions=29_779)
    assert scores["version"].startswith("v1")
    assert scores["choices"]["strict"]["gsd_undefined"] == {"n": 0, "micro": None, "micro_elsewhere": 1.0}


def test_one_image_under_two_tasks_is_one_place(tmp_path, fake_corpus):
    """Intervals resample places: rows of one scene that stand apart are not independent."""
    file = tmp_path / "rows.jsonl"
    rows = [raw(0), raw(1, WEATHER), {**raw(2, (*LAND[:3], "Area")), "Images": raw(0)["Images"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = open_benchmark("omniearth", [file]).images(tiny_subject(fake_corpus))
    assert first.sample.place_id == third.sample.place_id != second.sample.place_id
    assert first.sample.image_id != third.sample.image_id
