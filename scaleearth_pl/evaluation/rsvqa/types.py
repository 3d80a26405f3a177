"""The type of an RSVQA question: as stated, else from its words, else from its ground truth.

The questions of RSVQA come from templates, so a few phrases decide; all 7,006 questions of the real tiles in
`../shared/real` get their true type (a test). The phrases are looked for anywhere, because files hold prompts: an image
token or a GSD token before the question, "Answer the question using a single word." after it.

A ground truth tells counts, areas and rural_urban; "yes" and "no" belong to presence and comparison alike and are filed as
`yes_no` where neither type nor question is known.

Which of the two sets a question belongs to is told by names alone (`set_of`): of a data set, a split, an image's folder.
"""

import re
from functools import lru_cache
from typing import Literal

Dataset = Literal["lr", "hr"]
"""LR bins counts, HR does not; that is all that a matcher must know of the data set."""

OFFICIAL = frozenset({"presence", "comp", "count", "area", "rural_urban"})
"""Types of RSVQA LR and HR."""

LR_TYPES, HR_TYPES = OFFICIAL - {"area"}, OFFICIAL - {"rural_urban"}
"""Types of LR, and of HR, which has areas in place of rural_urban."""

NOT_A_TYPE = frozenset({"vqa", "rsvqa", "lr", "hr", "open", "none", "null", "nan", "unknown", "n_a", "_"})
"""Words that name a task or a data set, or nothing at all; they count as no type."""

_STATED = (
    ("rural_urban", re.compile(r"rural|urban")),
    ("comp", re.compile(r"compar|^comp(?![a-z])|(?<![a-z])comp$")),
    ("presence", re.compile(r"presen|exist")),
    ("count", re.compile(r"count|number|quantity|how_many")),
    ("area", re.compile(r"(?<![a-z])areas?(?![a-z])")),
)
"""Official types by what their spellings in other repositories have in common, in this order."""

_PHRASES = (
    ("rural_urban", re.compile(r"\brural\b.*\burban\b|\burban\b.*\brural\b")),
    ("area", re.compile(r"\barea (?:is )?covered\b|\bwhat is the (?:total )?area\b")),
    ("comp", re.compile(r"\bare there (?:more|less|fewer|as many)\b|\bis the (?:number|amount) of\b.*\bequal to\b")),
    ("count", re.compile(r"\bhow many\b|\bwhat is the (?:number|amount) of\b")),
    ("presence", re.compile(r"\bis there\b|\bare there\b|\b(?:is|are)\b.*\bpresent\b")),
)

_TARGETS = (
    ("rural_urban", re.compile(r"rural|urban")),
    ("area", re.compile(r"\d+(?:\.\d+)?\s?(?:m2|m²|m\^2)")),
    ("count", re.compile(r"\d+")),
    ("yes_no", re.compile(r"yes|no")),
)

_LR = re.compile(r"(?<![a-z])lr(?![a-z])|rsvqa[_-]?lr?(?![a-z])|lrben|sentinel|low[ _-]?res")
_HR = re.compile(r"(?<![a-z])hr(?![a-z])|rsvqa[_-]?hr?(?![a-z])|hrben|phili|usgs|high[ _-]?res")
"""Names of the two sets. Whole words: "results_all" holds no "lr", and "three" no "hr"."""


@lru_cache(maxsize=1024)
def set_of(name: str) -> Dataset | None:
    """LR or HR, as the name of a data set, split, file or folder says; None where it says neither, or both."""
    low, high = (bool(words.search(name.lower())) for words in (_LR, _HR))
    if low == high:
        return None
    return "lr" if low else "hr"


def type_name(text: str) -> str:
    """A stated type in the official spelling: "Rural-Urban" is rural_urban, "Comparison" is comp; "" for none.

    A type that is none of RSVQA's (xBEN's "LC") keeps its name, in lower case.
    """
    plain = re.sub(r"[\s/|-]+", "_", text.strip().lower()).removeprefix("rsvqa_")
    if plain in OFFICIAL:
        return plain
    if not plain or plain in NOT_A_TYPE:
        return ""
    return next((name for name, word in _STATED if word.search(plain)), plain)


def type_of_question(question: str) -> str | None:
    """The type that the words of a question give away; None for a question of no template of RSVQA."""
    plain = " ".join(question.lower().split())
    return next((name for name, phrase in _PHRASES if phrase.search(plain)), None)


def type_of_target(target: str) -> str | None:
    """The type that a ground truth gives away; None for what RSVQA LR and HR never answer."""
    return next((name for name, word in _TARGETS if word.fullmatch(target)), None)
