"""Questions are true, balanced, few in wording, and not given away by the GSD."""

import io
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scaleearth_pl.core.sample import Sample
from scaleearth_pl.prepare.world.balance import cell_limit, choose, even_out
from scaleearth_pl.prepare.world.build import asked_of, finish
from scaleearth_pl.prepare.world.config import WorldConfig, generator
from scaleearth_pl.prepare.world.draw import BOUNDARIES, Drawn, draw_place
from scaleearth_pl.prepare.world.floors import Asked, floors
from scaleearth_pl.prepare.world.nouns import CAR_M, NOUNS
from scaleearth_pl.prepare.world.plan import SPLITS, aim, make_place, visits
from scaleearth_pl.prepare.world.questions import Candidate, without_article
from scaleearth_pl.prepare.world.render import render
from scaleearth_pl.prepare.world.sight import look

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent / "world_golden.json"
FLOORS = Path(__file__).parent / "world_floors.json"
WORLD = WorldConfig(images={"train": 240, "test": 90})
_SIZE = re.compile(r"([\d.]+) (cm|km|m2|ha|km2|m)\b")
_UNIT = {"cm": 0.01, "m": 1.0, "km": 1000.0, "m2": 1.0, "ha": 1e4, "km2": 1e6}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Drawn]]:
    return {
        s: [d for i, v in enumerate(visits(n)) for d in draw_place((WORLD, s, i, v))] for s, n in WORLD.images.items()
    }


@pytest.fixture(scope="module")
def samples(drawn) -> dict[str, list[Sample]]:
    return {split: [sample for sample, _ in finish(WORLD, rows)] for split, rows in drawn.items()}


def metres(text: str) -> float:
    match = _SIZE.search(text)
    assert match is not None, text
    return float(match[1]) * _UNIT[match[2]]


def test_every_size_follows_from_the_one_measured_subject_of_its_noun(drawn):
    """Recomputes all scale-specific and discriminative answers of fifty images from the scenes."""
    checked: Counter[str] = Counter()
    for index, visit in list(enumerate(visits(240)))[:15]:
        place = make_place(7, "train", index, visit, range_m=(0.05, 60.0), cue_less_share=0.12, boundaries=BOUNDARIES)
        for number, image in enumerate(drawn["train"][visit[0] : sum(visit)]):
            view = aim(np.random.default_rng([7, SPLITS["train"], index, number]), place, number, 128)
            sight = look(place.scene, render(place.scene, view))
            subjects = {s.noun: s for s, _ in sight.measured}
            assert len(subjects) == len(sight.measured)
            for c in image.candidates:
                if c.family != "identification":
                    check(c, subjects[str(c.cell[1])])
                    checked[c.type] += 1
    assert set(checked) == {"width", "length", "area", "fit", "larger_than", "which_size", "which_thing"}
    assert min(checked.values()) >= 5


def check(c: Candidate, subject) -> None:
    noun = NOUNS[subject.noun]
    if c.type in ("width", "length"):
        assert (c.type == "width") == (noun.measure == "wide")
        assert 0.68 < subject.size_m / metres(c.answer) < 1.46
    elif c.type == "area":
        assert 0.6 < subject.area_m2 / metres(c.answer) < 1.7
    elif c.type == "fit":
        assert 0.68 < subject.size_m / CAR_M / int(c.answer) < 1.46
    elif c.type == "larger_than":
        assert c.answer == ("yes" if subject.size_m > metres(c.question.split("than")[-1].split("over")[-1]) else "no")
    else:
        ranges = {without_article(name): (low, high) for low, high, name in noun.names}
        named = [name for name in ranges if f"{name} or" in c.question or f"{name}?" in c.question]
        if c.type == "which_size":
            named = [f"{value} {unit}" for value, unit in _SIZE.findall(c.question)]
        assert len(named) == 2
        right, wrong = c.answer, named[named[0] == c.answer]
        assert {right, wrong} == set(named)
        if c.type == "which_size":
            assert abs(np.log(subject.size_m / metres(right))) < abs(np.log(subject.size_m / metres(wrong))) - 0.6
        else:
            assert ranges[right][0] <= subject.size_m <= ranges[right][1]
            assert not ranges[wrong][0] <= subject.size_m <= ranges[wrong][1]


