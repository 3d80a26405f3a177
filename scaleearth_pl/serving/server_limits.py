"""What the server takes, and how it says no.

Every request is either answered or refused with a status and a sentence; none is dropped. The statuses:

    400  not JSON                                     404  another model, another address
    408  the body came too slowly                     413  too many bytes, pixels or bands of the image, tokens or cache slots
    422  JSON that cannot be meant: a field, an image, a GSD; the message names it and the remedy
    429  as many requests as allowed are already accepted; Retry-After says when to come back
    503  the server is stopping                       500  a fault of ours, not of the request
"""

import argparse
import math
from dataclasses import dataclass
from typing import Any

from scaleearth_pl.core.errors import ConfigError, GsdError


def port(text: str) -> int:
    """A port from the command line; 0 lets the system choose."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to 65535")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds of one request and of all together; memory stays below `max_queue` times what one request may hold.

    What it may hold on the device is bounded by the engine, not here: `max_batch_tokens` tokens and, because the decoding
    cache is a rectangle, `SLOTS_PER_TOKEN` times as many slots, questions x (the longest's tokens + those of an answer) +
    the image's (`pass_size.py`). `max_questions` short questions are far below both at the usual length of answers.

    Attributes:
        max_image_bytes: of the file inside the data URL.
        max_image_pixels: of the file, by its header: nothing larger is decoded.
        max_bands: of the file, by its header. Three are read, but where bands interleave by pixel all are decoded.
        max_questions: about one image in one request.
        max_text_chars: of one question, option or turn.
        max_turns: earlier (question, answer) pairs.
        max_queue: requests accepted and not yet answered.
        body_seconds: time for a body to arrive.
        send_seconds: a client that takes nothing of its reply for so long is dropped.
        min_gsd_m: finest believable GSD, metres per pixel of the file. max_gsd_m: coarsest.
    """

    max_image_bytes: int = 16 * 2**20
    max_image_pixels: int = 64_000_000
    max_bands: int = 16
    max_questions: int = 128
    max_text_chars: int = 4000
    max_turns: int = 16
    max_queue: int = 64
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    min_gsd_m: float = 1e-3
    max_gsd_m: float = 1e5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ConfigError("must be positive and finite", field=name, value=value)

    @property
    def max_decoded_bytes(self) -> int:
        """Of all bands of a file: eight a pixel of the largest, which is four bands of 16 bits."""
        return 8 * self.max_image_pixels

    @property
    def max_body_bytes(self) -> int:
        """The image as base64, all questions, and some room for JSON."""
        texts = 4 * self.max_text_chars * (self.max_questions + 2 * self.max_turns)
        return self.max_image_bytes * 4 // 3 + min(texts, 4 * 2**20) + 2**16

    @property
    def max_request_chars(self) -> int:
        """Of all prompts of one request, before they are tokenised: options count once for each question."""
        return self.max_text_chars * self.max_questions

    def check_gsd_m(self, gsd_m: float | None, field: str) -> None:
        """`GsdError` for a GSD that no image of the Earth has."""
        if gsd_m is not None and not self.min_gsd_m <= gsd_m <= self.max_gsd_m:
            raise GsdError(
                "no image of the Earth has this GSD",
                field=field,
                value=gsd_m,
                remedy=f"metres per pixel, between {self.min_gsd_m:g} and {self.max_gsd_m:g}",
            )


class RefusedError(Exception):
    """A request that gets a status instead of an answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after_s = status, message, param, retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After`, where waiting helps."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        return error_body(self.status, self.message, param=self.param)


_KINDS = {404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


def error_body(status: int, message: str, *, param: str | None = None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
