"""XLRS-Bench-lite on generated rows of its exact schema: prompts, extractors, harness options side by side."""

import base64
import io
import json

import numpy as np
import pyarrow
import pytest
from fakes.subjects import run_folder_of, tiny_subject
from PIL import Image
from pyarrow import parquet

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.evaluation.benchmarks import open_benchmark, xlrs
from scaleearth_pl.evaluation.benchmarks.choice import Choice, Reply
from scaleearth_pl.evaluation.benchmarks.letters import LMMS_EVAL, OMNIEARTH_VLMEVALKIT, right, strict
from scaleearth_pl.evaluation.benchmarks.pixels import PixelPolicy, tile_boxes
from scaleearth_pl.evaluation.evaluator.choice import evaluate_choice
from scaleearth_pl.evaluation.evaluator.command import main
from scaleearth_pl.evaluation.evaluator.row import harness_table
from scaleearth_pl.evaluation.evaluator.run import Decoding
from scaleearth_pl.evaluation.evaluator.views import View

OPTIONS = ["(A) Two", "(B) a harbour", "(C) Six", "(D) red"]


def picture(seed=0, size=(96, 64), kind="PNG"):
    levels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format=kind)
    return stream.getvalue()


def row(index, category="Counting/Overall counting", answer="B", l2="tennis court", images=1, same=None):
    return {
        "index": index,
        "question": "How many tennis courts are there?",
        "multi-choice options": OPTIONS,
        "answer": answer,
        "category": category,
        "l2-category": l2,
        "image": [{"bytes": picture(index if same is None else same), "path": None} for _ in range(images)],
    }


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("B", "B"), ("(b) and C", "B"), ("b", ""), ("A B", "AB"), ("ABD", "ABD"), ("B.", "B"), ("", ""),
        # no letter in brackets: every a-e counts, in any word
        ("The answer is B", "B"), ("The best answer is: B", "B"), ("Based on it: B", "ABDE"), ("Answer: B", "ABE"),
        # the glued prefixes never occur, so these stay in the text
        ("The best option is B", "BE"), ("Best answer: B", "ABE"),
        ("none of Them", ""), ("F", ""),
    ],
)  # fmt: skip
def test_official_extractor_letter_by_letter(reply, letters):
    assert LMMS_EVAL(reply) == frozenset(letters)


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("A, B and D", "ABD"), ("A B", "AB"), ("ABD", "ABD"),
        ("B. a harbour", "B"), ("(B) a harbour", "B"), ("The answer is (B).", "B"), ("The best option is B", "B"),
        ("Based on the image, the correct answer is B because it is red.", "B"), ("a harbour", "B"), ("Red.", "D"),
        ("Based on the image I cannot tell", ""), ("E", ""), ("", ""), ("the answer is A, no, the answer is B", ""),
        ("A harbour with boats", ""), ("bad", ""),
        # "a" is a word: a small letter is an option in brackets, before punctuation or at the end
        ("The answer is a bridge", ""), ("The answer is a bridge, option B is a lake", ""), ("the choice is a", "A"),
        ("The answer is b.", "B"), ("The answer is b, because it is red", "B"), ("the answer is (b) a harbour", "B"),
        ("The answer is: B because", "B"), ("The answer is an island", ""), ("answer: d\n", "D"), ("a: Two", "A"),
    ],
)  # fmt: skip
def test_strict_extractor_reads_what_is_stated(reply, letters):
    assert strict(reply, OPTIONS) == frozenset(letters)


def test_seven_letters_and_set_equality():
    assert OMNIEARTH_VLMEVALKIT("(F)") == {"F"} and LMMS_EVAL("(F)") == frozenset()
    assert right(frozenset("AB"), "B A") and not right(frozenset("AB"), "A") and not right(frozenset(), "A")


def test_prompts_are_the_harnesses_words():
    one = xlrs.prompt(row(1))
    assert one.startswith("How many tennis courts are there?The choices are listed below:\n(A) Two\n(B) a harbour\n")
    assert "(D) red\n\nSelect the best answer for the multiple-choice question based on the image. Only respond" in one
    assert one.endswith("the letter corresponding to the correct answer (A, B, C, D).\nThe answer is:")
    assert xlrs.prompt(row(1, xlrs.SEVERAL_ANSWERS)).endswith("separated by spaces.The answer(s) is(are):")
    text = "The choices are listed below:\n(A) 1\n(B) 2\n\nSelect the best answer ..."
    assert xlrs.prompt({**row(1), "multi-choice options": text}) == "How many tennis courts are there?" + text


def reply(task, answer, text):
    return Reply(choice=Choice(id="1", prompt="?", options=tuple(OPTIONS), answer=answer, task=task), text=text)


