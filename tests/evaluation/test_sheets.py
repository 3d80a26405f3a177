"""Qualitative sheets: the draw is blind to success, every answer is shown as it was given, bad input is named."""

import io
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from fakes.subjects import run_folder_of, tiny_subject
from PIL import Image

from scaleearth_pl.cli import OWN_COMMANDS
from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.evaluation.evaluator.command import evaluate_corpus
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.run import Decoding
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.predictions import read_predictions, write_rows
from scaleearth_pl.evaluation.sheets import main as command
from scaleearth_pl.evaluation.sheets.choose import (
    DRAW_ORDER,
    Draw,
    Variant,
    draw_places,
    draw_types,
    qualified,
    refuse_unequal,
)
from scaleearth_pl.evaluation.sheets.paper import metres, nice_bar_m, shortened, wrapped
from scaleearth_pl.prepare.write import ShardWriter

KINDS = (
    ("width", "scale_specific", "How wide is the road?", "20 m"),
    ("presence", "identification", "Is there <b>water</b> & sand?", "yes"),
    ("which_size", "discriminative", "5 m or 20 m?", "5 m"),
    ("land_cover", "identification", "What covers most?", "trees"),
    ("presence", "identification", "Is there a lake?", "no"),
)
GSDS_M = (0.2, 2.0, 25.0)


def questions(number):
    return [
        Question(id=f"q{k}", type=t, family=f, question=q, answer=a)
        for k, (t, f, q, a) in enumerate(KINDS[number % 2 :])
    ]


def encoded(number, size=(24, 24), kind="PNG"):
    """Rows of pixels in two colours, the first told by the number: blurred they would be a third."""
    stream, pixels = io.BytesIO(), np.empty((size[1], size[0], 3), np.uint8)
    pixels[::2], pixels[1::2] = (40 * number % 255, 90, 120), (40 * number % 255, 200, 20)
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


@pytest.fixture
def world(tmp_path, prediction):
    """Five places at three GSDs and one at a single GSD: (corpus, rows without verdicts)."""
    root, tiers, rows = tmp_path / "world", TierBoundaries(), []
    with ShardWriter(root, corpus="world", boundaries=tiers) as writer:
        for number in range(16):
            place, gsd_m = f"p{number // 3}", GSDS_M[number % 3]
            sample = Sample(
                source="world", split="test", image_id=f"i{number:02d}", place_id=place, width=24, height=24,
                gsd_m_native=gsd_m, gsd_provenance=Provenance.EXACT, tier=tiers.tier_of(gsd_m),
                qas=tuple(questions(number)),
            )  # fmt: skip
            writer.write(sample, encoded(number), "png")
            rows += [
                prediction(
                    image_id=sample.image_id, place_id=place, qa_id=q.id, type=q.type, family=q.family, question=q.question,
                    answer=q.answer, prediction=q.answer, gsd_m=gsd_m, tier=str(sample.tier),
                )
                for q in sample.qas
            ]  # fmt: skip
    return root, rows


def answered(rows, says):
    """Rows of a variant that gives `says(row)` as text."""
    return [replace(row, prediction=says(row), correct=says(row) == row.answer) for row in rows]


@pytest.fixture
def write(tmp_path):
    """A folder of answers, with SSE-U's readings on request."""

    def make(name, rows, sse_u=False):
        folder = tmp_path / "answers" / name / "latest"
        write_rows(folder / "predictions.jsonl", rows)
        if sse_u:
            images = {row.image_id: row for row in rows}.values()
            reading = {"provenance_weight": 1.0, "mu": 0.3, "sigma": 0.25, "has_scale_cue": False}
            write_rows(
                folder / "sse_u.jsonl",
                [
                    SseuReading(image_id=r.image_id, place_id=r.place_id, gsd_m=r.gsd_m, tier=r.tier, **reading)
                    for r in images
                ],
            )
        return folder

    return make


def keys(places):
    return [[(d.image_id, [r.qa_id for r in d.rows]) for d in place] for place in places]


def test_the_draw_sees_neither_verdicts_nor_texts_nor_the_order_of_the_file(world):
    luck = random.Random(3)
    rows = [replace(row, correct=luck.random() < 0.5) for row in world[1]]
    turned = [replace(row, correct=not row.correct, prediction=luck.choice("abc")) for row in rows]
    luck.shuffle(turned)
    draw = Draw(places=2)
    assert keys(draw_places(rows, draw)) == keys(draw_places(turned, draw))
    assert [d.rows[0].key for d in draw_types(rows, draw)] == [d.rows[0].key for d in draw_types(turned, draw)]
    sheets = {str(keys(draw_places(rows, Draw(places=2, seed=seed)))) for seed in range(8)}
    assert len(sheets) > 4, "another seed is another sheet"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_an_image_shows_families_first_then_new_types_and_nothing_twice(world, n):
    places = draw_places(world[1], Draw(places=5, questions=n))
    assert len(places) == 5
    for place in places:
        assert [d.gsd_m for d in place] == sorted(d.gsd_m for d in place)
        for drawn in place:
            there = [row for row in world[1] if row.image_id == drawn.image_id]
            families = [f for f in DRAW_ORDER if any(row.family == f for row in there)]
            assert [row.family for row in drawn.rows][: len(families)] == families[:n]
            assert len({row.qa_id for row in drawn.rows}) == len(drawn.rows) == min(n, len(there))
            types = [row.type for row in drawn.rows]
            assert len(set(types)) == min(len(types), len({row.type for row in there}))


