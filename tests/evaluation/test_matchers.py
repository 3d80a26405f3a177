"""Every quirk of the five published scorers, with the verdict worked out by hand from the repositories' code."""

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS, Case, matcher
from scaleearth_pl.evaluation.rsvqa.matchers.lhrs import normalise


def verdict(name: str, target: str, prediction: str | None, type: str = "presence", dataset: str = "lr") -> float:
    return matcher(name).score(Case(target=target, prediction=prediction, type=type, dataset=dataset))


OFFICIAL = [
    # LR counts in bins, borders belong below
    ("403", "427", "count", "lr", 1), ("10", "11", "count", "lr", 0), ("1", "10", "count", "lr", 1),
    ("100", "11", "count", "lr", 1), ("101", "100", "count", "lr", 0), ("1000", "101", "count", "lr", 1),
    ("1001", "17139", "count", "lr", 1), ("0", "0", "count", "lr", 1), ("0", "1", "count", "lr", 0),
    # HR counts exactly
    ("12", "12", "count", "hr", 1), ("12", "13", "count", "hr", 0), ("7", "007", "count", "hr", 1),
    # areas in bins, with or without unit, zero apart
    ("10632m2", "2000m2", "area", "hr", 1), ("10632m2", "10632", "area", "hr", 1), ("0m2", "1m2", "area", "hr", 0),
    ("0m2", "0", "area", "hr", 1), ("5m2", "10 m²", "area", "hr", 1), ("5m2", "10.5m2", "area", "hr", 0),
    # the names of the official classes
    ("403", "between 100 and 1000", "count", "lr", 1), ("4", "between 0 and 10", "count", "lr", 1),
    ("5000", "more than 1000", "count", "lr", 1), ("12", "between 10 and 100", "count", "hr", 0),
    ("500m2", "between 100m2 and 1000m2", "area", "hr", 1), ("5000m2", "more than 1000m2", "area", "hr", 1),
    # numbers inside sentences are not read
    ("403", "about 427", "count", "lr", 0), ("12", "12.0", "count", "lr", 0), ("12", "twelve", "count", "lr", 0),
    ("1200", "1,200", "count", "lr", 0), ("12", "-12", "count", "lr", 0), ("5000", "9" * 3000, "count", "lr", 1),
    # the digits are 0 to 9: neither full-width ones nor Arabic-Indic ones
    ("12", "\uff11\uff12", "count", "hr", 0), ("403", "\uff14\uff12\uff17", "count", "lr", 0),
    ("3", "\u0663", "count", "hr", 0), ("50m2", "\uff15\uff10m2", "area", "hr", 0),
    ("403", "between \uff11\uff10\uff10 and \uff11\uff10\uff10\uff10", "count", "lr", 0),
    # words
    ("yes", "Yes.", "presence", "lr", 1), ("yes", " yes ", "presence", "lr", 1), ("yes", "yes, it is", "comp", "lr", 0),
    ("yes", "yes?", "presence", "lr", 1), ("yes", "yes..", "presence", "lr", 0), ("yes", "yes!", "presence", "lr", 0),
    ("rural", "Rural", "rural_urban", "lr", 1), ("yes", "", "presence", "lr", 0), ("yes", None, "presence", "lr", 0),
]  # fmt: skip


@pytest.mark.parametrize(("target", "prediction", "type", "dataset", "right"), OFFICIAL)
def test_official_binned_bins_both_sides(target, prediction, type, dataset, right):
    assert verdict("official_binned", target, prediction, type, dataset) == right


@pytest.mark.parametrize(
    ("target", "prediction", "right"),
    [
        ("yes", "YES", 1),
        ("yes", " yes\n", 1),
        ("yes", "yes.", 0),
        ("12m2", "12 m2", 0),
        ("403", "427", 0),
        ("no", None, 0),
    ],
)
def test_exact_forgives_case_and_outer_spaces_only(target, prediction, right):
    assert verdict("exact", target, prediction, "count") == right


LHRS = [
    ("yes", "yes", 1), ("yes", "Yes.", 1), ("yes", "Yes!", 1), ("yes", "yes !", 1), ("yes", "yes, there is", 0),
    # a substring of the target is right, so is nothing at all
    ("yes", "", 1), ("yes", "e", 1), ("yes", "es", 1), ("rural", "ur", 1), ("urban", "an", 1), ("urban", "ban", 1),
    ("no", "none", 0), ("no", "not", 0),
    # what normalises to nothing
    ("yes", "the", 1), ("yes", "A", 1), ("yes", ".", 1), ("no", "?", 1), ("yes", "an", 1),
    # the target is not normalised
    ("Yes", "yes", 0),
    ("yes", None, 0),
]  # fmt: skip


