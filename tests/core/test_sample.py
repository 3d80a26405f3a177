import json

import pytest

from scaleearth_pl.core.errors import SampleError, ScaleEarthError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import Question, Sample


def sample(**changes) -> Sample:
    question = Question(id="0", type="presence", family="identification", question="Is there a road?", answer="yes")
    values = {
        "source": "t",
        "split": "train",
        "image_id": "a",
        "width": 8,
        "height": 8,
        "gsd_m_native": 0.5,
        "gsd_provenance": Provenance.EXACT,
        "tier": Tier.HIGH,
        "qas": (question,),
    }
    return Sample(**(values | changes))


def test_json_round_trip_is_canonical():
    first = sample(class_label="road", factors={"texture": {"roughness": 0.5}})
    again = Sample.from_json(first.to_json())
    assert again == first
    assert again.to_json() == first.to_json()
    assert json.loads(first.to_json())["class"] == "road"


def test_the_name_of_the_attribute_is_no_key_of_the_json():
    """It would be read as no class at all."""
    text = sample(class_label="road").to_json().replace('"class":', '"class_label":')
    with pytest.raises(SampleError, match=r"class_label.*write 'class'"):
        Sample.from_json(text)


def test_sigma_falls_back_to_the_provenance():
    assert sample().sigma_log10 == 0.01
    assert sample(gsd_sigma_log10=0.2).sigma_log10 == 0.2
    unknown = sample(gsd_m_native=None, gsd_provenance=Provenance.UNKNOWN, tier=Tier.UNKNOWN)
    assert unknown.sigma_log10 is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gsd_m_native": None}, "gsd_m_native"),
        ({"gsd_m_native": -1.0}, "gsd_m_native"),
        ({"gsd_m_native": float("nan")}, "gsd_m_native"),
        ({"qas": ()}, "qas"),
        ({"gsd_provenance": Provenance.IMPRECISE}, "gsd_sigma_log10"),
        ({"schema": "scaleearth-sample/0"}, "schema"),
        ({"tier": Tier.UNKNOWN}, "tier"),
        ({"gsd_sigma_log10": float("nan")}, "gsd_sigma_log10"),
        ({"gsd_sigma_log10": -0.1}, "gsd_sigma_log10"),
        ({"gsd_sigma_log10": "0.1"}, "gsd_sigma_log10"),
        ({"width": 0}, "width"),
        ({"height": 64.0}, "height"),
        ({"image_id": 7}, "image_id"),
        ({"split": ""}, "split"),
        ({"place_id": 7}, "place_id"),
        ({"has_scale_cue": "false"}, "has_scale_cue"),
    ],
)
def test_contradictions_name_their_field(changes, field):
    with pytest.raises(ScaleEarthError, match=field):
        sample(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"nonsense": 1}',
        sample().to_json().replace('"exact"', '"sure"'),
        "[" * 100_000,
        sample().to_json().replace('"Is there a road?"', r'"half \ud83d a character"'),
    ],
)
def test_broken_json_is_a_sample_error(text):
    with pytest.raises(SampleError):
        Sample.from_json(text)


def test_a_question_id_that_occurs_twice_is_refused_by_name():
    rows = json.loads(sample().to_json())
    rows["qas"] *= 2
    with pytest.raises(SampleError, match=r"twice.*qas\.id.*'0'"):
        Sample.from_json(json.dumps(rows))


def test_empty_answers_are_refused():
    with pytest.raises(SampleError, match="answer"):
        Question(id="0", type="t", family="f", question="q", answer=" ")


def test_whole_characters_beyond_the_basic_plane_are_text():
    text = sample().to_json()
    assert (
        Sample.from_json(text.replace('"Is there a road?"', r'"\ud83d\ude00"')).qas[0].question == "\N{GRINNING FACE}"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("options", "yes"),
        ("options", [1, 2]),
        ("options", [["yes", "no"]]),
        ("turns", [["a question without its answer"]]),
        ("turns", ["ab"]),
        ("turns", [["how many?", 2]]),
    ],
)
def test_options_are_texts_and_turns_are_pairs(name, value):
    row = json.loads(sample().to_json())
    row["qas"][0][name] = value
    with pytest.raises(SampleError, match=name):
        Sample.from_json(json.dumps(row))
