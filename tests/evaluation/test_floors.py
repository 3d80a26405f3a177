"""Floors: blind answerers reach exactly what the question, or question and GSD, give away."""

import math
from dataclasses import replace

import numpy as np
import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.sample import TRAINED_SPLITS, Question
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.evaluation.blind import LookUp, PowerLaw
from scaleearth_pl.evaluation.floors import compute_floors, majority_verdicts
from scaleearth_pl.evaluation.groups import correctness, group_masks, group_means, nested
from scaleearth_pl.evaluation.question_tables import QuestionRow, read_tables


def coin(split, i, what):
    return np.random.default_rng([len(split), i, what]).integers(0, 2)


def mixed(split, i, gsd_m):
    """One question that text answers, one that text and GSD answer, one that needs the image, one with options."""
    number = i % 7
    pick = ("yes", "no")[coin(split, i, 3)]
    return [
        Question(id="text", type="text", family="identification", question=f"Is {number} odd?", answer=str(number % 2)),
        Question(
            id="extent", type="extent", family="scale_specific", question="How wide is the image?",
            answer="wide" if gsd_m > 2 else "small",
        ),
        Question(
            id="width", type="width", family="scale_specific", question="How wide is the road?",
            answer=("4 m", "9 m")[coin(split, i, 1)],
        ),
        Question(
            id="claim", type="claim", family="discriminative", question="Which claim fits?", answer=pick,
            options=("yes", "no"),
        ),
    ]  # fmt: skip


def evaluated(root, prediction, split="test"):
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    samples = [reader.read_sample(int(row)) for row in index.rows((split,))]
    return [
        prediction(
            image_id=s.image_id, place_id=s.place_id, qa_id=q.id, type=q.type, family=q.family, question=q.question,
            answer=q.answer, gsd_m=s.gsd_m_native, tier=str(s.tier), correct=q.type == "width",
        )
        for s in samples
        for q in s.qas
    ]  # fmt: skip


def test_each_floor_finds_what_leaks_and_no_more(corpus, prediction):
    root = corpus(mixed)
    rows = evaluated(root, prediction)
    floors = compute_floors(rows, corpus_root=root, image_only=rows)
    blind, with_gsd = floors.question_only, floors.question_gsd
    assert blind["by_type/text"] == with_gsd["by_type/text"] == 1.0
    assert with_gsd["by_type/extent"] > blind["by_type/extent"] + 0.1
    for floor in (blind, with_gsd):
        assert 0.25 < floor["by_type/width"] < 0.75
        assert 0.25 < floor["by_type/claim"] < 0.75
    gain = floors.scale_specific_from_gsd
    assert gain == with_gsd["by_family/scale_specific"] - blind["by_family/scale_specific"] > 0.05
    assert floors.image_only["by_type/width"] == 1.0
    assert floors.image_only["overall"] == 0.25
    assert "bins" in floors.chosen["extent"].answerer


def test_what_is_not_measured_is_null(predictions):
    floors = compute_floors(predictions())
    assert (floors.question_only, floors.question_gsd, floors.image_only) == (None, None, None)
    assert floors.scale_specific_from_gsd is None


def test_part_of_a_split_has_floors_of_that_part(corpus, prediction):
    root = corpus(mixed)
    rows = [r for r in evaluated(root, prediction) if r.type == "text"]
    floors = compute_floors(rows, corpus_root=root)
    assert floors.question_only == {"overall": 1.0, **dict.fromkeys(floors.question_only, 1.0)}
    assert floors.scale_specific_from_gsd is None


def test_leaks_strangers_and_other_questions_are_refused(corpus, prediction):
    root = corpus(mixed)
    rows = evaluated(root, prediction)
    with pytest.raises(ConfigError, match="trained on"):
        compute_floors(evaluated(root, prediction, "train"), corpus_root=root)
    with pytest.raises(ConfigError, match="not in the corpus"):
        compute_floors([prediction(image_id="stranger")], corpus_root=root)
    with pytest.raises(ConfigError, match="same questions"):
        compute_floors(rows, corpus_root=root, image_only=rows[1:])
    with pytest.raises(ConfigError, match="same questions"):
        compute_floors([prediction(image_id="test-0", qa_id="new")], corpus_root=root)
    for change in ({"answer": "another"}, {"question": "How wide is the river?"}):
        anew = [replace(rows[0], **change), *rows[1:]]
        with pytest.raises(ConfigError, match="built anew"):
            compute_floors(anew, corpus_root=root)
        with pytest.raises(ConfigError, match="same questions"):
            compute_floors(rows, corpus_root=root, image_only=anew)


def test_a_blind_answerer_has_read_what_the_models_were_trained_on(corpus, prediction):
    """What stage 1 was asked counts, too; val does not."""
    root = corpus(mixed, sizes={"train": 6, "stage1": 6, "val": 4, "test": 4})
    index = ShardIndex.load(root)
    train, val, asked = read_tables(root, evaluated(root, prediction))
    splits = {index.text["image_id"][row]: split for split in index.splits for row in index.rows((split,)).tolist()}
    assert {splits[q.image_id] for q in train} == set(TRAINED_SPLITS)
    assert {splits[q.image_id] for q in val} == {"val"}
    assert {splits[q.image_id] for q in asked} == {"test"}


