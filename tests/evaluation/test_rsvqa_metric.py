"""The official RSVQA classes, and our own answers scored by them."""

from dataclasses import replace

import pytest

from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.evaluation.rsvqa.metric import DATASETS, SOURCES, is_official, official_class
from scaleearth_pl.evaluation.rsvqa.ours import rsvqa_scores, score_rsvqa
from scaleearth_pl.prepare.rsvqa_files import PARTS, RawImage, RawQuestion
from scaleearth_pl.prepare.rsvqa_samples import FAMILY_OF_TYPE, to_sample


@pytest.mark.parametrize(
    ("text", "kind", "dataset", "expected"),
    [
        ("0", "count", "lr", "0"),
        ("1", "count", "lr", "(0,10]"),
        ("10", "count", "lr", "(0,10]"),
        ("11", "count", "lr", "(10,100]"),
        ("100.", "count", "lr", "(10,100]"),
        ("1000", "count", "lr", "(100,1000]"),
        ("1001", "count", "lr", ">1000"),
        ("007", "count", "hr", "7"),
        ("12", "count", "hr", "12"),
        ("0m2", "area", "hr", "0m2"),
        ("10632m2", "area", "hr", ">1000m2"),
        ("100 m²", "area", "hr", "(10,100]m2"),
        ("2 square meters", "area", "hr", "(0,10]m2"),
        ("Yes.", "presence", "lr", "yes"),
        ("10", "presence", "lr", "10"),
        ("about 12 roads", "count", "lr", "about 12 roads"),
        ("\uff11\uff12", "count", "hr", "\uff11\uff12"),
        ("\u0663", "count", "lr", "\u0663"),
        ("\uff15m2", "area", "hr", "\uff15m2"),
        ("more than \uff11\uff10\uff10\uff10", "count", "lr", "more than \uff11\uff10\uff10\uff10"),
        ("-3", "count", "lr", "-3"),
        ("", "area", "hr", ""),
    ],
)
def test_binning(text, kind, dataset, expected):
    assert official_class(text, kind=kind, dataset=dataset) == expected


def rows_of(prediction, source, table):
    return [
        prediction(
            source=source, qa_id=f"{source}-q{i}", type=kind, answer=answer, prediction=said, correct=said == answer
        )
        for i, (kind, answer, said) in enumerate(table)
    ]


def score(prediction, source, table):
    (found,) = score_rsvqa(rows_of(prediction, source, table))
    return found


def test_counts_share_a_bin_on_lr_and_must_be_exact_on_hr(prediction):
    table = [("count", "3", "7"), ("count", "3", "3"), ("count", "0", "1")]
    lr = score(prediction, "rsvqa_lr", table)["types"]["count"]
    hr = score(prediction, "rsvqa_hr", table)["types"]["count"]
    assert (lr["official"], lr["exact"]) == pytest.approx((2 / 3, 1 / 3))
    assert (hr["official"], hr["exact"]) == pytest.approx((1 / 3, 1 / 3))


def test_aa_is_the_mean_of_types_and_oa_of_questions(prediction):
    table = [("presence", "yes", "yes")] * 9 + [("area", "5m2", "500m2")]
    found = score(prediction, "rsvqa_hr", table)
    assert (found["aa"], found["oa"]) == pytest.approx((0.5, 0.9))
    assert (found["majority_aa"], found["majority_oa"]) == (1.0, 1.0)


def test_majority_floor_is_what_the_best_constant_gets(prediction):
    answers = ["0", "0", "4", "9", "20", "3"]
    constant = {
        c: score(prediction, "rsvqa_lr", [("count", a, c) for a in answers]) for c in ("0", "5", "50", "500", "5000")
    }
    floor = constant["0"]["types"]["count"]
    best = max(found["oa"] for found in constant.values())
    assert (floor["majority"], floor["majority_class"]) == (best, "(0,10]")


def test_without_text_only_exact_is_claimed(prediction):
    rows = rows_of(prediction, "rsvqa_lr", [("count", "3", "3"), ("presence", "yes", "no")])
    rows[0] = replace(rows[0], prediction=None)
    (found,) = score_rsvqa(rows)
    assert found["types"]["count"]["official"] is None
    assert (found["types"]["presence"]["official"], found["aa"], found["oa"]) == (0.0, None, None)
    assert found["exact_oa"] == 0.5


def test_sources_are_never_pooled_and_agree_with_the_importer(prediction):
    written = {part.source_of(split) for part in PARTS.values() for split in part.splits}
    assert written == set(SOURCES) == set(DATASETS)
    rows = [prediction(source=s, image_id=s, qa_id=f"{s}-q0") for s in (*SOURCES, "world")]
    assert [found["source"] for found in score_rsvqa(rows)] == list(SOURCES)


def test_generated_questions_about_rsvqa_tiles_do_not_enter_the_official_number(prediction):
    table = [("presence", "yes", "yes"), ("arrangement", "in rows", "scattered")]
    rows = rows_of(prediction, "rsvqa_lr", table)
    (found,) = score_rsvqa(rows)
    assert (found["n"], found["oa"], list(found["types"])) == (1, 1.0, ["presence"])
    assert score_rsvqa(rows[1:]) == []


def test_a_generated_question_of_an_official_type_enters_neither_score(prediction):
    """`prepare.generate` asks of presence and counts, too, and `prepare.merge` keeps the tile's source."""
    own = prediction(source="rsvqa_lr", qa_id="rsvqa_lr-q7", type="presence", answer="yes", prediction="yes")
    strangers = [
        replace(own, qa_id="5f2a91c077e4b3d0-1", prediction="no"),
        replace(own, qa_id="5f2a91c077e4b3d0-2", type="count", answer="3", prediction="no"),
        replace(own, qa_id="rsvqa_lr-q8", type="area", answer="0m2", prediction="no"),
        replace(own, qa_id="rsvqa_lr-q9-1", prediction="no"),
        replace(own, qa_id="rsvqa_hr-q9", prediction="no"),
    ]
    (found,) = score_rsvqa([own, *strangers])
    assert (found["n"], found["oa"], list(found["types"])) == (1, 1.0, ["presence"])
    scores = rsvqa_scores([own, *strangers])["rsvqa_lr"]
    assert {(score["n"], score["oa"]) for score in scores.values()} == {(1, 1.0)}
    assert score_rsvqa(strangers) == [] and rsvqa_scores(strangers) == {}


def test_every_question_of_the_importer_is_official(tmp_path):
    image = RawImage(id=3, path=tmp_path / "3.tif", gsd_m_native=10.0, sensor=None, corner_m=None)
    only_of = {"rural_urban": "lr", "area": "hr"}
    for name, split in [("lr", "train"), ("lr", "test"), ("hr", "val"), ("hr", "test"), ("hr", "test_phili")]:
        types = [kind for kind in FAMILY_OF_TYPE if only_of.get(kind, name) == name]
        raw = [RawQuestion(id=i * 1000, type=kind, question="?", answer="-") for i, kind in enumerate(types)]
        sample = to_sample(PARTS[name], split, image, raw, (32, 32), TierBoundaries())
        assert len(types) == 4
        assert all(is_official(source=sample.source, kind=q.type, qa_id=q.id) for q in sample.qas)
