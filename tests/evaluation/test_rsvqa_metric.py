"""The official RSVQA metric."""

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.metric import SOURCES, official_class, score_rsvqa, score_source
from scaleearth_pl.prepare.rsvqa_files import PARTS


@pytest.mark.parametrize(
    ("text", "kind", "source", "expected"),
    [
        ("0", "count", "rsvqa_lr", "0"),
        ("1", "count", "rsvqa_lr", "(0,10]"),
        ("10", "count", "rsvqa_lr", "(0,10]"),
        ("11", "count", "rsvqa_lr", "(10,100]"),
        ("100.", "count", "rsvqa_lr", "(10,100]"),
        ("1000", "count", "rsvqa_lr", "(100,1000]"),
        ("1001", "count", "rsvqa_lr", ">1000"),
        ("007", "count", "rsvqa_hr", "7"),
        ("12", "count", "rsvqa_hr", "12"),
        ("0m2", "area", "rsvqa_hr", "0m2"),
        ("10632m2", "area", "rsvqa_hr", ">1000m2"),
        ("100 m²", "area", "rsvqa_hr_phili", "(10,100]m2"),
        ("2 square meters", "area", "rsvqa_hr", "(0,10]m2"),
        ("Yes.", "presence", "rsvqa_lr", "yes"),
        ("10", "presence", "rsvqa_lr", "10"),
        ("about 12 roads", "count", "rsvqa_lr", "about 12 roads"),
        ("-3", "count", "rsvqa_lr", "-3"),
        ("", "area", "rsvqa_hr", ""),
    ],
)
def test_binning(text, kind, source, expected):
    assert official_class(text, type=kind, source=source) == expected


def rows_of(prediction, source, table):
    return [
        prediction(source=source, qa_id=f"q{i}", type=kind, answer=answer, prediction=said, correct=said == answer)
        for i, (kind, answer, said) in enumerate(table)
    ]


def test_counts_share_a_bin_on_lr_and_must_be_exact_on_hr(prediction):
    table = [("count", "3", "7"), ("count", "3", "3"), ("count", "0", "1")]
    lr = score_source(rows_of(prediction, "rsvqa_lr", table), "rsvqa_lr").types["count"]
    hr = score_source(rows_of(prediction, "rsvqa_hr", table), "rsvqa_hr").types["count"]
    assert (lr.official, lr.exact) == pytest.approx((2 / 3, 1 / 3))
    assert (hr.official, hr.exact) == pytest.approx((1 / 3, 1 / 3))


def test_aa_is_the_mean_of_types_and_oa_of_questions(prediction):
    table = [("presence", "yes", "yes")] * 9 + [("area", "5m2", "500m2")]
    score = score_source(rows_of(prediction, "rsvqa_hr", table), "rsvqa_hr")
    assert (score.aa, score.oa) == pytest.approx((0.5, 0.9))
    assert (score.majority_aa, score.majority_oa) == (1.0, 1.0)


def test_majority_floor_is_what_the_best_constant_gets(prediction):
    answers = ["0", "0", "4", "9", "20", "3"]
    rows = rows_of(prediction, "rsvqa_lr", [("count", a, "0") for a in answers])
    floor = score_source(rows, "rsvqa_lr").types["count"]
    best = max(
        score_source(rows_of(prediction, "rsvqa_lr", [("count", a, c) for a in answers]), "rsvqa_lr").oa
        for c in ("0", "5", "50", "500", "5000")
    )
    assert (floor.majority, floor.majority_class) == (best, "(0,10]")


def test_without_text_only_exact_is_claimed(prediction):
    rows = rows_of(prediction, "rsvqa_lr", [("count", "3", "3"), ("presence", "yes", "no")])
    rows[0] = prediction(source="rsvqa_lr", qa_id="q0", type="count", answer="3", prediction=None, correct=True)
    score = score_source(rows, "rsvqa_lr")
    assert score.types["count"].official is None
    assert (score.types["presence"].official, score.aa, score.oa) == (0.0, None, None)
    assert score.exact_oa == 0.5


def test_sources_are_never_pooled_and_agree_with_the_importer(prediction):
    written = {part.source_of(split) for part in PARTS.values() for split in part.splits}
    assert written == set(SOURCES)
    rows = [prediction(source=s, image_id=s) for s in (*SOURCES, "world")]
    assert [score.source for score in score_rsvqa(rows)] == list(SOURCES)
    with pytest.raises(ConfigError):
        score_source([prediction()], "rsvqa_lr")


def test_generated_questions_about_rsvqa_tiles_do_not_enter_the_official_number(prediction):
    table = [("presence", "yes", "yes"), ("arrangement", "in rows", "scattered")]
    rows = rows_of(prediction, "rsvqa_lr", table)
    (score,) = score_rsvqa(rows)
    assert (score.n, score.oa, list(score.types)) == (1, 1.0, ["presence"])
    assert score_rsvqa(rows[1:]) == []
