"""Our own answers (`predictions.jsonl`) as the matchers score anybody's.

    rsvqa_scores    every source under every matcher: for the rows of `scaleearth evaluate`
    score_rsvqa     under the official binning, exact match beside it: for `summary_details.json`

`scaleearth test` is teacher-forced: without text there is no official number (null), but exact match and the floors there
are. Only RSVQA's own questions enter (`metric.is_official`): those that a language model wrote about the same tiles
(`prepare.generate`) are left out, whatever their type.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.evaluation.rsvqa.columns import Columns
from scaleearth_pl.evaluation.rsvqa.matchers.official import OFFICIAL_BINNED
from scaleearth_pl.evaluation.rsvqa.metric import DATASETS, SOURCES, is_official
from scaleearth_pl.evaluation.rsvqa.rows import Answered, Table
from scaleearth_pl.evaluation.rsvqa.score import score_table, score_under_all

_COLUMNS = Columns(
    target="answer", prediction="prediction", type="type", question="question", source="source", id="qa_id"
)


def rsvqa_scores(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Scores of every RSVQA source's own questions under every matcher; {} where there is none, or no text."""
    by_source: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        if row.prediction is not None and _is_official(row):
            by_source[row.source].append(row)
    return {
        source: {
            name: score.as_json() for name, score in score_under_all(as_table(group), dataset=DATASETS[source]).items()
        }
        for source, group in sorted(by_source.items())
    }


def score_rsvqa(rows: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Official scores of every RSVQA source among the rows, with exact match and majority floors; [] without any.

    The majority floors are those of the evaluated questions themselves, under the official binning: the best that any
    constant answer per type can reach.
    """
    official = [row for row in rows if _is_official(row)]
    return [_official(source, some) for source in SOURCES if (some := [r for r in official if r.source == source])]


def as_table(rows: Sequence[Prediction]) -> Table:
    """Our own predictions as the scorers read anybody's."""
    answered = [
        Answered(
            line=number,
            target=row.answer.strip().lower(),
            prediction=row.prediction,
            type=row.type,
            question=row.question,
            source=row.source,
            id=row.qa_id,
        )
        for number, row in enumerate(rows, start=1)
    ]
    return Table(path=Path("predictions.jsonl"), columns=_COLUMNS, rows=answered, n_read=len(answered))


def _is_official(row: Prediction) -> bool:
    return is_official(source=row.source, kind=row.type, qa_id=row.qa_id)


def _official(source: str, rows: Sequence[Prediction]) -> dict[str, Any]:
    score = score_table(as_table(rows), OFFICIAL_BINNED, dataset=DATASETS[source])
    silent = {row.type for row in rows if row.prediction is None}
    types = {
        kind: {
            "n": found.n,
            "exact": sum(row.correct for row in rows if row.type == kind) / found.n,
            "official": None if kind in silent else found.score,
            "majority": found.majority,
            "majority_class": found.majority_class,
        }
        for kind, found in score.types.items()
    }
    return {
        "source": source,
        "n": score.n,
        "types": types,
        "aa": None if silent else score.aa,
        "oa": None if silent else score.oa,
        "exact_oa": sum(row.correct for row in rows if row.type in score.types) / score.n,
        "majority_aa": score.majority_aa,
        "majority_oa": score.majority_oa,
    }
