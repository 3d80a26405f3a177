"""Which key of a foreign predictions file holds what.

The trouble is `answer`: ground truth in most files, the model's answer in others (EarthDial writes the truth as
`annotation`, LLaVA's descendants leave it out). It is what the file's other keys do not hold: the prediction where the
truth has a name of its own, else the truth. What was taken for what is part of the report.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaleearth_pl.core.errors import ConfigError

NAMES: Mapping[str, tuple[str, ...]] = {
    "target": ("gt", "gt_answer", "gt_answers", "ground_truth", "groundtruth", "ground truth", "annotation", "target",
               "targets", "label", "labels", "solution", "reference", "true_answer", "correct_answer"),
    "prediction": ("pred", "prediction", "predicted", "pred_answer", "predicted_answer", "output", "outputs", "response",
                   "model_output", "model_answer", "model_response", "generated", "generated_text", "generation", "text"),
    "type": ("type", "question_type", "category", "vqa_type", "ttype", "types", "q_type", "qtype", "task"),
    "question": ("question", "questions", "prompt", "query", "instruction"),
    "source": ("source", "dataset", "data_source"),
    "id": ("question_id", "questions_idx", "qa_id"),
}  # fmt: skip
"""Keys by meaning, the most explicit first; compared in lower case."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The file's own key for each meaning; None where it has none. `target` and `prediction` are always there."""

    target: str
    prediction: str
    type: str | None
    question: str | None
    source: str | None
    id: str | None

    def as_json(self) -> dict[str, str]:
        """Meaning to key, for the report."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}


def find_columns(rows: Sequence[Mapping[str, Any]], *, file: str, chosen: Mapping[str, str] | None = None) -> Columns:
    """Reads the meaning of a file's keys off all its rows.

    Args:
        rows: objects of the file.
        file: for messages.
        chosen: meaning to key, where the user knows better.

    Raises:
        ConfigError: no key for truth or prediction, or a chosen key that no row has.
    """
    present = Counter(key for row in rows for key in row)
    found: dict[str, str | None] = {meaning: _commonest(names, present) for meaning, names in NAMES.items()}
    for meaning, key in (chosen or {}).items():
        if key not in present:
            raise ConfigError(
                f"no row has the key chosen for {meaning}", file=file, value=key, remedy=f"keys are {sorted(present)}"
            )
        found[meaning] = key
    answer = next((key for key in present if key.lower() in ("answer", "answers")), None)
    for missing, other in (("target", "prediction"), ("prediction", "target")):
        if found[missing] is None and found[other] is not None and answer not in (None, found[other]):
            found[missing] = answer
    target, prediction = found["target"], found["prediction"]
    if target is None or prediction is None:
        raise ConfigError(
            f"no key of the file holds the {'ground truth' if target is None else 'prediction'}",
            file=file,
            field="columns",
            value=sorted(present),
            remedy="name it with --column target=KEY or --column prediction=KEY",
        )
    return Columns(
        target=target,
        prediction=prediction,
        type=found["type"],
        question=found["question"],
        source=found["source"],
        id=found["id"],
    )


def _commonest(names: Iterable[str], present: Counter[str]) -> str | None:
    """The key of these names that most rows have; the more explicit one among equals."""
    by_lower = {key.lower(): key for key in present}
    known = [by_lower[name] for name in names if name in by_lower]
    return max(known, key=lambda key: present[key], default=None)