def test_a_place_qualifies_by_different_gsds_only(world, prediction):
    same = [prediction(image_id=f"s{k}", place_id="same", gsd_m=0.5) for k in range(5)]
    unknown = [prediction(image_id=f"u{k}", place_id="unknown", gsd_m=None, tier="unknown") for k in range(5)]
    assert qualified([*world[1], *same, *unknown], 3) == ["p0", "p1", "p2", "p3", "p4"]


def test_one_row_for_every_type_in_the_order_of_families(world):
    drawn = draw_types(world[1], Draw())
    assert [d.rows[0].type for d in drawn] == ["width", "which_size", "land_cover", "presence"]


def test_no_place_at_so_many_gsds_names_the_most_there_is(world):
    with pytest.raises(ConfigError, match=r"(?s)min_gsds.*value 4.*most here is 3.*--min-gsds"):
        draw_places(world[1], Draw(min_gsds=4))
    with pytest.raises(ConfigError, match="questions"):
        Draw(questions=0)


def test_an_unknown_run_lists_the_runs_there_are(world, write):
    folder = write("stage2-tiny", world[1])
    with pytest.raises(ConfigError, match=r"(?s)'ours'.*value.*stage3.*make compare.*holds stage2-tiny"):
        Variant.load("ours", folder.parent.parent / "stage3" / "latest")


def test_a_variant_without_predictions_says_how_to_make_them(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)'text' has no predictions.*predictions.jsonl.*scaleearth test"):
        Variant.load("text", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"(?s)'b' did not answer the questions of 'a'.*i15.*same split"),
        (lambda rows: [*rows, replace(rows[0], qa_id="more")], r"(?s)did not answer.*more"),
        (lambda rows: [replace(rows[0], answer="30 m"), *rows[1:]], r"(?s)asked something else.*30 m.*same build"),
    ],
)
def test_answers_to_other_questions_are_not_put_side_by_side(world, write, change, message):
    pair = [Variant.load("a", write("a", world[1])), Variant.load("b", write("b", change(world[1])))]
    with pytest.raises(ConfigError, match=message):
        refuse_unequal(pair)


def test_the_sheets_show_every_answer_as_it_was_given(world, write, tmp_path):
    corpus, rows = world
    ours = write("ours", answered(rows, lambda r: r.answer), sse_u=True)
    text = write("text", answered(rows, lambda r: "<script>7 km</script>" if r.type == "width" else r.answer))
    out, words = tmp_path / "out", [f"ours={ours}", f"GSD as text={text}"]
    assert command.main([*words, "--corpus", str(corpus), "--out", str(out), "--places", "2"]) == 0
    page = (out / "sheets.html").read_text()
    places, types = draw_places(rows, Draw(places=2)), draw_types(rows, Draw())
    shown = [row for drawn in (*(d for place in places for d in place), *types) for row in drawn.rows]
    wrong = sum(row.type == "width" for row in shown)
    assert wrong and page.count('class="wrong"') == wrong and page.count('class="right"') == 2 * len(shown) - wrong
    assert page.count("&lt;script&gt;7 km&lt;/script&gt;") == wrong and "<script" not in page
    assert "Is there &lt;b&gt;water&lt;/b&gt; &amp; sand?" in page
    assert page.count("SSE-U: 2 m, σ 0.25 decades · no scale cue</small>") == sum(len(place) for place in places)
    n_places = sum(len(drawn.rows) for place in places for drawn in place)
    width = [row.type for place in places for drawn in place for row in drawn.rows].count("width")
    share = 100 * (1 - sum(row.type == "width" for row in rows) / len(rows))
    counts = f"ours {n_places} of {n_places}, 100.0 %; GSD as text {n_places - width} of {n_places}, {share:.1f} %"
    assert counts in page and f"all {len(rows)} questions" in page
    assert set(re.findall(r'(?:src|href)="([^":,]+)', page)) == {"data"}, "nothing is fetched"
    assert "asked again" not in page, "texts were in the files"
    for name in ("places.png", "types.png"):
        image = np.asarray(Image.open(out / name))
        assert image.shape[2] == 3 and (image[:8] == 255).all() and len(np.unique(image)) > 50


