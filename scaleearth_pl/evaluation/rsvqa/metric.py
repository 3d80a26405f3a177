"""The official RSVQA classes (Lobry et al. 2020): in which bin an answer falls, and what is known of RSVQA's sources.

The official model is a classifier over the commonest answers, so numbers were cut into bins before training; ours
writes text, so target *and* prediction are binned before they are compared:

- LR counts: 0, (0,10], (10,100], (100,1000], >1000. HR counts are exact.
- areas (HR): 0 m2, (0,10], (10,100], (100,1000], >1000 square metres.
- the names of the official classes ("between 10 and 100", "more than 1000m2") are read as the bins they name.
- everything else: equal after lower case, single spaces and without one final full stop or question mark (the official
  vocabulary cuts off either, once).

A prediction is read as a number only if the whole of it is one (with or without its unit), in the digits 0 to 9: a number
picked out of a sentence would be our guess, not the model's answer. Repositories differ by split, by types kept and by
matcher, so all three belong to a number.
"""

import itertools
import re
from collections.abc import Mapping

from scaleearth_pl.evaluation.rsvqa.types import HR_TYPES, LR_TYPES, Dataset

SOURCES = {"rsvqa_lr": "LR", "rsvqa_hr": "HR (USGS)", "rsvqa_hr_phili": "HR (Philadelphia)"}
"""Sources of `prepare.rsvqa` and how tables call them."""

DATASETS: Mapping[str, Dataset] = {"rsvqa_lr": "lr", "rsvqa_hr": "hr", "rsvqa_hr_phili": "hr"}
"""Whose binning applies to each source."""

_TYPES = {source: LR_TYPES if dataset == "lr" else HR_TYPES for source, dataset in DATASETS.items()}

CAVEAT = "RSVQA holds two GSDs: no evidence about continuity."

_COUNT = re.compile(
    r"[0-9]{1,4000}"
)  # Python reads no integer of more than 4,300 digits, and models do get stuck on "0000..."
_AREA = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:m2|m²|m\^2|square met(?:re|er)s?)?")
_BIN_EDGES = (10, 100, 1000)
_CLASS_NAME = re.compile(
    r"(?:between (?P<low>[0-9]{1,9})(?:m2)? and (?P<high>[0-9]{1,9})|more than (?P<more>[0-9]{1,9}))(?:m2)?"
)


def is_official(*, source: str | None, kind: str, qa_id: str | None) -> bool:
    """Whether a question of our own predictions is RSVQA's: by source, a type of that set, and the id of the importers.

    Questions that a language model wrote about a tile (`prepare.generate`, `prepare.merge`) keep the tile's source and may
    be of type presence or count; their ids are hashes.
    """
    known = source is not None and kind in _TYPES.get(source, ())
    return known and re.fullmatch(rf"{source}-q[0-9]+", qa_id or "") is not None


def official_class(text: str, *, kind: str, dataset: Dataset) -> str:
    """The class of an answer text of a type (`kind`); the normalised text itself where nothing is binned."""
    plain = " ".join(text.lower().split())
    plain = plain[:-1].rstrip() if plain.endswith((".", "?")) else plain
    binned_count = kind == "count" and dataset == "lr"
    named = _named_bin(plain, unit="m2" if kind == "area" else "")
    if named is not None and (kind == "area" or binned_count):
        return named
    if kind == "count" and _COUNT.fullmatch(plain):
        return _bin(float(plain), unit="") if binned_count else str(int(plain))
    if kind == "area" and (match := _AREA.fullmatch(plain)):
        return _bin(float(match[1]), unit="m2")
    return plain


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
