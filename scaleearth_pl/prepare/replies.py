"""What generators and auditors must reply, as JSON schemas for the server and as checks of what comes back.

One pydantic model gives both, so the two cannot drift apart. The schemas use nothing but types, required fields and
"no others", the part of JSON Schema that guided decoding in vLLM and the strict modes of OpenAI and Claude share;
lengths and spellings are the filter's business. A free-text field stands before the field it should inform: a model
that decodes from left to right looks before it asks, and gives its reason before its verdict.
"""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

AXES = ("answerable", "right_for_scale", "consistent", "well_formed")
"""Axes of the audit, as in the paper's pipeline (C)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class GeneratedPair(_Strict):
    """One question with its answer; `options` is empty for an open question."""

    evidence: str
    question: str
    answer: str
    options: list[str]
    type: str


class GeneratedPairs(_Strict):
    """Reply to a request for questions; may be empty."""

    pairs: list[GeneratedPair]


class Verdict(_Strict):
    """One axis of one pair."""

    reason: str
    passes: bool


class PairVerdict(_Strict):
    """The four axes of the pair with this number."""

    pair: int
    answerable: Verdict
    right_for_scale: Verdict
    consistent: Verdict
    well_formed: Verdict


class AuditVerdicts(_Strict):
    """Reply to a request to audit."""

    verdicts: list[PairVerdict]


def reply_schema(model: type[BaseModel]) -> tuple[str, dict[str, Any]]:
    """Name and JSON schema to send along; `$ref` is written out, since not every server follows it."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict) and "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        if isinstance(node, dict):
            return {k: resolve(v) for k, v in node.items() if k not in ("title", "description")}
        return [resolve(x) for x in node] if isinstance(node, list) else node

    return model.__name__, resolve(schema)


def parse_pairs(identity: str, text: str) -> dict[str, Any]:
    """Reply to the record's `qas`, ids from the record's; `ValueError` where the reply does not obey the schema."""
    pairs = GeneratedPairs.model_validate_json(text).pairs
    rows = [
        {
            "id": f"{identity[:16]}-{k}",
            "type": pair.type.strip().lower(),
            "question": " ".join(pair.question.split()),
            "answer": " ".join(pair.answer.split()),
            "options": [" ".join(option.split()) for option in pair.options] or None,
            "evidence": " ".join(pair.evidence.split()),
        }
        for k, pair in enumerate(pairs)
    ]
    return {"qas": rows}


def parse_verdicts(question_ids: Sequence[str], text: str) -> dict[str, Any]:
    """Reply to the record's `verdicts`; `ValueError` unless every pair is judged exactly once."""
    verdicts = AuditVerdicts.model_validate_json(text).verdicts
    numbers = [verdict.pair for verdict in verdicts]
    if sorted(numbers) != list(range(len(question_ids))):
        raise ValueError(f"{len(question_ids)} pairs were to be judged, the verdicts are for {json.dumps(numbers)}")
    rows = []
    for verdict in sorted(verdicts, key=lambda v: v.pair):
        axes = {axis: getattr(verdict, axis).model_dump() for axis in AXES}
        rows.append({"question_id": question_ids[verdict.pair], **axes})
    return {"verdicts": rows}
