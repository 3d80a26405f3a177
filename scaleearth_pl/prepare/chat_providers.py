"""Two kinds of server behind one method: any OpenAI-compatible one (vLLM, SGLang, ...), and Claude.

The official clients do the HTTP; their own retries are off, because `chat.py` counts attempts, honours Retry-After
within a deadline and must know of each. They are imported on first use: `pip install scaleearth_pl[corpus]`.

Both are asked for structured output by JSON schema: `response_format` (guided decoding in vLLM) and `output_config`.
Claude's present interface takes no temperature and no seed, so these hold for OpenAI-compatible servers only.
"""

import base64
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, Literal, Protocol

from scaleearth_pl.core.errors import ConfigError

Stop = Literal["done", "cut", "refused"]
"""Why a reply ended: as it should, out of tokens, or because the model declined."""

_CLAUDE_STOPS: dict[str | None, Stop] = {"refusal": "refused", "max_tokens": "cut"}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """System and user text, one encoded image, and the JSON schema that the reply must obey."""

    system: str
    text: str
    image: bytes
    image_mime: str
    schema_name: str
    schema: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RawReply:
    """What the server said, why it stopped, and what it counted."""

    text: str
    stop: Stop
    prompt_tokens: int
    completion_tokens: int


class HttpFailure(Exception):
    """An attempt without a reply; `status` is None where no HTTP answer came."""

    def __init__(self, problem: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.problem, self.status, self.retry_after_s = problem, status, retry_after_s


class Provider(Protocol):
    """One attempt at one request."""

    async def send(self, request: ChatRequest, *, seed: int) -> RawReply:
        """The reply; raises `HttpFailure`."""

    async def close(self) -> None:
        """Closes the connections."""


class OpenAIProvider:
    """Chat completions of any OpenAI-compatible server."""

    def __init__(
        self, *, base_url: str, api_key: str, model: str, max_tokens: int, temperature: float, timeout_s: float
    ) -> None:
        self._sdk = _need("openai")
        self._client = self._sdk.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout_s)
        self._settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}

    async def send(self, request: ChatRequest, *, seed: int) -> RawReply:
        """One POST to /chat/completions; a `RawReply` or an `HttpFailure`."""
        image = {"type": "image_url", "image_url": {"url": data_uri(request.image, request.image_mime)}}
        with _as_failure(self._sdk.APIError):
            completion = await self._client.chat.completions.create(
                messages=[
                    {"role": "system", "content": request.system},
                    {"role": "user", "content": [{"type": "text", "text": request.text}, image]},
                ],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": request.schema_name, "schema": request.schema, "strict": True},
                },
                seed=seed,
                **self._settings,
            )
        with _checking_shape():
            choice, usage = completion.choices[0], completion.usage
            refused = choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None)
            return RawReply(
                text=choice.message.content or "",
                stop="refused" if refused else "cut" if choice.finish_reason == "length" else "done",
                prompt_tokens=usage.prompt_tokens if usage else 0,
                completion_tokens=usage.completion_tokens if usage else 0,
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class AnthropicProvider:
    """Claude, as the paper's auditor."""

    def __init__(self, *, base_url: str | None, api_key: str, model: str, max_tokens: int, timeout_s: float) -> None:
        self._sdk = _need("anthropic")
        self._client = self._sdk.AsyncAnthropic(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout_s)
        self._model, self._max_tokens = model, max_tokens

    async def send(self, request: ChatRequest, *, seed: int) -> RawReply:
        """One POST to /v1/messages; `seed` is not part of this interface and only tells attempts apart."""
        del seed
        data = base64.b64encode(request.image).decode()
        image = {"type": "image", "source": {"type": "base64", "media_type": request.image_mime, "data": data}}
        with _as_failure(self._sdk.APIError):
            message = await self._client.messages.create(
                model=self._model,
                max_tokens=self._max_tokens,
                system=request.system,
                messages=[{"role": "user", "content": [image, {"type": "text", "text": request.text}]}],
                output_config={"format": {"type": "json_schema", "schema": request.schema}},
            )
        with _checking_shape():
            return RawReply(
                text="".join(block.text for block in message.content if block.type == "text"),
                stop=_CLAUDE_STOPS.get(message.stop_reason, "done"),
                prompt_tokens=message.usage.input_tokens,
                completion_tokens=message.usage.output_tokens,
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def data_uri(data: bytes, mime: str) -> str:
    """`data:` URI of an encoded image."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def retry_after_s(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date; None where it says nothing sensible."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None


@contextmanager
def _as_failure(api_error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except api_error as error:
        # Both clients come from one generator: status errors have a response, connection errors have none.
        status, response = getattr(error, "status_code", None), getattr(error, "response", None)
        wait_s = retry_after_s(response.headers.get("retry-after")) if response is not None else None
        problem = f"{type(error).__name__}: {str(error)[:300]}"
        raise HttpFailure(problem, status=status, retry_after_s=wait_s) from error
    except ValueError as error:
        raise HttpFailure(f"answer is no JSON: {error!r:.300}", status=502) from error


@contextmanager
def _checking_shape() -> Iterator[None]:
    # The clients do not validate what they parse: a page of a proxy, or JSON of another shape, ends here.
    try:
        yield
    except (AttributeError, TypeError, LookupError) as error:
        raise HttpFailure(f"answer is no chat completion: {error!r:.300}", status=502) from error


def _need(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the client library {name!r} is not installed", remedy="pip install 'scaleearth_pl[corpus]'"
        ) from error
