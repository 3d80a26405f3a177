"""Which key of a foreign predictions file holds what.

Keys are compared by their letters and digits only, in lower case: "Ground Truth", "ground-truth" and "groundTruth" are one.
Where no key has a known name, one with a telling word in it is taken ("qwen_prediction", "gt_label").

The trouble is `answer`: ground truth in most files, the model's answer in others (EarthDial writes the truth as
`annotation`, LLaVA's descendants leave it out). It is what the file's other keys do not hold: the prediction where the
truth has a name of its own, else the truth. Three more are told by what they hold: a `text` full of RSVQA's questions is the
question; of several keys that may be the type, the one is it that names RSVQA's types; and where no key of a data set's name
tells LR from HR, the source is a key that does: a split, or an image in a folder of that name. What was taken for what is
part of the report, and `--column` overrules it.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.rsvqa.types import OFFICIAL, set_of, type_name, type_of_question

NAMES: Mapping[str, tuple[str, ...]] = {
    "target": ("gt", "gtanswer", "gtanswers", "answergt", "gttext", "groundtruth", "groundtruthanswer", "annotation",
               "target", "targets", "targetanswer", "label", "labels", "solution", "reference", "references", "truth",
               "trueanswer", "correctanswer", "expected", "expectedanswer", "gold", "goldanswer", "gts"),
    "prediction": ("pred", "prediction", "predicted", "predanswer", "answerpred", "predictedanswer", "predict", "preds",
                   "predictions", "predtext", "output", "outputs", "outputtext", "response", "responses", "responsetext",
                   "modeloutput", "modelanswer", "modelresponse", "modelprediction", "modelpred", "generated",
                   "generatedtext", "generatedanswer", "generation", "completion", "reply", "hypothesis",
                   "filteredresps", "resps", "result", "text"),
    "type": ("type", "questiontype", "category", "vqatype", "ttype", "types", "qtype", "questioncategory", "subtask",
             "tasktype", "task"),
    "question": ("question", "questions", "prompt", "query", "instruction", "questiontext", "input", "text"),
    "source": ("source", "dataset", "datasource", "datasetname", "benchmark"),
    "id": ("questionid", "questionsidx", "qaid", "qid"),
}  # fmt: skip
"""Keys by meaning, the most explicit first, as letters and digits."""

_PLACES = ("split", "subset", "datasetsplit", "image", "imagepath", "imagefile", "imagename", "imageid", "img", "imgpath",
           "imgname", "imgid", "file", "filename", "path")  # fmt: skip
"""Keys whose values may name the data set by the way."""

_TELLING = {
    "target": frozenset({"gt", "truth", "groundtruth", "target", "gold", "expected"}),
    "prediction": frozenset({"pred", "prediction", "predicted", "output", "response", "generated", "completion"}),
    "type": frozenset({"type", "category"}),
    "question": frozenset({"question", "prompt"}),
    "source": frozenset({"dataset"}),
    "id": frozenset[str](),
}
_LOOK_AT = 500
"""Rows whose values are looked at, evenly spaced."""


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
    seen = rows[:: max(1, len(rows) // _LOOK_AT)]
    found: dict[str, str | None] = {meaning: _find(meaning, present, seen) for meaning in NAMES}
    for meaning, key in (chosen or {}).items():
        if key not in present:
            raise ConfigError(
                f"no row has the key chosen for {meaning}", file=file, value=key, remedy=f"keys are {sorted(present)}"
            )
        found[meaning] = key
    answer = next((key for key in present if _letters(key) in ("answer", "answers")), None)
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


def _find(meaning: str, present: Counter[str], seen: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of that meaning: by its name, else by a word in it; the commonest, the more explicit among equals."""
    by_letters = {_letters(key): key for key in reversed(present)}
    known = [by_letters[name] for name in NAMES[meaning] if name in by_letters]
    known = known or [key for key in present if _TELLING[meaning] & _words(key) and not _is_named(key)]
    if meaning == "type":
        named = {key: _share(key, seen, lambda text: type_name(text) in OFFICIAL) for key in known}
        return max(known, key=lambda key: (named[key], present[key]), default=None)
    if meaning == "source":
        places = [by_letters[name] for name in _PLACES if name in by_letters]
        tells = {key: _share(key, seen, lambda text: set_of(text) is not None) for key in (*known, *places)}
        known = [key for key in known if tells[key]] or [key for key in places if tells[key]] or known
        return max(known, key=lambda key: (tells[key], present[key]), default=None)
    asks = {key: _share(key, seen, lambda text: type_of_question(text) is not None) > 0.5 for key in known}
    if meaning == "question":
        return max(known, key=lambda key: (asks[key], _letters(key) != "text", present[key]), default=None)
    return max((key for key in known if not asks[key]), key=lambda key: present[key], default=None)


def _share(key: str, seen: Sequence[Mapping[str, Any]], good: Callable[[str], bool]) -> float:
    """Share of the rows looked at whose value under the key is a good text."""
    return sum(isinstance(row.get(key), str) and good(row[key]) for row in seen) / max(1, len(seen))


def _is_named(key: str) -> bool:
    return any(_letters(key) in names for names in NAMES.values())


def _letters(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _words(key: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))
