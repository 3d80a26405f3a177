"""Syntactic rules for generated questions: pure functions of one pair, each with a name that is counted.

    format          a question in one sentence, an answer that commits itself, options that hold the answer once
    length          3 to 40 words asked, 1 to 12 answered
    leaked_label    the class name stands in the question: the answer could be guessed without the image
    leaked_gsd      the GSD stands in the question, or its answer follows from GSD and size alone
    gsd_impossible  names an object that this GSD does not resolve, or a length finer than a pixel, wider than the
                    image, or measured on an image whose scale nobody knows

The rules know words, not pictures: they cost nothing and catch what a model writes from habit. What is wrong but well
put is the auditor's business. "Can single cars be told apart here? No" at 10 m is right and passes: an object that is
not resolved may be named to say just that.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.prepare.prompts.compose import View
from scaleearth_pl.prepare.visibility import unresolved_in

QUESTION_WORDS, ANSWER_WORDS, OPTION_WORDS = (3, 40), (1, 12), (1, 8)
"""Fewest and most words."""

_MARKUP = re.compile(r"[*#<>{}\[\]`|]|https?:|\\n")
_META = re.compile(r"\b(label|caption|prompt|class name|these instructions|as an ai|language model)\b", re.I)
_HEDGE = re.compile(r"\b(cannot be (determined|told|seen)|can't tell|unclear|uncertain|unknown|not sure|n/a)\b", re.I)
_GSD = re.compile(
    r"\bgsd\b|ground sampl|(spatial|image) resolution|pixel size|\b(m|cm|met(er|re)s?)\s*(per|/)\s*(px|pixel)"
    r"|\d\s*-?\s*(m|cm|met(er|re))s?\W+resolution|resolution of",
    re.I,
)
_FRAME = r"(image|scene|frame|picture|photo|view|tile)"
_EXTENT = re.compile(
    rf"\b(area|extent|size|width|height|length)\b[^?]* (of|covered by) (the|this) (whole |entire |full )?{_FRAME}\b"
    rf"|how (much|large|wide|big|long)\b[^?]*\b{_FRAME} (cover|show|span|is|extend)"
    rf"|how (large|wide|big|long) is (the|this) (whole |entire |full )?{_FRAME}\b",
    re.I,
)
_VISIBILITY = re.compile(
    r"\b(visible|resolv|told apart|tell apart|distinguish|discern|made out|make out|recogni[sz]|count(ed|able)|detail)",
    re.I,
)
_DENIAL = re.compile(r"(no|not|none|never|cannot|can't|too (small|fine|coarse))\b", re.I)
_NUMBER = r"(\d+(?:,\d{3})*(?:\.\d+)?)"
_AREA = re.compile(rf"{_NUMBER}\s*(m2|m²|sq\.? ?m|square met(?:er|re)s?|ha|hectares?|km2|km²)(?![a-z0-9])", re.I)
_LENGTH = re.compile(rf"{_NUMBER}\s*(cm|m|met(?:er|re)s?|km|kilomet(?:er|re)s?|ft|feet)(?![a-z0-9²])", re.I)
_METRES = {"c": 0.01, "m": 1.0, "k": 1000.0, "f": 0.3048}
_SQUARE_METRES = {"m": 1.0, "s": 1.0, "h": 1e4, "k": 1e6}


@dataclass(frozen=True, kw_only=True)
class PairInView:
    """One question and answer, generated or of a source, with its view; GSD in metres per pixel, sigma in decades."""

    question: str
    answer: str
    options: tuple[str, ...]
    type: str
    family: str
    view: View
    gsd_sigma_log10: float | None

    @property
    def finest_gsd_m(self) -> float | None:
        """The GSD to hold a claim against: one sigma finer where it is imprecise, since doubt is not proof."""
        gsd_m, sigma = self.view.gsd_m, self.gsd_sigma_log10
        if gsd_m is None or self.view.provenance is not Provenance.IMPRECISE or sigma is None:
            return gsd_m
        return float(gsd_m / 10**sigma)


def pair_of(record: dict[str, Any], qa: dict[str, Any], view: View) -> PairInView:
    """The pair of one entry of a record's `qas`."""
    return PairInView(
        question=qa["question"],
        answer=qa["answer"],
        options=tuple(qa["options"] or ()),
        type=qa["type"],
        family=record["family"],
        view=view,
        gsd_sigma_log10=record["gsd_sigma_log10"],
    )


