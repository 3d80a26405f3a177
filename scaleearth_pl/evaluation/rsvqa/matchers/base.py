"""What a matcher is: a case in, a score out."""

from collections.abc import Callable
from dataclasses import dataclass

from scaleearth_pl.evaluation.rsvqa.types import Dataset

NUMERIC_TYPES = frozenset({"count", "area"})
"""Types whose answers are quantities; LHRS-Bot and EarthDial leave them out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One answered question.

    Attributes:
        target: ground truth as the data set spells it ("yes", "12", "10632m2").
        prediction: what the model wrote, untouched; None where it wrote nothing.
        type: presence, comp, count, area, rural_urban, or a type of the user's own.
        dataset: which data set's binning applies.
    """

    target: str
    prediction: str | None
    type: str
    dataset: Dataset


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """A published rule.

    Attributes:
        name: on the command line.
        what: one clause for tables.
        score: right (1), wrong (0), or something between.
        target_class: targets of one class share their fate; None for a target that no prediction can meet.
        skips: types that the repository does not score.
    """

    name: str
    what: str
    score: Callable[[Case], float]
    target_class: Callable[[Case], str | None]
    skips: frozenset[str] = frozenset()