@pytest.mark.parametrize(("target", "prediction", "right"), LHRS)
def test_lhrs_takes_substrings_of_the_target(target, prediction, right):
    assert verdict("lhrs", target, prediction) == right


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("None of the three", "0 of 3"),
        ("10,000", "10000"),
        ("3.5 m", "3.5 m"),
        ("end. of. it.", "end of it"),
        ("rural/urban", "rural urban"),
        ("rural / urban", "rural urban"),
        ("rural/urban / x", "ruralurban x"),
        ("it's", "it 's"),
        ("yes\n\tno", "yes no"),
        (". " * 40 + "x", ". . . . . . . . x"),
    ],
)
def test_lhrs_normalisation(text, normal):
    assert normalise(text) == normal


EARTHDIAL = [
    ("yes", "yes", 1), ("yes", "Yes.", 1), ("yes", "yes, there is", 1), ("yes", "yes there is", 0), ("yes", "y e s", 1),
    ("yes", "(yes)", 1), ("yes", '"yes"', 1), ("yes", "yes!", 1), ("yes", "yes/no", 0), ("yes", "no", 0),
    ("yes", "yes.no", 0), ("yes", "**Yes.** There", 1), ("no", "No.\nThere is", 1), ("no", "(No.)x", 1), ("no", "x:,no", 0),
    ("yes", "", 0), ("yes", None, 0), ("rural", "rural\narea", 1),
    # recall: half of the target's two tokens
    ("rural, urban", "rural", 1 / 3), ("not sure.", "notsure", 1 / 2), ("can not", "cannot", 1),
]  # fmt: skip


@pytest.mark.parametrize(("target", "prediction", "share"), EARTHDIAL)
def test_earthdial_removes_spaces_and_takes_token_recall(target, prediction, share):
    assert verdict("earthdial", target, prediction) == pytest.approx(share)


INTERNVL = [
    # bins 0, 1-100, 101-1000, more
    ("11", "10", "count", 1), ("1", "100", "count", 1), ("101", "100", "count", 0), ("1001", "99999", "count", 1),
    ("0", "0", "count", 1), ("0", None, "count", 1), ("5", None, "count", 0), ("0", "", "count", 0),
    ("12", " 12 ", "count", 1), ("12", "12.0", "count", 0), ("12", "twelve", "count", 0), ("12", "1_2", "count", 1),
    ("12", "\uff11\uff12", "count", 1),  # Python's int, as there
    ("-3", "-3", "count", 0),
    # rstrip('m2') eats trailing twos of the target: 10632m2 is 1063, 22m2 is nothing, 112m2 is 11
    ("10632m2", "1063", "area", 1), ("10632m2", "2000", "area", 1), ("10632m2", "10632m2", "area", 0),
    ("1002m2", "500", "area", 0), ("1002m2", "50", "area", 1), ("22m2", "22", "area", 0), ("112m2", "50", "area", 1),
    ("112m2", "112", "area", 0), ("0m2", "0", "area", 1), ("0m2", None, "area", 1), ("0m2", "0m2", "area", 0),
    # text: lower case, no stripping
    ("yes", "YES", "presence", 1), ("yes", " yes", "presence", 0), ("yes", "yes.", "comp", 0), ("yes", "", "comp", 0),
    ("yes", None, "presence", 0), ("Rural", "rural", "rural_urban", 1),
]  # fmt: skip


@pytest.mark.parametrize(("target", "prediction", "type", "right"), INTERNVL)
def test_internvl_bins_and_eats_twos(target, prediction, type, right):
    assert verdict("internvl", target, prediction, type) == right


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize(
    ("target", "type"), [("yes", "presence"), ("rural", "rural_urban"), ("7", "count"), ("50m2", "area")]
)
def test_a_class_is_what_its_own_answers_fall_into(name, target, type):
    rule = matcher(name)
    one = Case(target=target, prediction=target, type=type, dataset="lr")
    assert rule.target_class(one) is not None
    # InternVL alone refuses its own spelling of an area.
    assert rule.score(one) == (0 if (name, type) == ("internvl", "area") else 1)


def test_repositories_leave_out_what_they_leave_out():
    assert {name for name, rule in MATCHERS.items() if rule.skips == {"count", "area"}} == {"lhrs", "earthdial"}
    with pytest.raises(ConfigError, match="official_binned"):
        matcher("fuzzy")
