"""`lhrs`: LHRS-Bot's `main_vqa.py`, as it behaves: a VQA-normalised exact match, *or a substring of the target*.

The prediction is normalised (below), the target is not. Right is what equals the target, and also what is contained in
it: "e" and "es" are right for "yes", and so is the empty answer, to everything. "The", "." and "a" normalise to the
empty answer and share its luck. count and area are left out; the printed total is the micro accuracy of the rest.

Normalisation, in its order: lower case; commas and question marks removed; a space before 's; line breaks and tabs
become spaces; each other punctuation mark is deleted everywhere if it touches a space anywhere in the text, else it
becomes a space; full stops not before a digit are deleted, at most 32 of them (a flag of the regular expression stands
in the place of its count); number words to ten become digits, "none" too; articles are dropped.

Left out: the table that gives contractions their apostrophe ("dont"). Neither its words nor their corrections equal, or
lie inside, any answer of RSVQA, so it cannot change a score.
"""

import re

from scaleearth_pl.evaluation.rsvqa.matchers.base import NUMERIC_TYPES, Case, Matcher

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_STOPS_DELETED = int(re.UNICODE)
_COMMAS = str.maketrans("", "", ",?")
_STOP = re.compile(r"\.(?!\d)")


def normalise(text: str) -> str:
    """The text as LHRS-Bot compares it."""
    text = text.lower().translate(_COMMAS).replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    touches = {mark for mark in _MARKS if mark in text and (f"{mark} " in text or f" {mark}" in text)}
    text = "".join(("" if mark in touches else " ") if mark in _MARKS else mark for mark in text)
    text = _STOP.sub("", text, count=_STOPS_DELETED)
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)


def score(case: Case) -> float:
    """1 where the normalised prediction is the target or lies inside it."""
    return float(case.prediction is not None and normalise(case.prediction) in case.target)


LHRS = Matcher(
    name="lhrs",
    what="VQA-normalised, or a substring of the target",
    score=score,
    target_class=lambda case: case.target,
    skips=NUMERIC_TYPES,
)
