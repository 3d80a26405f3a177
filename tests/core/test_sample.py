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
    ],
)
def test_contradictions_name_their_field(changes, field):
    with pytest.raises(ScaleEarthError, match=field):
        sample(**changes)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"nonsense": 1}', sample().to_json().replace('"exact"', '"sure"')],
)
def test_broken_json_is_a_sample_error(text):
    with pytest.raises(SampleError):
        Sample.from_json(text)


def test_empty_answers_are_refused():
    with pytest.raises(SampleError, match="answer"):
        Question(id="0", type="t", family="f", question="q", answer=" ")