def test_samples_are_complete_and_images_have_their_number_of_questions(samples):
    for sample in samples["train"] + samples["test"]:
        assert Sample.from_json(sample.to_json()) == sample
        assert 8 <= len(sample.qas) <= 24
        assert len({q.id for q in sample.qas}) == len(sample.qas)
        assert len({q.question for q in sample.qas}) == len(sample.qas)
        assert (sample.width, sample.height, sample.source, sample.licence) == (128, 128, "world", "CC0-1.0")
        assert set(sample.factors or {}) == {"texture", "geometry", "semantic"}
        assert sum((sample.factors or {})["semantic"].values()) == pytest.approx(1.0, abs=1e-3)
    assert len({s.image_id for rows in samples.values() for s in rows}) == 330


def test_answers_are_a_small_closed_set_and_extent_is_never_asked(samples):
    qas = [q for rows in samples.values() for s in rows for q in s.qas]
    assert len({q.answer for q in qas}) <= 90
    assert max(len(q.answer.split()) for q in qas) <= 2
    assert not any(re.search("extent|footprint|image (wide|long|cover)", q.question) for q in qas)
    families = Counter(q.family for q in qas)
    assert set(families) == {"identification", "scale_specific", "discriminative"}
    assert min(families.values()) > 0.15 * len(qas)


def test_places_of_answers_and_verdicts_are_balanced(samples):
    """Of two claims the right one stands first as often as last, and is the larger as often as the smaller."""
    by_type: dict[str, Counter[object]] = defaultdict(Counter)
    for sample in samples["train"]:
        for q in sample.qas:
            by_type[q.type][f"{q.answer} or " in q.question if q.family == "discriminative" else q.answer] += 1
            if q.type == "which_size":
                sizes = [metres(f"{value} {unit}") for value, unit in _SIZE.findall(q.question)]
                by_type["larger of two"][metres(q.answer) == max(sizes)] += 1
    for kind in ("which_size", "which_thing", "larger_than", "orientation", "larger of two"):
        first, second = by_type[kind].values()
        assert 0.4 < first / (first + second) < 0.6, kind


def test_questions_read_as_english(samples):
    """No article before a plural, no verb that does not agree, no letter that stands for an answer."""
    for q in (q for rows in samples.values() for s in rows for q in s.qas):
        assert re.fullmatch(r"[A-Z][\w ,.:-]+\?", q.question), q.question
        assert not re.search(r"Is (there|this) (an? )?(trees|garden beds|small plots|large fields)", q.question)
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|\(A\)|the trees", q.question), q.question
        assert not (q.question.startswith("Are") and not q.answer.endswith(("beds", "plots", "fields")))


def test_what_cannot_be_seen_or_sworn_to_is_not_asked(drawn):
    """Towns are asked about where a block fits in view; absence only of what has no double."""
    for d in (d for rows in drawn.values() for d in rows):
        cover = (d.sample.factors or {})["semantic"]
        for c in d.candidates:
            if c.type == "setting" or c.cell[1] == "a town":
                assert d.sample.gsd_m_native >= 0.7
            assert c.cell[1] not in ("a tree", "woodland") or (d.sample.gsd_m_native > 3) == (c.cell[1] == "woodland")
            if c.type == "setting":
                assert cover["water"] < 0.801
            if c.cell[:2] == ("presence", "bare soil") and c.answer == "no":
                assert cover["field"] == 0


def test_gsd_without_image_does_not_answer_scale_specific_questions(samples):
    """Fairness: at most 10 % decided by question and GSD; the look-up gains at most 15 points over the text alone.

    Of 260 questions a gain is known to three points, and the best of five look-ups is taken: on the default corpus,
    where it is eight points, the bound is ten (`test_floors_of_the_frozen_corpus`).
    """
    train, test = ([a for s in samples[split] for a in asked_of(s)] for split in ("train", "test"))
    found = floors(train, test)
    assert found["scale_specific"]["answerable"] < 0.1
    assert found["scale_specific"]["question_gsd"] - found["scale_specific"]["question"] < 0.15
    assert found["scale_specific"]["question_gsd"] < 0.4
    assert found["discriminative"]["question_gsd"] < 0.62