def row(**changes):
    base = {
        "image_id": "i", "qa_id": "q", "type": "t", "family": "f", "question": "How many?", "answer": "1",
        "options": None, "log10_gsd": 0.0,
    }  # fmt: skip
    return QuestionRow(**{**base, **changes})


def test_look_up_backs_off_and_keeps_to_the_options():
    train = [row(answer="2")] * 3 + [row(question="More than 3 roads?", answer="9")] * 4
    table = LookUp(train, None)
    assert table.answer(row(), support=1) == "2"
    assert table.answer(row(question="More than 8 roads?"), support=1) == "9"  # same text but for its number
    assert table.answer(row(question="Why?"), support=1) == "9"  # the type's commonest
    assert table.answer(row(), support=4) == "9"  # too few of this text
    assert table.answer(row(options=("7", "2")), support=1) == "2"
    assert table.answer(row(type="new"), support=1) is None
    assert table.answer(row(type="new", options=("7", "2")), support=1) == "7"


def test_gsd_bins_part_the_same_question_and_null_is_blind():
    train = [row(answer="near", log10_gsd=-0.5)] * 2 + [row(answer="far", log10_gsd=1.2)] * 3
    table = LookUp(train, 0.5)
    assert table.answer(row(log10_gsd=-0.4), support=1) == "near"
    assert table.answer(row(log10_gsd=math.log10(20.0)), support=1) == "far"
    assert table.answer(row(log10_gsd=None), support=1) == "far"


@pytest.mark.parametrize("power", [1, 2, -1])
def test_a_quantity_that_follows_from_the_gsd_is_guessed(power):
    rng = np.random.default_rng(0)
    scales = rng.uniform(-1, 1.5, 1100)
    rows = [row(answer=f"{float(f'{12 * 10 ** (power * s):.2g}'):g} m", log10_gsd=float(s)) for s in scales]
    guess, blind = PowerLaw(rows[:1000], use_gsd=True), PowerLaw(rows[:1000], use_gsd=False)
    hits = sum(guess.answer(r, support=5) == r.answer for r in rows[1000:])
    assert hits > 60 > 10 > sum(blind.answer(r, support=5) == r.answer for r in rows[1000:])
    options = row(options=("0.0001 m", "1000000 m", rows[1050].answer), log10_gsd=rows[1050].log10_gsd)
    assert guess.answer(options, support=5) == rows[1050].answer
    assert guess.answer(row(log10_gsd=None), support=1) is None
    assert guess.answer(row(type="new"), support=1) is None


def test_extent_questions_are_caught_as_a_leak(corpus, prediction):
    def extent(split, i, gsd_m):
        return [
            Question(
                id="e",
                type="extent",
                family="scale_specific",
                question="How wide?",
                answer=f"{float(f'{16 * gsd_m:.1g}'):g} m",
            )
        ]

    root = corpus(extent)
    floors = compute_floors(evaluated(root, prediction), corpus_root=root)
    assert floors.scale_specific_from_gsd > 0.5


def test_majority_is_the_best_constant_per_source_and_type(prediction):
    answers = ["yes", "yes", "no", "2", "3", "3", "3"]
    kinds = ["presence"] * 3 + ["count"] * 4
    rows = [prediction(qa_id=str(i), answer=a, type=k) for i, (a, k) in enumerate(zip(answers, kinds, strict=True))]
    assert majority_verdicts(rows).tolist() == [1, 1, 0, 0, 1, 1, 1]
    other = [prediction(qa_id="x", answer="no", source="elsewhere")]
    assert majority_verdicts([*rows, *other]).tolist() == [1, 1, 0, 0, 1, 1, 1, 1]


def test_groups_partition_the_questions(predictions):
    rows = predictions(lambda i, q: i % 2 == 0)
    masks = group_masks(rows)
    for kind in ("by_tier", "by_family", "by_type"):
        assert sum(mask.astype(int) for name, mask in masks.items() if name.startswith(kind)).tolist() == [1] * len(
            rows
        )
    tree = nested(group_means(correctness(rows), masks))
    assert list(tree) == ["overall", "by_tier", "by_family", "by_type"]
    assert list(tree["by_tier"]) == ["high", "mid", "low"]
    assert tree["overall"] == 0.5


def test_a_law_runs_through_units():
    """A hundred pixels wide at every GSD, said in cm, m or km: one power law, of exponent one."""
    said = {0.005: "50 cm", 0.05: "5 m", 0.5: "50 m", 5.0: "500 m", 50.0: "5 km"}
    rows = [row(answer=answer, log10_gsd=math.log10(gsd_m)) for gsd_m, answer in said.items()]
    law = PowerLaw(rows, use_gsd=True)
    assert [law.answer(one, 2) for one in rows] == list(said.values())
    (found,) = law.laws.values()
    assert found == pytest.approx((2.0, 1.0))