def test_harness_options_side_by_side():
    """Three of four right. Sub-tasks: counting 2/3, colour 1/1. l2: court 1/2, red 2/2. Pairs: 1/2, 1/1, 1/1."""
    count, colour = "Counting/Overall counting", "Object properties/Object color"
    replies = [
        reply((count, "court"), "B", "B"),
        reply((count, "court"), "B", "Based on the image, the answer is B"),
        reply((count, "red"), "A", "A"),
        reply((colour, "red"), "AB", "B A"),
    ]
    official, lenient = (xlrs.score(replies)[name] for name in ("official", "strict"))
    assert official["micro"] == 3 / 4 and lenient["micro"] == 1.0
    assert official["macro"] == pytest.approx(
        {
            "lmms-eval": (2 / 3 + 1) / 13,
            "vlmevalkit": (1 / 2 + 1) / 2,
            "vlmevalkit-2025": (1 / 2 + 1 + 1) / 3,
            "present": (2 / 3 + 1) / 2,
        }
    )
    assert len(official["absent_subtasks"]) == 11 and official["n"] == 4


def test_perception_and_reasoning_are_parted():
    plan, colour = "Complex reasoning/Route planning", "Object properties/Object color"
    scored = xlrs.score([reply((plan, "x"), "A", "B"), reply((colour, "x"), "A", "A")])["official"]
    assert (scored["reasoning"], scored["perception"]) == (0.0, 1.0)


@pytest.fixture
def files(tmp_path):
    """Four rows as parquet and as VLMEvalKit's JSON lines: two about one image, one with two images."""
    rows = [
        row(0, same=0),
        row(1, same=0, answer="C"),
        row(2, "Counting/Counting with changing detection", images=2),
        row(3, xlrs.SEVERAL_ANSWERS, answer="AB"),
    ]
    table = tmp_path / "lite.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    lines = tmp_path / "part0.jsonl"
    encoded = [{**r, "image": [base64.b64encode(i["bytes"]).decode() for i in r["image"]]} for r in rows]
    lines.write_text("".join(json.dumps(r) + "\n" for r in encoded))
    return {"parquet": table, "jsonl": lines}


@pytest.fixture(scope="module")
def subject(fake_corpus):
    return tiny_subject(fake_corpus)


def test_rows_become_trees_without_a_gsd(files, subject):
    for file in files.values():
        benchmark = open_benchmark("xlrs", [file])
        assert [c.answer for c in benchmark.choices().values()] == ["B", "C", "B", "AB"]
        trees = list(benchmark.images(subject))
        assert [len(t.questions) for t in trees] == [2, 1, 1], "questions about one image share a forward"
        assert [len(t.images) for t in trees] == [1, 2, 1]
        assert all(t.sample.gsd_m_native is None for t in trees) and benchmark.bad == {}


def test_evaluated_through_sse_u_and_scored_by_every_harness(files, subject, tmp_path):
    benchmark = open_benchmark("xlrs", [files["parquet"]])
    decoding = Decoding(max_new_tokens=2)
    with pytest.raises(GsdError, match="predicted"):
        evaluate_choice(subject, benchmark, View(policy="metadata"), out=tmp_path / "m", decoding=decoding)
    row_ = evaluate_choice(subject, benchmark, View(policy="predicted"), out=tmp_path, decoding=decoding)
    assert set(row_["harness_scores"]) == {"official", "strict"} and row_["counts"]["questions"] == 4
    harnesses = {"lmms-eval", "vlmevalkit", "vlmevalkit-2025", "present"}
    assert set(row_["harness_scores"]["official"]["macro"]) == harnesses
    silent = evaluate_choice(
        subject, benchmark, View(policy="predicted"), out=tmp_path / "silent", decoding=Decoding(generate=False)
    )
    assert silent["harness_scores"] is None and silent["counts"]["questions"] == 4, "no reply, no score of it"
    assert [harness_table([row_]).columns[n]._cells[0] for n in (2, 3, 4)] == ["xlrs", "choices", "official"]
    assert row_["pixels"] == "budget-own" and row_["accuracy"]["by_tier"].keys() == {"unknown"}


def test_a_model_without_sse_u_is_told_what_to_do(files, fake_corpus, tmp_path):
    subject, benchmark = tiny_subject(fake_corpus), open_benchmark("xlrs", [files["jsonl"]])
    subject.model.gsd_head = None
    with pytest.raises(ConfigError, match=r"no SSE-U.*--policy spoof"):
        evaluate_choice(subject, benchmark, View(policy="predicted"), out=tmp_path)
    flag = {"decoding": Decoding(max_new_tokens=2), "out": tmp_path}
    told = View(policy="spoof", spoof_gsd_m=1.0)
    row_ = evaluate_choice(subject, benchmark, told, **flag)
    assert evaluate_choice(subject, benchmark, told, vlmevalkit_compat=True, **flag) == row_, (
        "a flag of OmniEarth's alone"
    )


