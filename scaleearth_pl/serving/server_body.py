"""The body of a request: read within bounds of bytes and time, then checked field by field.

It is read here and not by FastAPI, because a bound that is checked after the body lies in memory is none; a refused body
is read and thrown away (up to a bound), because a client that is still sending would see a broken pipe instead of the
refusal. FastAPI's own refusal would also repeat what it refuses, and a NaN or half a surrogate pair is no JSON.
"""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import ClientDisconnect

from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits

LEFT = "the client left"

_DISCARD = 4
"""A refused body is read up to so many times the allowed size before the refusal is sent."""


class Strict(BaseModel):
    """Nothing coerced, nothing unknown, no NaN, and no megabyte of base64 in a message."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_asks_for_nothing(cls, row: Any) -> Any:
        return {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row


Body = TypeVar("Body", bound=Strict)


def parse(kind: type[Body], body: bytes) -> Body:
    """The body as `kind`, or `RefusedError` that names the first fields at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if faults[0]["type"] == "json_invalid":
            raise RefusedError(400, f"not JSON: {faults[0]['msg']}") from None
        named = [f"{_place(fault)}: {fault['msg']}" for fault in faults[:3]]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise RefusedError(422, "; ".join(named)[:1500] + more, param=_place(faults[0])[:200]) from None


def _place(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"])[:200] or "body"


async def read(request: Request, limits: ServerLimits) -> bytes:
    """The body, within its bounds of bytes and time."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body_bytes:
                    break
                parts.append(part)
    except TimeoutError:
        raise RefusedError(408, f"the body took more than {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, LEFT) from None
    if size > limits.max_body_bytes:
        parts.clear()
        await discard(request, limits)
        raise RefusedError(413, f"the body has more than {limits.max_body_bytes} bytes")
    return b"".join(parts)


async def discard(request: Request, limits: ServerLimits) -> None:
    """Reads what a client is still sending, so that it will read our refusal."""
    size, most = 0, _DISCARD * limits.max_body_bytes
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):
        return
