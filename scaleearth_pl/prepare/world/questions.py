"""Candidate questions about one image; `balance.py` decides which of them are asked.

Three families:

- *scale_specific*: how wide, how long, what area, how many cars fit, wider than? The answer is pixels x GSD.
- *discriminative*: two claims that would both be plausible at this GSD; the pixels decide. The answer is the claim
  itself and not its letter: a letter would add a riddle of position to a question of size, which small models fail.
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
AROUND = (-4, -2, 2, 4)
"""Bins between the two sizes that a threshold lies in the middle of. Even: "over 20 m?" then has one middle on the
1-2-5 series, the same whichever size is right, and no image is asked about one threshold twice."""


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
    """Wider than? and: which of two sizes?

    Of a pair of sizes, both must be possible at this GSD; then the smaller is right as often as the larger.
    """
    here = nearest_bin(size_m, LENGTHS_M)
    if here is None:
        return
    where = gsd_bin(gsd_m, CLAIM_BINS_PER_DECADE)
    for low, high in size_pairs(noun, here, AROUND if noun.name != "field" else (), gsd_m):
        value, size = "low" if here == low else "high", length_text(LENGTHS_M[(low + high) // 2])
        yield Candidate(
            type="larger_than",
            family="scale_specific",
            question=say(f"larger/{noun.measure}", key + size, noun=noun.name, size=size),
            answer="yes" if value == "high" else "no",
            cell=("larger_than", noun.name, low, high, where),
            value=value,
        )
    for low, high in size_pairs(noun, here, DISTANCES, gsd_m):
        value, pair = "low" if here == low else "high", (length_text(LENGTHS_M[low]), length_text(LENGTHS_M[high]))
        yield two_claims("which_size", key + "".join(pair), pair, value, (noun.name, low, high, where), noun)


def size_pairs(noun: Noun, here: int, distances: tuple[int, ...], gsd_m: float) -> Iterator[tuple[int, int]]:
    """Bins (low, high), one of which is `here`, that are both possible at this GSD."""
    for other in (here + d for d in distances):
        low, high = min(here, other), max(here, other)
        inside = 0 <= low < high < len(LENGTHS_M)
        if inside and both_possible(noun, LENGTHS_M[low], LENGTHS_M[high], gsd_m):
            yield low, high


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
        yield two_claims("which_thing", key + name, pair, "low" if here < other else "high", cell, noun)


def both_possible(noun: Noun, low_m: float, high_m: float, gsd_m: float) -> bool:
    """Whether both sizes are in the noun's range and in the range of pixels that is asked about."""
    return (
        noun.smallest_m <= low_m
        and high_m <= noun.largest_m
        and low_m >= SMALLEST_PX * gsd_m
        and high_m <= LARGEST_PX * gsd_m
    )


def two_claims(
    kind: str, key: str, pair: tuple[str, str], value: str, cell: tuple[str | int, ...], noun: Noun
) -> Candidate:
    """A question that names two claims, the answer being one of them; which stands first is a checksum of the image."""
    field = noun.name == "field"
    a, b = pair[::-1] if coin(key + kind) else pair
    template = f"{kind}/fields" if field and kind == "which_thing" else kind
    return Candidate(
        type=kind,
        family="discriminative",
        question=say(template, key, noun="a field" if field else f"the {noun.name}", a=a, b=b, measure=noun.measure),
        answer=without_article(pair[0 if value == "low" else 1]),
        cell=(kind, *cell),
        value=value,
    )


def without_article(name: str) -> str:
    """The bare name: "islet" for "an islet"."""
    return name.removeprefix("an ").removeprefix("a ")
