"""`exact`: equal after lower case and without outer spaces.

GeoChat's repository ships no RSVQA scorer; this is what the community runs on its outputs: the reported "Average" is
the mean of types, "Overall" the micro accuracy. "yes." is wrong, and so is "12 m2" for "12m2": no other repair is made.
"""

from scaleearth_pl.evaluation.rsvqa.matchers.base import Case, Matcher


def _plain(text: str) -> str:
    return text.strip().lower()


def score(case: Case) -> float:
    """1 where both texts are equal but for case and outer spaces."""
    return float(case.prediction is not None and _plain(case.prediction) == _plain(case.target))


EXACT = Matcher(
    name="exact", what="lower case, outer spaces", score=score, target_class=lambda case: _plain(case.target)
)
