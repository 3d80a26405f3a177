"""The type of an RSVQA question from its words, for prediction files that do not state it.

The questions of RSVQA come from templates, so a few phrases decide; all 7,006 questions of the real tiles in
`../shared/real` get their true type (a test). The phrases are looked for anywhere, because files hold prompts: an image
token or a GSD token before the question, "Answer the question using a single word." after it.
"""

import re

ALIASES = {
    "comparison": "comp",
    "compare": "comp",
    "comparisons": "comp",
    "presence": "presence",
    "existence": "presence",
    "counting": "count",
    "number": "count",
    "areas": "area",
    "rural/urban": "rural_urban",
    "ruralurban": "rural_urban",
    "urban_rural": "rural_urban",
    "rural_or_urban": "rural_urban",
    "vqa": "",
    "rsvqa": "",
    "lr": "",
    "hr": "",
    "open": "",
}
"""Spellings of the official type names found in other repositories; others are kept as they are.

Words that name a task or a data set, not a type, count as no type at all."""

_PHRASES = (
    ("rural_urban", re.compile(r"\brural\b.*\burban\b|\burban\b.*\brural\b")),
    ("area", re.compile(r"\barea (?:is )?covered\b|\bwhat is the (?:total )?area\b")),
    ("comp", re.compile(r"\bare there (?:more|less|fewer|as many)\b|\bis the (?:number|amount) of\b.*\bequal to\b")),
    ("count", re.compile(r"\bhow many\b|\bwhat is the (?:number|amount) of\b")),
    ("presence", re.compile(r"\bis there\b|\bare there\b|\b(?:is|are)\b.*\bpresent\b")),
)


def type_name(text: str) -> str:
    """A stated type in the official spelling: "Rural-Urban" is rural_urban, "Comparison" is comp; "" for none."""
    plain = re.sub(r"[\s-]+", "_", text.strip().lower()).removeprefix("rsvqa_")
    return ALIASES.get(plain, plain)


def type_of_question(question: str) -> str | None:
    """The type that the words of a question give away; None for a question of no template of RSVQA."""
    plain = " ".join(question.lower().split())
    return next((name for name, phrase in _PHRASES if phrase.search(plain)), None)
