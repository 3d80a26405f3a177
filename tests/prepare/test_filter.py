"""Each rule on pairs that it must drop and on their nearest good neighbours; the file tool on a ledger."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes.labelled import write_jsonl

from scaleearth_pl.core.errors import QuarantineLimitError
from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.prepare import filter as module
from scaleearth_pl.prepare.filter import FilterReport, filter_file, filter_records, reasons, rejected_path
from scaleearth_pl.prepare.filter_rules import RULES, PairInView, areas_m2, lengths_m
from scaleearth_pl.prepare.ledger import LedgerError, read_records
from scaleearth_pl.prepare.prompts.compose import View


def candidate(
    question: str = "What surrounds the open ground?",
    answer: str = "bare soil",
    *,
    gsd_m: float | None = 0.3,
    provenance: Provenance = Provenance.EXACT,
    label: str | None = "parking_lot",
    options: tuple[str, ...] = (),
    family: str = "identification",
    kind: str = "arrangement",
    sigma: float | None = 0.01,
) -> PairInView:
    provenance = Provenance.UNKNOWN if gsd_m is None else provenance
    tier = TierBoundaries().tier_of(gsd_m)
    view = View(gsd_m=gsd_m, provenance=provenance, tier=tier, width=256, height=256, class_label=label)
    return PairInView(
        question=question,
        answer=answer,
        options=options,
        type=kind,
        family=family,
        view=view,
        gsd_sigma_log10=sigma,
    )


def test_a_good_pair_breaks_no_rule() -> None:
    assert reasons(candidate()) == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"question": "Describe the image."},
        {"question": "What is here? And what is there?"},
        {"question": "what surrounds the open ground?"},
        {"question": "What **surrounds** the open ground?"},
        {"question": "What does the image label say?"},
        {"answer": ""},
        {"answer": "What do you think?"},
        {"answer": "It cannot be determined"},
        {"answer": "As an AI I see soil"},
        {"kind": "Not a name"},
        {"family": "discriminative"},
        {"options": ("soil", "grass")},
        {"options": ("bare soil",)},
        {"options": ("bare soil", "Bare Soil")},
        {"options": ("bare soil", "")},
    ],
)
def test_format(bad: dict[str, Any]) -> None:
    assert "format" in reasons(candidate(**bad))


def test_format_accepts_options_that_hold_the_answer() -> None:
    good = candidate(options=("grass", "bare soil", "water"), family="discriminative")
    assert reasons(good) == {}


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ({"question": "Why so?"}, {"question": "Why is so?"}),
        ({"question": "Is " + "a " * 40 + "b?"}, {"question": "Is " + "a " * 38 + "b?"}),
        ({"answer": "soil " * 13}, {"answer": " ".join(["soil"] * 12)}),
        ({"answer": "s" * 200}, {"answer": "s" * 90}),
    ],
)
def test_length(bad: dict[str, Any], good: dict[str, Any]) -> None:
    assert "length" in reasons(candidate(**bad))
    assert "length" not in reasons(candidate(**good))


@pytest.mark.parametrize(
    ("label", "question", "leaks"),
    [
        ("parking_lot", "How many entrances does the parking lot have?", True),
        ("parking_lot", "How many entrances do the Parking Lots have?", True),
        ("parking_lot", "How many entrances does the parkinglot have?", True),
        ("parking_lot", "How many parking spaces are marked?", False),
        ("beach", "Which side of the beach is wet?", True),
        ("beach", "Which side of the beaches is wet?", True),
        ("beach", "Which side of the sand is wet?", False),
        ("river", "Does the driveway bend?", False),
        ("transformer_station", "What stands in the transformer-station?", True),
        ("railway", "Do the railways cross?", True),
        ("ferry", "Are there ferries here?", True),
        (None, "What lies beside the beach?", False),
    ],
)
def test_leaked_label(label: str | None, question: str, leaks: bool) -> None:
    assert ("leaked_label" in reasons(candidate(question, label=label))) == leaks


def test_the_label_may_be_answer_or_option() -> None:
    choice = candidate("Which scene is shown?", "beach", label="beach", options=("beach", "desert"))
    assert reasons(choice) == {}


@pytest.mark.parametrize(
    "question",
    [
        "What is the GSD of this image?",
        "Given 0.3 m per pixel, how wide is the road?",
        "At 10 m resolution, what is shown?",
        "What is the area of the image?",
        "How large is this scene?",
        "How much ground does the image cover?",
        "What is the spatial resolution here?",
    ],
)
def test_leaked_gsd(question: str) -> None:
    assert "leaked_gsd" in reasons(candidate(question))


@pytest.mark.parametrize(
    "question",
    ["How wide is the road in metres?", "Can single roofs be told apart at this resolution?", "What area is the pool?"],
)
def test_questions_that_need_pixels_and_scale_are_no_leak(question: str) -> None:
    assert "leaked_gsd" not in reasons(candidate(question))


@pytest.mark.parametrize(
    ("question", "answer", "gsd_m", "impossible"),
    [
        ("How many cars stand in the open?", "3", 10.0, True),
        ("How many cars stand in the open?", "3", 0.3, False),
        ("How many vehicles are there?", "none", 10.0, True),
        ("How many cars are visible?", "none", 10.0, True),
        ("What stands on the tarmac?", "two people", 0.6, True),
        ("What stands on the tarmac?", "two airplanes", 0.6, False),
        ("Can single cars be told apart here?", "no", 10.0, False),
        ("Can single cars be told apart here?", "yes", 10.0, True),
        ("Is there a car park in the north?", "yes", 5.0, False),
        ("Is there a car in the north?", "yes", 5.0, True),
        ("Which land cover fills the north?", "woodland", 20.0, False),
        ("How many swimming pools are there?", "2", 5.0, True),
    ],
)
def test_objects_below_the_gsd(question: str, answer: str, gsd_m: float, impossible: bool) -> None:
    found = reasons(candidate(question, answer, gsd_m=gsd_m, label=None))
    assert ("gsd_impossible" in found) == impossible, found


@pytest.mark.parametrize(
    ("answer", "impossible"),
    [
        ("12 m", False),
        ("2 m", True),
        ("0 m", False),
        ("9,000 m", True),
        ("3 km", False),
        ("50 m2", True),
        ("200 m2", False),
        ("40 hectares", False),
        ("900 hectares", True),
    ],
)
def test_lengths_finer_than_a_pixel_or_wider_than_the_frame(answer: str, impossible: bool) -> None:
    found = reasons(candidate("How large is the green area?", answer, gsd_m=10.0, label=None))
    assert ("gsd_impossible" in found) == impossible, found


def test_metres_need_a_known_scale() -> None:
    question = "How wide is the green area?"
    assert "gsd_impossible" in reasons(candidate(question, "12 m", gsd_m=None))
    assert "gsd_impossible" in reasons(candidate(question, "12 m", provenance=Provenance.IMPRECISE, sigma=0.5))
    assert "gsd_impossible" in reasons(candidate("Is it wider than 12 m?", "yes", gsd_m=None))
    assert reasons(candidate(question, "very wide", gsd_m=None)) == {}


def test_doubt_about_the_scale_is_no_proof_against_an_object() -> None:
    pair = {"question": "How many cars are there?", "answer": "3", "label": None, "gsd_m": 2.0}
    assert "gsd_impossible" in reasons(candidate(**pair))
    assert reasons(candidate(**pair, provenance=Provenance.IMPRECISE, sigma=0.5)) == {}


def test_units() -> None:
    assert lengths_m("1,200 m by 3.5 metres, 2 km, 30 cm, 10 feet") == pytest.approx([1200, 3.5, 2000, 0.3, 3.048])
    assert lengths_m("40 m2, 3 men, 7 m², 5 mobile homes") == []
    assert areas_m2("40 m2, 2 ha, 7 m², 1 km2, 9 square metres") == pytest.approx([40, 2e4, 7, 1e6, 9])


def test_rules_are_pure_and_total() -> None:
    rng = random.Random(0)
    alphabet = "aA?.,0 9m²\n*é漢\u202e"
    for _ in range(300):
        texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(2)]
        c = candidate(*texts, gsd_m=rng.choice([None, 0.3, 30.0]), label=rng.choice([None, "a_b", "***"]))
        assert reasons(c) == reasons(c)


def record(number: int, *questions: str, image: str = "i", factor: int = 1, family: str = "identification") -> Any:
    qas = [
        {"id": f"{number}-{k}", "question": q, "answer": "soil", "options": None, "type": "scene"}
        for k, q in enumerate(questions)
    ]
    view = {"gsd_m": 0.3, "gsd_provenance": "exact", "gsd_sigma_log10": 0.01, "tier": "high", "class": "beach"}
    head = {"id": f"r{number}", "image_id": image, "factor": factor, "family": family, "width": 64, "height": 64}
    return {**head, **view, "qas": qas}


GOOD, BAD = "What surrounds the open ground?", "Which side of the beach is wet?"


def test_duplicates_are_counted_within_a_view_only() -> None:
    report = FilterReport()
    rows = [record(1, GOOD, "What  surrounds the open GROUND ?"), record(2, GOOD), record(3, GOOD, factor=2)]
    rows.append(record(4, GOOD, image="j"))
    kept = list(filter_records(rows, report))
    assert [r["id"] for r in kept] == ["r1", "r3", "r4"]
    assert (report.seen, report.kept, report.broken["duplicate"]) == (5, 3, 2)


def test_a_question_of_an_older_gsd_takes_none_from_those_asked_since() -> None:
    report = FilterReport()
    rows = [record(1, GOOD) | {"gsd_m": 0.5}, record(2, GOOD), record(3, GOOD)]
    assert [r["id"] for r in filter_records(rows, report)] == ["r1", "r2"]
    assert report.broken == {"duplicate": 1}


def test_every_rule_is_counted_and_the_first_is_the_reason() -> None:
    report, rejected = FilterReport(), list[dict[str, Any]]()
    rows = [record(1, "How wide is the beach at 0.3 m per pixel"), record(2), record(3, GOOD)]
    assert [r["id"] for r in filter_records(rows, report, rejected.append)] == ["r3"]
    assert report.broken == {"format": 1, "leaked_label": 1, "leaked_gsd": 1}
    assert (report.empty_records, rejected[0]["rule"], rejected[0]["record_id"]) == (1, "format", "r1")
    assert tuple(RULES) == ("format", "length", "leaked_label", "leaked_gsd", "gsd_impossible")


def test_output_does_not_depend_on_the_order_of_the_ledger(tmp_path: Path) -> None:
    rows = [record(k, GOOD, BAD, f"What lies at {k % 2}?", image=f"i{k % 3}", factor=1 + k % 2) for k in range(12)]
    outputs = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        write_jsonl(tmp_path / "in.jsonl", rows)
        report = filter_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        outputs.append(((tmp_path / "out.jsonl").read_bytes(), rejected_path(tmp_path / "out.jsonl").read_bytes()))
        assert report.seen == 36
        assert report.kept + len(list(read_records(rejected_path(tmp_path / "out.jsonl")))) == 36
    assert len(set(outputs)) == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [record(1, BAD)])
    with pytest.raises(QuarantineLimitError, match="none of 1 pairs"):
        filter_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert module.main(["--records", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "in.jsonl", [record(1, GOOD, BAD)])
    assert module.main(["--records", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert "leaked_label" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl").read_text())["qas"][0]["question"] == GOOD
    (tmp_path / "other.jsonl").write_text('{"id":"x"}\n')
    with pytest.raises(LedgerError, match="none of `generate`"):
        filter_file(tmp_path / "other.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(LedgerError, match=r"cannot be read.*missing\.jsonl.*Remedy"):
        filter_file(tmp_path / "missing.jsonl", tmp_path / "out.jsonl")
