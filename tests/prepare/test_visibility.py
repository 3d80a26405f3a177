"""The table of what a GSD shows, and the words by which a text names it."""

from itertools import pairwise

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.prepare.prompts.compose import View, generation_prompt
from scaleearth_pl.prepare.visibility import COLUMNS, nouns, nouns_in, parse_nouns, unresolved_in, visible_and_not

HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two cars and a bus", {"car", "truck"}),
        ("The car park is empty", {"parking lot"}),
        ("Parking spaces", {"parking space"}),
        ("Cities, highways and ferries", {"settlement", "highway", "ship"}),
        ("People on the beaches", {"person", "lake"}),
        ("carpet, scarce, roadside, treetop", set()),
        ("MOBILE HOMES", {"house"}),
        ("a bu\u0131lding beside a sh\u0131p, a \u212aayak", set()),  # letters that fold to i and k, and are none
    ],
)
def test_words(text: str, expected: set[str]) -> None:
    assert {noun.noun for noun in nouns_in(text)} == expected


def test_a_coarser_image_never_shows_more() -> None:
    gsds_m = (0.05, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    shown = [{n.noun for n in nouns() if n.visible(gsd_m)} for gsd_m in gsds_m]
    assert all(coarse < fine for fine, coarse in pairwise(shown))


def test_known_cases() -> None:
    assert [n.noun for n in unresolved_in("cars on the motorway", 10.0)] == ["car"]
    assert not unresolved_in("cars on the motorway", 0.3)
    fine, coarse = visible_and_not(10.0)
    assert "road" in fine
    assert "basketball court" in coarse


def test_what_the_prompt_offers_the_filter_lets_pass() -> None:
    for gsd_m, tier in ((0.3, Tier.HIGH), (3.0, Tier.MID), (20.0, Tier.LOW)):
        view = View(gsd_m=gsd_m, provenance=Provenance.EXACT, tier=tier, width=64, height=64, class_label="beach")
        system = generation_prompt(view, "identification", n_questions=1).system
        offered = system.split("resolved in this image: ")[1].split(".")[0]
        assert not unresolved_in(offered, gsd_m)


@pytest.mark.parametrize(
    "table",
    [
        "noun,width_m\ncar,1.8",
        f"{HEADER}\ncar,auto,1.8,2,\nvan,auto,2,2,",
        f"{HEADER}\ncar,,0,2,",
        f"{HEADER}\ncar,,1,-2,",
    ],
)
def test_a_bad_table_is_refused(table: str) -> None:
    with pytest.raises(Exception, match=r"columns|two rows|positive") as caught:
        parse_nouns(table)
    assert isinstance(caught.value, ConfigError) or "GSD" in str(caught.value)
