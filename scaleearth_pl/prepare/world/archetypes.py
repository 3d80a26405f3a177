"""The landscapes of the procedural Earth, and the sizes that things have in them."""

from dataclasses import dataclass

from scaleearth_pl.prepare.world.nouns import NOUNS


@dataclass(frozen=True, kw_only=True)
class Archetype:
    """What a landscape is made of: its ground, the nouns one may ask about, the share of cells with a tree."""

    base: str
    nouns: tuple[str, ...]
    trees: float = 0.0
    weight: float = 1.0


ARCHETYPES = {
    "farmland": Archetype(
        base="field", nouns=("field", "road", "river", "lake", "roof", "forest", "town"), trees=0.05, weight=2.5
    ),
    "village": Archetype(base="field", nouns=("road", "roof", "lake", "river", "town", "field"), trees=0.12),
    "city": Archetype(base="grass", nouns=("roof", "lake", "river", "road"), trees=0.2, weight=1.2),
    "forest": Archetype(base="trees", nouns=("road", "river", "lake", "roof"), weight=1.2),
    "heath": Archetype(base="grass", nouns=("river", "lake", "road", "roof", "forest", "town"), trees=0.16),
    "desert": Archetype(base="soil", nouns=("road", "lake", "roof", "river", "field", "town"), trees=0.02),
    "coast": Archetype(base="grass", nouns=("beach", "road", "roof", "lake", "forest"), trees=0.1),
    "islands": Archetype(base="water", nouns=("island",), trees=0.3, weight=0.8),
}
CITY_SMALLEST_M = {"roof": 28.0, "river": 25.0, "road": 14.0}
"""In a city smaller ones would be lost among the lots."""


def size_range(label: str, noun: str) -> tuple[float, float]:
    """Sizes of the asked dimension that this landscape has."""
    smallest = NOUNS[noun].smallest_m
    return (CITY_SMALLEST_M.get(noun, smallest) if label == "city" else smallest), NOUNS[noun].largest_m