def test_pixels_of_the_sheet_are_the_pixels_of_the_shard(world, write, tmp_path):
    corpus, rows = world
    command.main([f"a={write('a', rows)}", "--corpus", str(corpus), "--out", str(tmp_path / "out")])
    sheet = np.asarray(Image.open(tmp_path / "out" / "places.png")).reshape(-1, 3)
    for place in draw_places(rows, Draw()):
        for drawn in place:
            red = 40 * int(drawn.image_id[1:]) % 255
            for green, blue in ((90, 120), (200, 20)):
                like = (sheet & 0xFC == np.array([red, green, blue]) & 0xFC).all(-1)
                assert like.sum() > 0.4 * 240**2, "24 px ten times enlarged, less the scale bar"


def test_another_build_of_the_corpus_is_refused(world, write, tmp_path):
    corpus, rows = world
    other = [replace(row, question=row.question + "?") for row in rows]
    variant = Variant.load("a", write("a", other))
    with pytest.raises(ConfigError, match=r"(?s)does not hold this question.*value \('i.*--corpus"):
        command.corpus_sheets([variant], Draw(), corpus=corpus, out=tmp_path)


def test_command_line_errors_are_typed_and_end_in_2(world, write, tmp_path, capsys):
    assert OWN_COMMANDS["sheets"][0] == command.__name__
    folder = write("a", world[1])
    for words, message in [
        (["nothing"], "NAME=FOLDER"),
        ([f"a={folder}", f"a={folder}"], "each name stands once"),
        ([f"a={tmp_path / 'gone'}"], "no run for variant 'a'"),
        (["--runs", str(tmp_path)], "stage2-tiny-world"),
        ([f"a={folder}", "--min-gsds", "9"], "no place was seen"),
        ([f"a={folder}", "--xlrs", "a.jsonl", "--omniearth", "b.jsonl"], "one benchmark at a time"),
    ]:
        assert command.main([*words, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("extent_m", [*np.geomspace(0.7, 9e5, 23), 2.5, 5.0, 12.5])
def test_scale_bars_are_round_and_neither_long_nor_short(extent_m):
    bar_m = nice_bar_m(extent_m)
    assert 0.16 <= bar_m / extent_m <= 0.4 + 1e-9
    assert float(f"{bar_m:.0e}") == pytest.approx(bar_m) and f"{bar_m:.0e}"[0] in "125"


def test_lengths_and_texts_fit():
    assert [metres(x) for x in (0.05, 0.5, 1.0, 500.0, 1000.0, 20000.0)] == [
        "5 cm",
        "50 cm",
        "1 m",
        "500 m",
        "1 km",
        "20 km",
    ]
    assert shortened("a small lake", 8) == "a small…" and shortened("lake", 4) == "lake"
    lines = wrapped("word " * 200 + "\n(A) one", 2.0, lines=5)
    assert len(lines) == 5 and lines[-1].endswith("...") and wrapped("(A)\n(B)", 2.0) == ["(A)", "(B)"]


@pytest.mark.slow
def test_a_run_without_texts_is_asked_again_and_says_what_the_evaluator_reads(fake_corpus, tmp_path):
    subject = tiny_subject(fake_corpus)
    run = run_folder_of(subject, fake_corpus, tmp_path / "run")
    metadata, split = View(policy="metadata"), CorpusSplit.open(fake_corpus, "test")
    for generate in (False, True):
        out = tmp_path / str(generate)
        evaluate_corpus(subject, split, metadata, out=out, decoding=Decoding(generate=generate))
    silent, spoken = (next((tmp_path / str(g)).glob("*/*/*/predictions.jsonl")) for g in (False, True))
    (run / "predictions.jsonl").write_bytes(silent.read_bytes())
    texts = {row.key: row.prediction for row in read_predictions(spoken)}
    variant = Variant.load("ours", run)
    drawn = [d for place in draw_places(list(variant.rows.values()), Draw(min_gsds=2)) for d in place]
    shown = command.show_corpus([variant], drawn, corpus=fake_corpus, device="cpu")
    said = shown.said["ours"]
    assert shown.asked == len(said) == sum(len(d.rows) for d in drawn) and shown.differing == 0
    assert {key: one.text for key, one in said.items()} == {key: texts[key] for key in said}
    turned = {key: replace(row, correct=not row.correct) for key, row in variant.rows.items()}
    shown = command.show_corpus([replace(variant, rows=turned)], drawn, corpus=fake_corpus, device="cpu")
    assert shown.differing == shown.asked, "verdicts that do not come out as recorded are counted"
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        command.show_corpus([variant], drawn, corpus=fake_corpus, device="cpu")
