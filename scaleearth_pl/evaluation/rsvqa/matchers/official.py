"""`official_binned`: equal after the official binning of both sides (Lobry et al. 2020; `metric.official_class`).

The official model is a classifier whose classes are binned answers: LR counts are 0, 1-10, 11-100, 101-1000 and more;
HR counts are exact; areas are 0 m2 and the same four bins in square metres. A model that was trained on those classes
may write them out ("between 10 and 100"), which is read as the class it names.
"""

from scaleearth_pl.evaluation.rsvqa.matchers.base import Case, Matcher
from scaleearth_pl.evaluation.rsvqa.metric import official_class


def _class(text: str, case: Case) -> str:
    return official_class(text, kind=case.type, dataset=case.dataset)


def score(case: Case) -> float:
    """1 where prediction and target fall into one class."""
    return float(case.prediction is not None and _class(case.prediction, case) == _class(case.target, case))


OFFICIAL_BINNED = Matcher(
    name="official_binned",
    what="counts (LR) and areas in bins",
    score=score,
    target_class=lambda case: _class(case.target, case),
)
