"""The things that are asked about, and the sizes in metres that they come in.

Sizes span up to four decades and are drawn log-uniformly, so that neither the pixels alone nor the GSD alone gives
away the metres: at every GSD a river may be 3 or 100 pixels wide, and 10 pixels may be 50 cm or 500 m.

Answers are the 1-2-5 series of lengths and counts and the 1-3 series of areas. A size near the border between two
answers is not asked (`MARGIN`): "about 20 m" should be arguable by a person with a ruler.
"""

import math
from dataclasses import dataclass

SMALLEST_PX, LARGEST_PX = 3.0, 110.0
"""Pixel sizes between which an object is asked about."""
MARGIN = 0.72
"""Share of a bin, around its middle on the log axis, in which a size is asked."""
CAR_M = 4.5


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A thing with a size.

    Attributes:
        measure: the word of its asked dimension, "wide" or "long".
        smallest_m: of the asked dimension; the range of sizes that places are composed with.
        largest_m: the other end.
        names: what such a thing is called at a size: (from, to, name with article), with gaps between neighbours.
    """

    name: str
    measure: str
    smallest_m: float
    largest_m: float
    areal: bool
    names: tuple[tuple[float, float, str], ...]


NOUNS = {
    noun.name: noun
    for noun in (
        Noun(
            name="road",
            measure="wide",
            smallest_m=0.8,
            largest_m=60,
            areal=False,
            names=((0.8, 2.0, "a footpath"), (2.8, 5.5, "a lane"), (7.5, 15, "a main road"), (20, 60, "a motorway")),
        ),
        Noun(
            name="river",
            measure="wide",
            smallest_m=0.4,
            largest_m=3000,
            areal=False,
            names=((0.4, 1.5, "a ditch"), (2.5, 9, "a stream"), (18, 110, "a river"), (250, 3000, "a great river")),
        ),
        Noun(
            name="lake",
            measure="long",
            smallest_m=0.4,
            largest_m=5000,
            areal=True,
            names=(
                (0.4, 3, "a puddle"),
                (6, 35, "a garden pond"),
                (80, 450, "a small lake"),
                (900, 5000, "a large lake"),
            ),
        ),
        Noun(
            name="roof",
            measure="long",
            smallest_m=1.6,
            largest_m=220,
            areal=False,
            names=((1.6, 5, "a shed"), (8, 18, "a house"), (28, 60, "a hall"), (90, 220, "a factory")),
        ),
        Noun(
            name="field",
            measure="wide",
            smallest_m=0.4,
            largest_m=1200,
            areal=False,
            names=((0.4, 4, "garden beds"), (8, 40, "small plots"), (80, 1200, "large fields")),
        ),
        Noun(
            name="forest",
            measure="long",
            smallest_m=6,
            largest_m=5000,
            areal=True,
            names=((6, 25, "a thicket"), (50, 350, "a small wood"), (700, 5000, "a large forest")),
        ),
        Noun(
            name="town",
            measure="long",
            smallest_m=150,
            largest_m=5000,
            areal=True,
            names=((150, 500, "a village"), (900, 5000, "a city")),
        ),
        Noun(
            name="island",
            measure="long",
            smallest_m=0.4,
            largest_m=5000,
            areal=True,
            names=((0.4, 3, "a rock"), (6, 35, "an islet"), (80, 450, "a small island"), (900, 5000, "a large island")),
        ),
        Noun(
            name="beach",
            measure="wide",
            smallest_m=2,
            largest_m=250,
            areal=False,
            names=((2, 7, "a narrow beach"), (14, 250, "a broad beach")),
        ),
    )
}

LENGTHS_M = tuple(m * 10.0**e for e in range(-1, 4) for m in (1, 2, 5))[1:]
AREAS_M2 = tuple(m * 10.0**e for e in range(8) for m in (1, 3))[:-1]
COUNTS = tuple(m * 10**e for e in range(3) for m in (1, 2, 5))


def length_text(metres: float) -> str:
    """0.2 -> "20 cm", 50 -> "50 m", 2000 -> "2 km"."""
    if metres < 0.99:
        return f"{metres * 100:.0f} cm"
    return f"{metres:.0f} m" if metres < 999 else f"{metres / 1000:.0f} km"


def area_text(square_metres: float) -> str:
    """Square metres below a hectare, hectares below a square kilometre, square kilometres above."""
    if square_metres < 9999:
        return f"{square_metres:.0f} m2"
    return f"{square_metres / 1e4:.0f} ha" if square_metres < 0.99e6 else f"{square_metres / 1e6:.0f} km2"


def nearest_bin(value: float, bins: tuple[float, ...], *, margin: float = MARGIN) -> int | None:
    """Index of the bin that holds `value` on the log axis; None near a border or outside the series."""
    position = [math.log(b) for b in bins]
    x = math.log(value)
    i = min(range(len(bins)), key=lambda k: abs(position[k] - x))
    side = i + 1 if x > position[i] else i - 1
    reach = abs(position[side] - position[i]) if 0 <= side < len(bins) else math.log(2)
    return i if abs(position[i] - x) <= margin * reach / 2 else None


def name_at(noun: Noun, size_m: float) -> int | None:
    """Index of the name that a thing of this size has, None in the gaps."""
    return next((i for i, (low, high, _) in enumerate(noun.names) if low <= size_m <= high), None)
