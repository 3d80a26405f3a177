"""Anybody's RSVQA predictions file, JSON or JSON lines, to cases; nothing is lost without being counted.

A row is dropped for one of the reasons in `DROPS`, and every repair is counted in `notes`. What is repaired is the
*container*, never the answer: a list of one answer is that answer, 12.0 is "12", true is "yes". The ground truth is
spelled as RSVQA spells it (lower case, no outer spaces), because two of the repositories compare with it as it stands; the
prediction reaches the matcher exactly as the model wrote it. A null prediction stays in: an answer that was not given is
wrong, not absent.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.columns import Columns, find_columns
from scaleearth_pl.evaluation.rsvqa.types import type_name, type_of_question

DROPS = {
    "not_json": "the line is not a JSON object",
    "no_target": "no ground truth",
    "several_targets": "ground truths that contradict each other",
    "no_type": "no type stated, and the question fits no template of RSVQA",
}
"""Reasons for which a row cannot be scored under any matcher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One row that can be scored. `source` and `id` are the file's own words, None where it has none."""

    line: int
    target: str
    prediction: str | None
    type: str
    question: str | None
    source: str | None
    id: str | None


@dataclass(kw_only=True)
class Table:
    """A file in memory: its rows and its books."""

    path: Path
    columns: Columns
    rows: list[Answered]
    n_read: int
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, line: int, value: object) -> None:
        """Counts a row that is left out; keeps the first example of each reason."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, f"row {line}: {str(value)[:120]}")


def read_table(path: Path, *, chosen: Mapping[str, str] | None = None) -> Table:
    """Reads a predictions file.

    Args:
        path: JSON (a list of objects, or an object that holds one) or JSON lines.
        chosen: meaning (target, prediction, type, question, source, id) to key, where the user knows better.

    Raises:
        ConfigError: unreadable, without a single object, or without truth or prediction.
    """
    found = _objects(path)
    rows = [row for row in found if row is not None]
    if not rows:
        raise ConfigError("no JSON object in the file", file=path, remedy="give JSON lines, or a JSON list of objects")
    columns = find_columns(rows, file=str(path), chosen=chosen)
    table = Table(path=path, columns=columns, rows=[], n_read=len(found))
    for line, row in enumerate(found, start=1):
        if row is None:
            table.drop("not_json", line, "")
            continue
        answered = _answered(row, line, table)
        if answered is not None:
            table.rows.append(answered)
    return table


def _answered(row: Mapping[str, Any], line: int, table: Table) -> Answered | None:
    columns, notes = table.columns, table.notes
    targets = _texts(row.get(columns.target), notes, "target")
    if len(set(targets)) != 1 or not targets[0].strip():
        reason = "several_targets" if len(set(targets)) > 1 else "no_target"
        table.drop(reason, line, row.get(columns.target))
        return None
    target = targets[0].strip().lower()
    notes["target_respelled"] += target != targets[0]
    question = _text(row, columns.question)
    stated = type_name(_text(row, columns.type) or "")
    type_ = stated or type_of_question(question or "")
    if type_ is None:
        table.drop("no_type", line, question)
        return None
    notes["type_from_question"] += not stated
    predictions = _texts(row.get(columns.prediction), notes, "prediction")
    notes["prediction_null"] += not predictions
    notes["prediction_empty"] += bool(predictions) and not "".join(predictions).strip()
    return Answered(
        line=line,
        target=target,
        prediction=", ".join(dict.fromkeys(predictions)) if predictions else None,
        type=type_,
        question=question,
        source=_text(row, columns.source),
        id=_text(row, columns.id),
    )


def _text(row: Mapping[str, Any], key: str | None) -> str | None:
    texts = _texts(row.get(key), Counter(), "") if key else []
    return texts[0] if texts else None


def _texts(value: Any, notes: Counter[str], what: str) -> list[str]:
    """A JSON value as texts: none for null, several only for a list of several."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        notes[f"{what}_list_unwrapped"] += 1
        return [text for item in value for text in _texts(item, notes, what)]
    if isinstance(value, dict):
        notes[f"{what}_object_unwrapped"] += 1
        key = next((key for key in ("answer", "text", "content", "value") if key in value), None)
        return [json.dumps(value)] if key is None else _texts(value[key], notes, what)
    notes[f"{what}_not_text"] += 1
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(int(value)) if float(value).is_integer() else str(value)]


def _objects(path: Path) -> list[dict[str, Any] | None]:
    """Every row of the file, None for one that is no object."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"predictions file cannot be read: {error}", file=path) from error
    try:
        return list(_of_document(json.loads(text)))
    except ValueError:
        return [_of_line(line) for line in text.splitlines() if line.strip()]


def _of_line(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _of_document(document: Any) -> Iterator[dict[str, Any] | None]:
    """Rows of a whole-file document: a list, an object around a list, an object of objects, or one row."""
    if isinstance(document, dict):
        lists: Sequence[Any] = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if lists:
            document = max(lists, key=len)
        elif document and all(isinstance(v, dict) for v in document.values()):
            document = list(document.values())
        else:
            document = [document]
    for row in document if isinstance(document, list) else [None]:
        yield row if isinstance(row, dict) else None
