"""The official RSVQA metric (Lobry et al. 2020): accuracy per type, AA, OA, with answers binned on both sides.

The official model is a classifier over the commonest answers, so numbers were cut into bins before training; ours
writes text, so target *and* prediction are binned before they are compared:

- LR counts: 0, (0,10], (10,100], (100,1000], >1000. HR counts are exact.
- areas (HR): 0 m2, (0,10], (10,100], (100,1000], >1000 square metres.
- the names of the official classes ("between 10 and 100", "more than 1000m2") are read as the bins they name.
- everything else: equal after lower case, single spaces and without one final full stop or question mark (the official
  vocabulary cuts off either, once).

AA is the unweighted mean over types, OA the share of all questions. A prediction is read as a number only if the whole
of it is one (with or without its unit): a number picked out of a sentence would be our guess, not the model's answer.
Only RSVQA's own types count: questions that a language model wrote about the same tiles (`prepare.generate`) are left out.
Repositories differ by split, by types kept and by matcher, so all three belong to a number (`RsvqaScore` has them),
and `exact` stands beside the binned accuracy. Majority floors are those of the evaluated questions themselves: the best
that any constant answer per type can reach.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.evaluation.rsvqa.types import OFFICIAL

BINNED_COUNT_SOURCES = ("rsvqa_lr",)
SOURCES = {"rsvqa_lr": "LR", "rsvqa_hr": "HR (USGS)", "rsvqa_hr_phili": "HR (Philadelphia)"}
"""Sources of `prepare.rsvqa` and how tables call them."""

CAVEAT = "RSVQA holds two GSDs: no evidence about continuity."

_COUNT = re.compile(
    r"\d{1,4000}"
)  # Python reads no integer of more than 4,300 digits, and models do get stuck on "0000..."
_AREA = re.compile(r"(\d+(?:\.\d+)?) ?(?:m2|m²|m\^2|square met(?:re|er)s?)?")
_BIN_EDGES = (10, 100, 1000)
_CLASS_NAME = re.compile(
    r"(?:between (?P<low>\d{1,9})(?:m2)? and (?P<high>\d{1,9})|more than (?P<more>\d{1,9}))(?:m2)?"
)


@dataclass(frozen=True, kw_only=True)
class TypeScore:
    """One question type: `official` is None where the run generated no text."""

    n: int
    exact: float
    official: float | None
    majority: float
    majority_class: str


@dataclass(frozen=True, kw_only=True)
class RsvqaScore:
    """One source. `majority_aa` and `majority_oa` are the floors of AA and OA under the official binning."""

    source: str
    n: int
    types: dict[str, TypeScore]
    aa: float | None
    oa: float | None
    exact_oa: float
    majority_aa: float
    majority_oa: float


def official_class(text: str, *, type: str, source: str) -> str:
    """The class of an answer text under the official binning; the normalised text itself where nothing is binned."""
    plain = " ".join(text.lower().split())
    plain = plain[:-1].rstrip() if plain.endswith((".", "?")) else plain
    named = _named_bin(plain, unit="m2" if type == "area" else "")
    if named is not None and (type == "area" or (type == "count" and source in BINNED_COUNT_SOURCES)):
        return named
    if type == "count" and source in BINNED_COUNT_SOURCES and _COUNT.fullmatch(plain):
        return _bin(float(plain), unit="")
    if type == "count" and _COUNT.fullmatch(plain):
        return str(int(plain))
    if type == "area" and (match := _AREA.fullmatch(plain)):
        return _bin(float(match[1]), unit="m2")
    return plain


def score_source(rows: Sequence[Prediction], source: str) -> RsvqaScore:
    """Scores the rows of one source that have one of RSVQA's types; raises `ConfigError` if there are none."""
    by_type: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        if row.source == source and row.type in OFFICIAL:
            by_type[row.type].append(row)
    if not by_type:
        raise ConfigError("no prediction of this source", field="source", value=source, remedy=f"use {list(SOURCES)}")
    types = {name: _score_type(group) for name, group in sorted(by_type.items())}
    officials = [t.official for t in types.values()]
    known = [x for x in officials if x is not None]
    complete = len(known) == len(types)
    n = sum(t.n for t in types.values())
    return RsvqaScore(
        source=source,
        n=n,
        types=types,
        aa=sum(known) / len(types) if complete else None,
        oa=sum(t.n * x for t, x in zip(types.values(), known, strict=True)) / n if complete else None,
        exact_oa=sum(t.n * t.exact for t in types.values()) / n,
        majority_aa=sum(t.majority for t in types.values()) / len(types),
        majority_oa=sum(t.n * t.majority for t in types.values()) / n,
    )


def score_rsvqa(rows: Sequence[Prediction]) -> list[RsvqaScore]:
    """Scores of every RSVQA source among the rows; empty where there is none."""
    present = {row.source for row in rows if row.type in OFFICIAL}
    return [score_source(rows, source) for source in SOURCES if source in present]


def _score_type(rows: Sequence[Prediction]) -> TypeScore:
    targets = [official_class(r.answer, type=r.type, source=r.source) for r in rows]
    right = [
        target == official_class(r.prediction, type=r.type, source=r.source)
        for r, target in zip(rows, targets, strict=True)
        if r.prediction is not None
    ]
    commonest, count = min(Counter(targets).items(), key=lambda item: (-item[1], item[0]))
    return TypeScore(
        n=len(rows),
        exact=sum(r.correct for r in rows) / len(rows),
        official=sum(right) / len(rows) if len(right) == len(rows) else None,
        majority=count / len(rows),
        majority_class=commonest,
    )


def _named_bin(plain: str, *, unit: str) -> str | None:
    """The bin that an official class name means, None where the text is no such name."""
    match = _CLASS_NAME.fullmatch(plain)
    if match is None:
        return None
    if match["more"]:
        return f">{_BIN_EDGES[-1]}{unit}" if int(match["more"]) == _BIN_EDGES[-1] else None
    pair = int(match["low"]), int(match["high"])
    return f"({pair[0]},{pair[1]}]{unit}" if pair in itertools.pairwise((0, *_BIN_EDGES)) else None


def _bin(value: float, *, unit: str) -> str:
    if value == 0:
        return f"0{unit}"
    for low, high in itertools.pairwise((0, *_BIN_EDGES)):
        if value <= high:
            return f"({low},{high}]{unit}"
    return f">{_BIN_EDGES[-1]}{unit}"
