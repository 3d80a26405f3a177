"""Anybody's RSVQA predictions file to cases; nothing is lost without being counted.

A row is dropped for one of the reasons in `DROPS`, and every repair is counted in `notes`. What is repaired is the
*container*, never the answer: a list of one answer is that answer, 12.0 is "12", true is "yes". A table (CSV, TSV) holds
texts only, so there "12.0" is 12 in the rows whose ground truth is written so, too, and in all if every prediction of
the file is (pandas does that to a column of numbers with a gap); in JSON the text "12.0" is a text. The ground truth is
spelled as RSVQA spells it (lower case, no outer spaces, whole numbers without a point), because two of the repositories
compare with it as it stands; but for that, the prediction reaches the matcher exactly as the model wrote it. A null
prediction stays in: an answer that was not given is wrong, not absent. Rows that ask the same question twice all count,
and are noted.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.columns import Columns, find_columns
from scaleearth_pl.evaluation.rsvqa.files import read_objects
from scaleearth_pl.evaluation.rsvqa.types import OFFICIAL, type_name, type_of_question, type_of_target

DROPS = {
    "not_json": "the line is not a JSON object",
    "other_list": "in a list whose objects lack ground truth or prediction, or name them otherwise than a longer list",
    "no_target": "no ground truth",
    "several_targets": "ground truths that contradict each other",
    "no_type": "no type stated, and neither question nor ground truth gives one of RSVQA's away",
}
"""Reasons for which a row cannot be scored under any matcher."""

_WHOLE = re.compile(r"([0-9]+)\.0+")
_DEEPEST = 20


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
    """A file in memory: its rows and its books.

    `of_cells` where it is CSV or TSV, which know no numbers; `of_floats` where its predictions were numbers with a gap.
    """

    path: Path
    columns: Columns
    rows: list[Answered]
    n_read: int
    of_cells: bool = False
    of_floats: bool = False
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
        path: anything that `files.read_objects` takes: JSON, JSON lines, CSV, gzip.
        chosen: meaning (target, prediction, type, question, source, id) to key, where the user knows better.

    Raises:
        ConfigError: unreadable, without a single row, without truth or prediction, or with no row that can be scored.
    """
    found = read_objects(path, chosen=chosen)
    columns = find_columns([row for row in found.rows if row is not None], file=str(path), chosen=chosen)
    table = Table(
        path=path,
        columns=columns,
        rows=[],
        n_read=(n_read := len(found.rows) + len(found.ignored)),
        of_cells=found.of_cells,
        of_floats=found.of_cells and _all_floats(row.get(columns.prediction) for row in found.rows if row is not None),
        notes=found.notes,
    )
    for line, row in enumerate(found.rows, start=1):
        if row is None:
            table.drop("not_json", line, "")
            continue
        answered = _answered(row, line, table)
        if answered is not None:
            table.rows.append(answered)
    for line, row in enumerate(found.ignored, start=len(found.rows) + 1):
        table.drop("other_list", line, sorted(row))
    if not table.rows:
        raise ConfigError(
            f"none of {n_read} rows can be scored: {dict(table.dropped)}",
            file=path,
            field="columns",
            value=columns.as_json(),
            remedy="name the keys with --column MEANING=KEY",
        )
    seen = Counter((row.source, row.id, row.question) for row in table.rows if row.id)
    table.notes["asked_again"] = sum(seen.values()) - len(seen)
    return table


def _answered(row: Mapping[str, Any], line: int, table: Table) -> Answered | None:
    columns, notes = table.columns, table.notes
    stated = _texts(row.get(columns.target), notes, "target")
    targets = {_as_rsvqa(text) for text in stated}
    if len(targets) != 1 or not (target := targets.pop()):
        table.drop("several_targets" if targets else "no_target", line, row.get(columns.target))
        return None
    notes["target_respelled"] += target != stated[0]
    question = _text(row, columns.question)
    type_ = _type(_text(row, columns.type), question, target, notes)
    if type_ is None:
        table.drop("no_type", line, question)
        return None
    predictions = _texts(row.get(columns.prediction), notes, "prediction")
    if table.of_floats or (table.of_cells and any(_WHOLE.fullmatch(text.strip()) for text in stated)):
        predictions = [_whole(text, notes) for text in predictions]
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


def _all_floats(cells: Iterable[Any]) -> bool:
    """Whether there are cells that are not empty, and all of them are whole numbers with a point."""
    filled = [cell for cell in cells if cell is not None and str(cell).strip()]
    return bool(filled) and all(_WHOLE.fullmatch(str(cell).strip()) for cell in filled)


def _as_rsvqa(target: str) -> str:
    plain = target.strip().lower()
    whole = _WHOLE.fullmatch(plain)
    return whole[1] if whole else plain


def _whole(prediction: str, notes: Counter[str]) -> str:
    """A prediction out of a column of numbers: 12.0 is 12."""
    whole = _WHOLE.fullmatch(prediction.strip())
    notes["prediction_respelled"] += whole is not None
    return whole[1] if whole else prediction


def _type(stated: str | None, question: str | None, target: str, notes: Counter[str]) -> str | None:
    """The type as stated, if it is one of RSVQA's; else the question's, the stated one, the truth's, in this order."""
    name = type_name(stated or "")
    if name in OFFICIAL:
        return name
    from_question = type_of_question(question or "")
    notes["type_from_question"] += from_question is not None
    if from_question or name:
        return from_question or name
    from_target = type_of_target(target)
    notes["type_from_target"] += from_target is not None
    return from_target


def _text(row: Mapping[str, Any], key: str | None) -> str | None:
    texts = _texts(row.get(key), Counter(), "") if key else []
    return texts[0] if texts else None


def _texts(value: Any, notes: Counter[str], what: str, depth: int = 0) -> list[str]:
    """A JSON value as texts: none for null, several only for a list of several; too deep a nest is a text of its own."""
    if isinstance(value, str):
        return [value]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if depth > _DEEPEST:
        return ["(nested too deeply)"]
    if isinstance(value, list):
        notes[f"{what}_list_unwrapped"] += 1
        return [text for item in value for text in _texts(item, notes, what, depth + 1)]
    if isinstance(value, dict):
        notes[f"{what}_object_unwrapped"] += 1
        key = next((key for key in ("answer", "text", "content", "value") if key in value), None)
        return [_dumped(value)] if key is None else _texts(value[key], notes, what, depth + 1)
    notes[f"{what}_not_text"] += 1
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)]


def _dumped(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "(nested too deeply)"
