"""Candidate questions about one image; `balance.py` decides which of them are asked.

Three families:

- *scale_specific*: how wide, how long, what area, how many cars fit, wider than? The answer is pixels x GSD.
- *discriminative*: two claims that would both be plausible at this GSD; the pixels decide.
- *identification*: what is there; the image alone decides.

Every candidate carries its *cell*, within which answers must be balanced: what is asked, about what, at about which
GSD. The extent of the image is never asked: it is GSD times pixels, and proves nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scaleearth_pl.prepare.world.nouns import (
    AREAS_M2,
    CAR_M,
    COUNTS,
    LARGEST_PX,
    LENGTHS_M,
    NOUNS,
    SMALLEST_PX,
    Noun,
    area_text,
    length_text,
    name_at,
    nearest_bin,
)
from scaleearth_pl.prepare.world.scene import Subject
from scaleearth_pl.prepare.world.sight import Sight
from scaleearth_pl.prepare.world.wording import coin, say

CLAIM_BINS_PER_DECADE = 2
"""Coarser than for open questions: both claims are possible at the GSD itself, so the bin has less to even out."""
DISTANCES = (-3, -2, 2, 3)
"""Bins between the two sizes of a pair of claims: a factor of four to ten."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A question that could be asked.

    Attributes:
        cell: questions of one cell could be confused by someone who does not see the image.
        value: what has to be balanced in the cell; the answer, or which of two claims is right.
    """

    type: str
    family: str
    question: str
    answer: str
    cell: tuple[str | int, ...]
    value: str


def gsd_bin(gsd_m: float, per_decade: int = 3) -> int:
    """Index of the part of a decade that holds a GSD."""
    return math.floor(per_decade * math.log10(gsd_m))


def about_sizes(sight: Sight, image_id: str) -> Iterator[Candidate]:
    """All scale-specific and discriminative candidates of an image."""
    for subject, _ in sight.measured:
        noun, gsd_m = NOUNS[subject.noun], sight.view.gsd_m
        key = f"{image_id}|{noun.name}"
        yield from size_questions(noun, subject, gsd_m, key)
        yield from claims_of_size(noun, subject.size_m, gsd_m, key)
        yield from claims_of_name(noun, subject.size_m, gsd_m, key)


def size_questions(noun: Noun, subject: Subject, gsd_m: float, key: str) -> Iterator[Candidate]:
    """How wide or long, what area, how many cars fit."""
    family, where = "scale_specific", gsd_bin(gsd_m)
    if (i := nearest_bin(subject.size_m, LENGTHS_M)) is not None:
        kind = "width" if noun.measure == "wide" else "length"
        text = say("size/fields" if noun.name == "field" else f"size/{noun.measure}", key, noun=noun.name)
        answer = length_text(LENGTHS_M[i])
        yield Candidate(
            type=kind, family=family, question=text, answer=answer, cell=(kind, noun.name, where), value=answer
        )
    if noun.areal and subject.area_m2 is not None and (i := nearest_bin(subject.area_m2, AREAS_M2)) is not None:
        text, answer = say("area", key, noun=noun.name), area_text(AREAS_M2[i])
        yield Candidate(
            type="area", family=family, question=text, answer=answer, cell=("area", noun.name, where), value=answer
        )
    if noun.name != "field" and (i := nearest_bin(subject.size_m / CAR_M, COUNTS)) is not None:
        text, answer = say(f"fit/{noun.measure}", key, noun=noun.name), str(COUNTS[i])
        yield Candidate(
            type="fit", family=family, question=text, answer=answer, cell=("fit", noun.name, where), value=answer
        )


def claims_of_size(noun: Noun, size_m: float, gsd_m: float, key: str) -> Iterator[Candidate]:
    """Wider than? and: which of two sizes? Each against sizes two or three bins away.

    Of a pair of sizes, both must be possible at this GSD; then the smaller is right as often as the larger.
    """
    here = nearest_bin(size_m, LENGTHS_M)
    if here is None:
        return
    where = gsd_bin(gsd_m, CLAIM_BINS_PER_DECADE)
    thing = "fields" if noun.name == "field" else f"a {noun.name}" if noun.name != "island" else "an island"
    for other in (here + d for d in DISTANCES):
        low, high = min(here, other), max(here, other)
        if not 0 <= low < high < len(LENGTHS_M) or not both_possible(noun, LENGTHS_M[low], LENGTHS_M[high], gsd_m):
            continue
        value, cell = "low" if here == low else "high", (noun.name, low, high, where)
        small, large = length_text(LENGTHS_M[low]), length_text(LENGTHS_M[high])
        if noun.name != "field":
            size = length_text(LENGTHS_M[low + 1])
            yield Candidate(
                type="larger_than",
                family="scale_specific",
                question=say(f"larger/{noun.measure}", key + size, noun=noun.name, size=size),
                answer="yes" if value == "high" else "no",
                cell=("larger_than", *cell),
                value=value,
            )
        yield two_claims("which_size", key + small + large, (small, large), value, cell, noun, thing)


def claims_of_name(noun: Noun, size_m: float, gsd_m: float, key: str) -> Iterator[Candidate]:
    """A garden pond or a large lake? Each for every other name that is possible at this GSD."""
    here = name_at(noun, size_m)
    if here is None:
        return
    for other, (low_m, high_m, name) in enumerate(noun.names):
        middle = math.sqrt(low_m * high_m)
        if other == here or not both_possible(noun, middle, middle, gsd_m):
            continue
        pair = (noun.names[here][2], name) if here < other else (name, noun.names[here][2])
        cell = (noun.name, min(here, other), max(here, other), gsd_bin(gsd_m, CLAIM_BINS_PER_DECADE))
        yield two_claims("which_thing", key + name, pair, "low" if here < other else "high", cell, noun, "")


def both_possible(noun: Noun, low_m: float, high_m: float, gsd_m: float) -> bool:
    """Whether both sizes are in the noun's range and in the range of pixels that is asked about."""
    return (
        noun.smallest_m <= low_m
        and high_m <= noun.largest_m
        and low_m >= SMALLEST_PX * gsd_m
        and high_m <= LARGEST_PX * gsd_m
    )


def two_claims(
    kind: str, key: str, pair: tuple[str, str], value: str, cell: tuple[str | int, ...], noun: Noun, thing: str
) -> Candidate:
    """A question with claims (A) and (B); which of them stands first is a checksum of the image."""
    first = coin(key + kind)
    a, b = pair if first == 0 else pair[::-1]
    right = 0 if value == "low" else 1
    return Candidate(
        type=kind,
        family="discriminative",
        question=say(kind, key, noun=thing, a=a, b=b, measure=noun.measure),
        answer="AB"[right ^ first],
        cell=(kind, *cell),
        value=value,
    )
