"""Answers as OpenAI's clients read them, whole or as server-sent events, with `scaleearth` beside them.

`scaleearth` is `ScaleUsed` as a dictionary (`scale.py`): which GSD the gate was told, on whose word, how sure, and what
SSE-U reads; a client that does not know it does not see it.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scaleearth_pl.serving.query import Answer


@dataclass(frozen=True, kw_only=True)
class ReplyHead:
    """What all parts of one reply share."""

    model: str
    notes: Sequence[str] = ()
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def row(self, kind: str) -> dict[str, Any]:
        """The common fields."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def completion(head: ReplyHead, answers: Sequence[Answer]) -> dict[str, Any]:
    """A whole reply: one choice for each question, in order."""
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": answer.text},
            "finish_reason": finish_reason(answer),
            "logprobs": None,
        }
        for number, answer in enumerate(answers)
    ]
    extra = {"usage": usage(answers), "scaleearth": scale_row(head, answers)}
    return head.row("chat.completion") | {"choices": choices} | extra


def finish_reason(answer: Answer) -> str:
    """OpenAI's words: "stop", or "length" where `max_tokens` cut the answer."""
    return "stop" if answer.complete else "length"


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens as each question would have taken alone; the image is computed once all the same."""
    prompt, new = sum(a.n_prompt_tokens for a in answers), sum(a.n_new_tokens for a in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def scale_row(head: ReplyHead, answers: Sequence[Answer]) -> dict[str, Any]:
    """The scale that was used, and notes on the request."""
    scale = asdict(answers[0].scale)
    return scale | {"notes": [*scale["notes"], *head.notes]}


def chunk(head: ReplyHead, index: int, delta: dict[str, str], finish: str | None = None, **extra: Any) -> bytes:
    """One server-sent event of a streamed reply; `extra` goes beside `choices`."""
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    return event(head.row("chat.completion.chunk") | {"choices": [choice]} | extra)


def usage_chunk(head: ReplyHead, answers: Sequence[Answer]) -> bytes:
    """The last event where the client asked for `include_usage`."""
    return event(head.row("chat.completion.chunk") | {"choices": [], "usage": usage(answers)})


def event(row: dict[str, Any]) -> bytes:
    """A line of `text/event-stream`."""
    return b"data: " + json.dumps(row, allow_nan=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
