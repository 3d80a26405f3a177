"""Cases to scores: per type, AA, OA, floors, and the numbers that each repository itself would print.

AA is the unweighted mean over the types that the matcher scores, OA the mean over their questions. Beside each stands the
majority floor: the share of the commonest class of targets, which is the best that a constant answer per type reaches.
For `lhrs` the constant "" does better still (everything contains it), so the score of an empty answer is printed too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS, Case, Matcher
from scaleearth_pl.evaluation.rsvqa.matchers.base import NUMERIC_TYPES
from scaleearth_pl.evaluation.rsvqa.rows import Answered, Table
from scaleearth_pl.evaluation.rsvqa.types import LR_TYPES, Dataset, set_of

KNOWN_SIZES = {(10_004, LR_TYPES): "LR test, all types", (7_057, LR_TYPES - {"count"}): "LR test without count"}
"""Numbers of questions, with their types, that give a split away."""

_HR_COUNTS_END = 89
"""The official HR vocabulary has no larger count; LR's go to thousands."""

_NUMBER = re.compile(r"\d{1,18}")
_BOTH = (
    "types of both sets, and no key that tells a row's: exact counts are the stricter reading; score the sets apart, or name "
    "the key with --column source=KEY"
)


@dataclass(frozen=True, kw_only=True)
class TypeScore:
    """One question type under one matcher; shares in [0, 1]."""

    n: int
    score: float
    majority: float
    majority_class: str | None
    empty_answer: float


@dataclass(frozen=True, kw_only=True)
class MatcherScore:
    """One file under one matcher. `skipped` counts questions of types that the repository leaves out.

    `repository` holds what the repository prints, under its own names and rounding.
    """

    matcher: str
    dataset: Dataset
    dataset_from: str
    n: int
    skipped: dict[str, int]
    types: dict[str, TypeScore]
    aa: float | None
    oa: float | None
    majority_aa: float | None
    majority_oa: float | None
    repository: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def dataset_of(table: Table, stated: Literal["lr", "hr", "auto"] = "auto") -> tuple[Dataset, str]:
    """(LR or HR, what says so). Only counts are scored differently, so a file without counts cannot be wrong.

    Evidence, strongest first: the user's word; a key whose values name the set (a source, a split, an image's folder); types
    that only one set has; the file's name; a count that HR's vocabulary does not hold. Without any, and where the types are
    those of both sets: HR, whose counts are exact, which is the stricter reading. Where the key names both, each row goes by
    its own and the commoner is reported.
    """
    types = {row.type for row in table.rows}
    sources = Counter(row.source for row in table.rows if row.source)
    named = Counter[Dataset]()
    for source, n in sources.items():
        if (which := set_of(source)) is not None:
            named[which] += n
    counts = [int(row.target) for row in table.rows if row.type == "count" and _NUMBER.fullmatch(row.target)]
    evidence: list[tuple[Dataset | None, str]] = [
        (None if stated == "auto" else stated, "stated"),
        (
            named.most_common(1)[0][0] if named else None,
            f"the key {table.columns.source!r}{', row by row' * (len(named) > 1)}",
        ),
        ("hr" if types >= {"area", "rural_urban"} else None, _BOTH),
        ("lr" if "rural_urban" in types else "hr" if "area" in types else None, "types that only it has"),
        (set_of(table.path.name), "the file's name"),
        ("lr" if max(counts, default=0) > _HR_COUNTS_END else None, "a count beyond HR's vocabulary"),
        ("hr", "nothing in the file; exact counts are the stricter reading, --dataset lr bins them"),
    ]
    return next((which, why) for which, why in evidence if which is not None)


def score_table(table: Table, matcher: Matcher, *, dataset: Literal["lr", "hr", "auto"] = "auto") -> MatcherScore:
    """Scores a file; raises `ConfigError` where the matcher leaves nothing to score."""
    which, evidence = dataset_of(table, dataset)
    by_type: dict[str, list[Case]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for row in table.rows:
        if row.type in matcher.skips:
            skipped[row.type] += 1
        else:
            own = set_of(row.source) if dataset == "auto" and row.source else None
            by_type[row.type].append(_case(row, own or which))
    if not by_type:
        raise ConfigError(
            "no question is left to score", file=table.path, field="matcher", value=matcher.name, remedy="use another"
        )
    types = {name: _score_type(cases, matcher) for name, cases in sorted(by_type.items())}
    n = sum(t.n for t in types.values())
    return MatcherScore(
        matcher=matcher.name,
        dataset=which,
        dataset_from=evidence,
        n=n,
        skipped=dict(sorted(skipped.items())),
        types=types,
        aa=sum(t.score for t in types.values()) / len(types),
        oa=sum(t.n * t.score for t in types.values()) / n,
        majority_aa=sum(t.majority for t in types.values()) / len(types),
        majority_oa=sum(t.n * t.majority for t in types.values()) / n,
        repository=repository_numbers(matcher.name, types),
    )


def score_under_all(table: Table, *, dataset: Literal["lr", "hr", "auto"] = "auto") -> dict[str, MatcherScore]:
    """The scores of a file by matcher, without those that leave all of its types out."""
    types = {row.type for row in table.rows}
    return {name: score_table(table, rule, dataset=dataset) for name, rule in MATCHERS.items() if types - rule.skips}


def repository_numbers(name: str, types: dict[str, TypeScore]) -> dict[str, Any]:
    """What the repository of this matcher prints for these scores, in its words."""
    text = {k: t for k, t in types.items() if k not in NUMERIC_TYPES}
    if name == "internvl":
        return {
            "type_scores": {k: round(t.score, 4) for k, t in types.items()},
            "total_score": round(_micro(types), 4),
            "total_score_useful": round(_micro(text), 4),
        }
    if name == "earthdial":
        return {k: round(types[k].score, 4) for k in ("comp", "presence", "rural_urban") if k in types}
    if name == "lhrs":
        return {**{k: 100 * t.score for k, t in types.items()}, "Total": 100 * _micro(types)}
    if name == "exact":
        return {"Average": sum(t.score for t in types.values()) / len(types), "Overall": _micro(types)}
    return {"AA": sum(t.score for t in types.values()) / len(types), "OA": _micro(types)}


def _case(row: Answered, dataset: Dataset) -> Case:
    return Case(target=row.target, prediction=row.prediction, type=row.type, dataset=dataset)


def _micro(types: dict[str, TypeScore]) -> float:
    n = sum(t.n for t in types.values())
    return sum(t.n * t.score for t in types.values()) / n if n else 0.0


def _score_type(cases: Sequence[Case], matcher: Matcher) -> TypeScore:
    classes = Counter(c for case in cases if (c := matcher.target_class(case)) is not None)
    commonest, count = min(classes.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
    empty = (Case(target=c.target, prediction="", type=c.type, dataset=c.dataset) for c in cases)
    return TypeScore(
        n=len(cases),
        score=sum(matcher.score(case) for case in cases) / len(cases),
        majority=count / len(cases),
        majority_class=commonest,
        empty_answer=sum(matcher.score(case) for case in empty) / len(cases),
    )
