"""What can be resolved at a GSD: one table for the prompts that ask and for the filter that refuses.

    a noun is visible  <=>  gsd_m <= width_m / pixels

`width_m` is the object's critical (smallest) dimension as seen from above. `pixels` is how many of them the eye needs
across it: 2 for a compact thing, which is Johnson's criterion for detection at even odds (one line pair over the
critical dimension; J. Johnson, "Analysis of image forming systems", 1958), 1 or 0.5 for what is long and straight,
because the eye sums along it. The widths are ordinary sizes, written down by us; the price of one number a noun is
that contrast and shadows are ignored, so the table errs within a factor of two, a quarter of the way from tier to tier.

Prompts and filter share the table on purpose: a generator is never told that it may ask what the filter then drops.
"""

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import StringIO

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import check_gsd_m

COLUMNS = ("noun", "aliases", "width_m", "pixels", "note")
TOLERANCE = 1.0001
"""Slack of the comparison, so that 0.1 + 0.2 does not decide what is visible."""


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One row: an object, the words for it, and the coarsest GSD (metres per pixel) that still shows it."""

    noun: str
    words: tuple[str, ...]
    max_gsd_m: float

    def visible(self, gsd_m: float) -> bool:
        """True where an image of this GSD resolves the object."""
        return gsd_m <= self.max_gsd_m * TOLERANCE


@cache
def nouns() -> tuple[Noun, ...]:
    """The shipped table `visibility.csv`, finest objects first.

    Raises:
        ConfigError: a column is missing, a number is not positive, or a word stands in two rows.
    """
    text = files("scaleearth_pl.prepare").joinpath("visibility.csv").read_text(encoding="utf-8")
    return parse_nouns(text)


def parse_nouns(text: str) -> tuple[Noun, ...]:
    """Rows of a table in the format of `visibility.csv`; raises as `nouns` does."""
    reader = csv.DictReader(StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError("visibility table has other columns", value=reader.fieldnames, remedy=f"use {COLUMNS}")
    rows, seen = [], set[str]()
    for row in reader:
        words = tuple(w.strip() for w in (row["noun"], *row["aliases"].split(";")) if w.strip())
        if seen & set(words):
            raise ConfigError("word stands in two rows", field="aliases", value=sorted(seen & set(words)))
        seen |= set(words)
        limit = check_gsd_m(float(row["width_m"]), field="width_m") / check_gsd_m(float(row["pixels"]), field="pixels")
        rows.append(Noun(noun=row["noun"], words=words, max_gsd_m=limit))
    return tuple(sorted(rows, key=lambda n: (n.max_gsd_m, n.noun)))


def nouns_in(text: str) -> tuple[Noun, ...]:
    """Objects that a text names, longest words first, so that "car park" is a parking lot and no car."""
    pattern, noun_of = _matcher()
    found = {noun_of[_singular(m[0].lower(), noun_of)].noun for m in pattern.finditer(text)}
    return tuple(n for n in nouns() if n.noun in found)


def unresolved_in(text: str, gsd_m: float) -> tuple[Noun, ...]:
    """Objects that a text names and that an image of `gsd_m` metres per pixel cannot show."""
    return tuple(n for n in nouns_in(text) if not n.visible(gsd_m))


def visible_and_not(gsd_m: float, *, at_most: int = 14) -> tuple[list[str], list[str]]:
    """Names of objects around the limit of a GSD: the finest that it shows, and the coarsest that it does not."""
    shown = [n.noun for n in nouns() if n.visible(check_gsd_m(gsd_m))]
    hidden = [n.noun for n in nouns() if not n.visible(gsd_m)]
    return shown[:at_most], hidden[-at_most:]


@cache
def _matcher() -> tuple[re.Pattern[str], dict[str, Noun]]:
    noun_of = {word: n for n in nouns() for word in n.words}
    words = sorted(noun_of, key=len, reverse=True)
    plurals = [re.escape(w[:-1]) + "(?:ys?|ies)" if w.endswith("y") else re.escape(w) + "(?:e?s)?" for w in words]
    # ASCII inside: without it IGNORECASE takes the Turkish dotless i for an i, which lower() does not.
    return re.compile(r"\b(?a:" + "|".join(plurals) + r")\b", re.IGNORECASE), noun_of


def _singular(word: str, noun_of: dict[str, Noun]) -> str:
    for form in (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"):
        if form in noun_of:
            return form
    raise AssertionError(f"the matcher found {word!r}, which is in no row")