def test_other_questions_under_the_same_name_are_not_read_from_the_cache(tmp_path, subject):
    file, decoding = tmp_path / "part0.jsonl", Decoding(max_new_tokens=2)
    for answer in ("B", "C"):
        file.write_text(json.dumps({**row(0, answer=answer), "image": [_b64(0)]}) + "\n")
        benchmark, out = open_benchmark("xlrs", [file]), tmp_path / "out"
        if answer == "B":
            first = evaluate_choice(subject, benchmark, View(policy="predicted"), out=out, decoding=decoding)
            assert evaluate_choice(subject, benchmark, View(policy="predicted"), out=out, decoding=decoding) == first
    with pytest.raises(ConfigError, match="another evaluation"):
        evaluate_choice(subject, benchmark, View(policy="predicted"), out=out, decoding=decoding)


def test_foreign_rows_and_bad_images_are_named(tmp_path, subject):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({**row(0), "image": [], "category": "Cooking/Soup"}) + "\n")
    with pytest.raises(ConfigError, match="Cooking"):
        open_benchmark("xlrs", [file]).choices()
    for bad, message in (
        ({**row(0), "image": [], "multi-choice options": None}, "multi-choice options"),
        ([1], "object"),
    ):
        file.write_text(json.dumps(bad) + "\n")
        with pytest.raises(ConfigError, match=message):
            open_benchmark("xlrs", [file]).choices()
    broken = base64.b64encode(b"not an image" * 20).decode()
    file.write_text("".join(json.dumps({**row(i), "image": [x]}) + "\n" for i, x in enumerate([broken, _b64(1)])))
    benchmark = open_benchmark("xlrs", [file])
    assert [t.sample.image_id for t in benchmark.images(subject)] == ["xlrs-1"] and list(benchmark.bad) == ["0"]


def test_so_many_images_are_spread_over_the_files(tmp_path, subject, fake_corpus):
    """Two questions an image; the first and the last image are among those that are kept."""
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({**row(i), "image": [_b64(i // 2)]}) + "\n" for i in range(10)))
    few = open_benchmark("xlrs", [file]).limited(3)
    assert list(few.choices()) == ["0", "1", "4", "5", "8", "9"]
    assert [[q.id for q in asked.questions] for asked in few.images(subject)] == [["0", "1"], ["4", "5"], ["8", "9"]]
    assert len(open_benchmark("xlrs", [file]).limited(99).choices()) == 10
    with pytest.raises(ConfigError, match="limit_images"):
        open_benchmark("xlrs", [file]).limited(0)
    run = run_folder_of(subject, fake_corpus, tmp_path / "runs" / "tiny" / "v0")
    words = ["--xlrs", str(file), "--limit-images", "3", "--teacher-forced", "--out", str(tmp_path / "out")]
    assert main([str(run), *words]) == 0
    (found,) = map(json.loads, (tmp_path / "out" / "rows.jsonl").read_text().splitlines())
    assert found["counts"] | {"questions": 6, "planned_questions": 6, "images": 3} == found["counts"]


def _b64(seed):
    return base64.b64encode(picture(seed)).decode()


def test_large_images_stay_inside_their_budget(subject):
    own = subject.processor
    data = picture(size=(1200, 800), kind="JPEG")
    (image,), size = PixelPolicy(max_pixels=4096).encode(data, own, where="x")
    assert size == (1200, 800) and image.seen_size[0] * image.seen_size[1] <= 4096
    tiles, _ = PixelPolicy(kind="tiles", max_tiles=6, max_pixels=4096).encode(data, own, where="x")
    assert len(tiles) == 6 and len({t.seen_size for t in tiles}) == 1, "equal tiles, equal GSD"
    with pytest.raises(SampleError, match="more than 1000 pixels"):
        PixelPolicy(max_decoded=1000).encode(data, own, where="x")
    with pytest.raises(ConfigError):
        PixelPolicy(kind="pyramid")


@pytest.mark.parametrize(
    ("size", "n", "grid"), [((900, 900), 9, (3, 3)), ((1200, 800), 6, (3, 2)), ((500, 1500), 3, (1, 3))]
)
def test_tiles_are_equal_and_cover_the_image(size, n, grid):
    boxes = list(tile_boxes(size, n))
    assert len(boxes) == grid[0] * grid[1]
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes}) == 1
    assert max(b[2] for b in boxes) > size[0] - grid[0] and max(b[3] for b in boxes) > size[1] - grid[1]