def test_floors_of_the_frozen_corpus():
    """The default corpus takes minutes to build, so its floors are kept, with the generator and settings they are of."""
    record, folder = json.loads(FLOORS.read_text()), Path(__file__).parents[2] / "data_shards" / "world"
    assert record["generator"] == generator(), f"another world: `make shards`, then keep its floors in {FLOORS.name}"
    if (folder / "corpus.json").is_file():
        built = json.loads((folder / "corpus.json").read_text())
        same = all(built.get(key) == record[key] for key in ("generator", "config_hash"))
        assert not same or json.loads((folder / "floors.json").read_text())["test"] == record["test"]
    found = record["test"]
    sizes = found["scale_specific"]
    assert sizes["question_gsd"] - sizes["question"] < 0.1
    assert sizes["question_gsd"] < 0.4
    assert found["discriminative"]["question_gsd"] < 0.56


def test_floors_find_what_the_gsd_gives_away():
    def asked(extent: bool, n: int, seed: int) -> list[Asked]:
        scales = np.random.default_rng(seed).uniform(-1, 1, n)
        answers = (
            ["near" if s < 0 else "far" for s in scales]
            if extent
            else np.random.default_rng(seed + 9).choice(["near", "far"], n)
        )
        return [
            Asked(type="extent", family="scale_specific", question="How far?", answer=str(a), log10_gsd=float(s))
            for a, s in zip(answers, scales, strict=True)
        ]

    leak = floors(asked(True, 400, 1), asked(True, 200, 2))["scale_specific"]
    fair = floors(asked(False, 400, 1), asked(False, 200, 2))["scale_specific"]
    assert leak["question_gsd"] > 0.95
    assert leak["answerable"] > 0.9
    assert leak["majority"] < 0.6
    assert fair["question_gsd"] < 0.62
    assert fair["answerable"] < 0.05


def candidate(kind: str, value: str, bin_: int = 0, text: str = "?") -> Candidate:
    return Candidate(type=kind, family="f", question=text, answer=value, cell=(kind, "x", bin_), value=value)


def test_cells_are_evened_out():
    assert cell_limit("larger_than", [9, 3]) == 3
    assert cell_limit("larger_than", [9]) == 0
    assert cell_limit("width", [9, 4, 3]) == 4
    assert cell_limit("width", [9]) == 0
    rows = [[candidate("larger_than", "yes")] for _ in range(9)] + [[candidate("larger_than", "no")] for _ in range(3)]
    kept = Counter(rows[i][k].value for i, k in even_out(rows))
    assert kept == {"yes": 3, "no": 3}


def test_images_get_at_least_and_at_most():
    rows = [[candidate("width", f"{n}", n, f"{n}?") for n in range(40)] for _ in range(2)]
    assert [len(row) for row in choose(rows, least=5, most=12)] == [12, 12]
    lonely = [[candidate("setting", "rural", n, f"{n}?") for n in range(9)]]
    assert [len(row) for row in choose(lonely, least=5, most=12)] == [5]


def test_world_is_frozen(samples, drawn):
    """Golden: questions, answers, scales, shares and colours of the first test images do not change.

    Texture factors follow the last bit of sine and JPEG, so they are left out, and the mean colour of quarters may
    differ by a level. To change the world on purpose: raise WORLD_VERSION, delete the file, run this test once (it
    fails and writes it), and read the difference.
    """
    found = [golden_of(sample, d.image) for sample, d in zip(samples["test"][:6], drawn["test"][:6], strict=True)]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written; read it, commit it")
    for now, then in zip(found, json.loads(GOLDEN.read_text()), strict=True):
        np.testing.assert_allclose(now.pop("quarters"), then.pop("quarters"), atol=1.0)
        assert now == then


def golden_of(sample: Sample, image: bytes) -> dict[str, Any]:
    levels = np.array(Image.open(io.BytesIO(image)))
    return {
        "image_id": sample.image_id,
        "gsd_m": sample.gsd_m_native,
        "class": sample.class_label,
        "qas": [f"{q.question} {q.answer}" for q in sample.qas],
        "semantic": {k: round(v, 2) for k, v in (sample.factors or {})["semantic"].items()},
        "quarters": levels.reshape(2, 64, 2, 64, 3).mean(axis=(1, 3)).round(1).tolist(),
    }
