"""`internvl`: InternVL's `rs_vqa/score.py`, as it behaves.

- Everything but count and area: equal in lower case; spaces are *not* stripped, an empty or null response is wrong.
- count: both through Python's `int` (so " 12 " and "1_000" are numbers, "12.0" and "twelve" are wrong), then bins 0,
  1-100, 101-1000, more: coarser than the official ones. A null response counts as 0, so it is right where nothing is.
- area: the target loses its unit by stripping the *characters* m and 2 from its end, which eats trailing digits:
  "10632m2" becomes 1063 and "22m2" nothing at all (wrong whatever is answered). The response keeps its unit, so that
  "10632m2" is no integer and wrong; a bare "0" is right for "0m2".
- Negative numbers fall into no bin. The repository prints the total and the total without count and area, rounded to
  four digits; `aa` is ours.
"""

from scaleearth_pl.evaluation.rsvqa.matchers.base import Case, Matcher

BINS = ("0", "(0,100]", "(100,1000]", ">1000")


def _bin(number: int) -> str | None:
    if number < 0:
        return None
    return next(name for name, top in zip(BINS, (0, 100, 1000, number), strict=True) if number <= top)


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _target_class(case: Case) -> str | None:
    if case.type not in ("count", "area"):
        return case.target.lower()
    number = _integer(case.target.rstrip("m2") if case.type == "area" else case.target)
    return None if number is None else _bin(number)


def score(case: Case) -> float:
    """1 where equal, or of one bin; see the module's text for what that does."""
    wanted = _target_class(case)
    if case.type not in ("count", "area"):
        return float(bool(case.prediction) and case.prediction is not None and case.prediction.lower() == wanted)
    number = 0 if case.prediction is None else _integer(case.prediction)
    return float(number is not None and wanted is not None and _bin(number) == wanted)


INTERNVL = Matcher(
    name="internvl", what="lower case; bins 0, 100, 1000; area by rstrip", score=score, target_class=_target_class
)