def format_rule(pair: PairInView) -> str | None:
    """Why the pair is not one plain question with one plain answer, or None."""
    question, answer = pair.question, pair.answer
    checks = {
        "question is empty": not question.strip(),
        "question does not end in one question mark": question.count("?") != 1 or not question.endswith("?"),
        "question does not open with a capital letter": not question[:1].isupper(),
        "question or answer holds markup": bool(_MARKUP.search(question + answer)),
        "question or answer speaks of the label or the prompt": bool(_META.search(f"{question} {answer}")),
        "answer is empty": not answer.strip(),
        "answer is a question": "?" in answer,
        "answer commits itself to nothing": bool(_HEDGE.search(answer)),
        "type is no plain name": not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", pair.type),
    }
    return next((why for why, bad in checks.items() if bad), None) or _options_reason(pair)


def length_rule(pair: PairInView) -> str | None:
    """Why question, answer or an option is too short or too long, or None."""
    for name, text, (low, high) in (
        ("question", pair.question, QUESTION_WORDS),
        ("answer", pair.answer, ANSWER_WORDS),
        *(("option", option, OPTION_WORDS) for option in pair.options),
    ):
        n = len(text.split())
        if not low <= n <= high or len(text) > 8 * high:
            return f"{name} has {n} words in {len(text)} characters, {low} to {high} words are allowed"
    return None


def leaked_label_rule(pair: PairInView) -> str | None:
    """Class name in the question, in any spelling with or without blanks, singular or plural."""
    if not pair.view.class_label:
        return None
    words = [re.escape(w) for w in re.split(r"[\W_]+", pair.view.class_label.lower()) if w]
    stem = r"[\s_-]*".join(words)
    stem = stem[:-1] + "(?:y|ie)" if stem.endswith("y") else stem
    found = re.search(rf"\b{stem}(?:e?s)?\b", pair.question.lower())
    return f"question names the class: {found[0]!r}" if found else None


def leaked_gsd_rule(pair: PairInView) -> str | None:
    """GSD told in the question, or asked for, directly or as the extent of the frame."""
    found = _GSD.search(pair.question) or _EXTENT.search(pair.question)
    return f"question tells or asks the scale: {found[0]!r}" if found else None


def gsd_impossible_rule(pair: PairInView) -> str | None:
    """A claim that an image of this GSD cannot bear out."""
    gsd_m = pair.finest_gsd_m
    asks_visibility = _VISIBILITY.search(pair.question) and not re.match(r"how many\b", pair.question, re.I)
    denies = bool(asks_visibility and _DENIAL.match(pair.answer))
    if gsd_m is not None and not denies:
        hidden = unresolved_in(f"{pair.question} {pair.answer}", gsd_m)
        if hidden:
            return (
                f"{hidden[0].noun} is resolved up to {hidden[0].max_gsd_m:.3g} m per pixel, the image has {gsd_m:.3g}"
            )
    return _metric_reason(pair)


RULES: dict[str, Callable[[PairInView], str | None]] = {
    "format": format_rule,
    "length": length_rule,
    "leaked_label": leaked_label_rule,
    "leaked_gsd": leaked_gsd_rule,
    "gsd_impossible": gsd_impossible_rule,
}
"""Rules by the name under which they are counted."""


def lengths_m(text: str) -> list[float]:
    """Lengths in metres that a text states; areas are none."""
    bare = _AREA.sub(" ", text)
    return [float(m[1].replace(",", "")) * _METRES[m[2][0].lower()] for m in _LENGTH.finditer(bare)]


def areas_m2(text: str) -> list[float]:
    """Areas in square metres that a text states."""
    return [float(m[1].replace(",", "")) * _SQUARE_METRES[m[2][0].lower()] for m in _AREA.finditer(text)]


def _options_reason(pair: PairInView) -> str | None:
    folded = [option.casefold().strip() for option in pair.options]
    if not folded:
        return "discriminative question without options" if pair.family == "discriminative" else None
    if not 2 <= len(folded) <= 6 or len(set(folded)) != len(folded) or "" in folded:
        return "options are not 2 to 6 different texts"
    return None if pair.answer in pair.options else "answer is none of the options"


def _metric_reason(pair: PairInView) -> str | None:
    lengths, areas = lengths_m(pair.answer), areas_m2(pair.answer)
    if not pair.view.metric or pair.view.gsd_m is None:
        told = lengths or areas or lengths_m(pair.question) or areas_m2(pair.question)
        return f"metres on an image of {pair.view.provenance} scale" if told else None
    gsd_m, width, height = pair.view.gsd_m, pair.view.width, pair.view.height
    longest_m, largest_m2 = gsd_m * (width**2 + height**2) ** 0.5, gsd_m**2 * width * height
    for stated, low, high, unit in (
        *((x, gsd_m, longest_m, "m") for x in lengths),
        *((x, gsd_m**2, largest_m2, "m2") for x in areas),
    ):
        if stated != 0 and not 0.99 * low <= stated <= 1.01 * high:
            return f"{stated:.4g} {unit} lies outside {low:.3g} (a pixel) to {high:.4g} {unit} (the frame)"
    return None
