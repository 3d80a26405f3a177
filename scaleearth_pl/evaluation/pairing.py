"""Did two runs answer the same questions, and which rows belong together? What every paired difference rests on.

A question is known by its key, (image_id, qa_id); another build of a corpus may ask something else under the same key, so
question, answer and place are compared as well.
"""

from collections.abc import Iterable
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.predictions import Prediction

Key = tuple[str, str]
"""(image_id, qa_id)."""

Rows = Iterable[Prediction]


def differing(reference: Rows, rows: Rows) -> list[Key]:
    """Sorted keys that one side lacks; where both have the same, those with another question, answer or place."""
    mine, other = ({row.key: (row.question, row.answer, row.place_id) for row in side} for side in (reference, rows))
    return sorted(mine.keys() ^ other.keys()) or sorted(key for key in mine if mine[key] != other[key])


def refuse_other_questions(reference: Rows, rows: Rows, *, file: Path | str, remedy: str) -> None:
    """`ConfigError` unless `rows`, which stand in `file`, answer the questions of `reference`, in whatever order."""
    others = differing(reference, rows)
    if others:
        raise ConfigError(
            f"runs were not evaluated on the same questions: {len(others)} differ",
            file=file,
            field="(image_id, qa_id)",
            value=others[0],
            remedy=remedy,
        )


def in_order(rows: Rows, keys: Iterable[Key]) -> list[Prediction]:
    """The rows of these questions, in this order."""
    by_key = {row.key: row for row in rows}
    return [by_key[key] for key in keys]
