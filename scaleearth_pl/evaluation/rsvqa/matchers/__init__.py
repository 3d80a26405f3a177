"""Five ways in which published repositories decide that an RSVQA answer is right; one file each, quirks included.

    matcher           side of the answer that is changed          types left out    a null prediction
    official_binned   both: numbers and areas into bins           -                 wrong
    exact             both: lower case, outer spaces              -                 wrong
    lhrs              prediction only: VQA normalisation          count, area       wrong
    earthdial         both: spaces removed, then word tokens      count, area       wrong
    internvl          both: count and area into bins              -                 zero in count and area, else wrong

The same predictions get different numbers from each, so a number without its matcher says little. A matcher gives a
score in [0, 1] per question (EarthDial's is a recall, the others are 0 or 1), and the *class* of a target: what the
majority floor counts. Two targets of one class are right or wrong together.
"""

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.matchers.base import Case, Matcher
from scaleearth_pl.evaluation.rsvqa.matchers.earthdial import EARTHDIAL
from scaleearth_pl.evaluation.rsvqa.matchers.exact import EXACT
from scaleearth_pl.evaluation.rsvqa.matchers.internvl import INTERNVL
from scaleearth_pl.evaluation.rsvqa.matchers.lhrs import LHRS
from scaleearth_pl.evaluation.rsvqa.matchers.official import OFFICIAL_BINNED

__all__ = ["MATCHERS", "Case", "Matcher", "matcher"]

MATCHERS = {m.name: m for m in (OFFICIAL_BINNED, EXACT, LHRS, EARTHDIAL, INTERNVL)}
"""All matchers by name."""


def matcher(name: str) -> Matcher:
    """The matcher of that name; `ConfigError` lists them all."""
    if name not in MATCHERS:
        raise ConfigError("no such matcher", field="matcher", value=name, remedy=f"use one of {', '.join(MATCHERS)}")
    return MATCHERS[name]
