"""An async client that asks a model about an image and comes back with a checked reply or a typed error, always.

    attempt 0    attempt 1          attempt 2
    [ timeout_s ]  wait  [ timeout_s ]   wait   [ ...        all within deadline_s
                   wait = max(Retry-After, uniform(0, min(backoff_max_s, backoff_s 2^attempt)))

Full jitter after Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): clients that failed together
do not come back together. Every attempt runs under `asyncio.timeout`, since an HTTP client's own time-out restarts with
each byte and a server that trickles would hold it for ever. A wait that would pass the deadline is not begun.

What is retried: no connection, time-outs, 408, 409, 425, 429, 5xx up to `attempts` times; replies that do not parse up
to `reply_attempts` times, each with the next seed, because the same seed would give the same prose. Refusals and bad
requests are not retried. Wrong key, model or address, or no credit (`_GLOBAL`) is a `ConfigError`: it would be so for
every item. Some servers say that with 400, as they do for one bad image: `jobs` tells the two apart by the first items.
"""

import asyncio
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.chat_errors import DeclinedError, RejectedError, ReplyError, ServerError
from scaleearth_pl.prepare.chat_providers import (
    AnthropicProvider,
    ChatRequest,
    HttpFailure,
    OpenAIProvider,
    Provider,
    RawReply,
)

T = TypeVar("T")
"""What a reply parses to."""

_PASSING = {408, 409, 425, 429}
_GLOBAL = {401, 402, 403, 404, 405}
_REFUSAL = re.compile(r"\s*(i['’]m sorry|i am sorry|sorry,|i can(no|['’])t |i am unable|i['’]m unable|as an ai )", re.I)


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Which server and how patiently.

    Args:
        base_url: such as "http://localhost:8000/v1"; None takes Claude's public address (anthropic only).
        model: name that the server knows.
        provider: "openai" for any OpenAI-compatible server, or "anthropic".
        api_key: sent as it is; local servers take anything.
        concurrency: requests in flight at most.
        attempts: tries per request as long as the server fails.
        reply_attempts: tries per request where the reply is not what was asked for.
        timeout_s: seconds for one attempt, from connecting to the last byte.
        deadline_s: seconds for a request with all its attempts and waits.
        backoff_s: first wait is up to this, doubled each time up to `backoff_max_s`.
        max_tokens: longest reply.
        temperature: of OpenAI-compatible servers; 0 repeats itself best.
        seed: of the first attempt.
    """

    base_url: str | None
    model: str
    provider: Literal["openai", "anthropic"] = "openai"
    api_key: str = "none"
    concurrency: int = 8
    attempts: int = 6
    reply_attempts: int = 2
    timeout_s: float = 120.0
    deadline_s: float = 600.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.provider not in ("openai", "anthropic"):
            raise ConfigError("unknown provider", field="provider", value=self.provider, remedy="openai or anthropic")
        if self.provider == "openai" and not re.match(r"https?://", self.base_url or ""):
            raise ConfigError(
                "server has no address",
                field="base_url",
                value=self.base_url,
                remedy="such as http://localhost:8000/v1",
            )
        for name in ("concurrency", "attempts", "reply_attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))
        for name in ("timeout_s", "deadline_s", "backoff_s", "backoff_max_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError("must be positive and finite", field=name, value=getattr(self, name))


@dataclass(kw_only=True)
class Spent:
    """What a client has cost so far; tokens of unusable replies included, since they are paid for too."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[T]):
    """A parsed reply and the tokens of the attempt that gave it."""

    value: T
    prompt_tokens: int
    completion_tokens: int


class Chat:
    """`async with Chat(config) as chat: await chat.ask(request, parse)`; at most `concurrency` requests at a time."""

    def __init__(self, config: ChatConfig, *, provider: Provider | None = None) -> None:
        self.config, self.spent = config, Spent()
        self._provider = provider or make_provider(config)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._jitter = random.Random()

    async def __aenter__(self) -> "Chat":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._provider.close()

    async def ask(self, request: ChatRequest, parse: Callable[[str], T]) -> Answer[T]:
        """Asks until a reply parses, or gives up.

        Args:
            request: texts, image and schema.
            parse: text of the reply to a value; any `ValueError` (pydantic's and json's are) makes the reply unusable.

        Raises:
            ServerError: no answer within `attempts` and `deadline_s`.
            ReplyError: answers, but none of them parses.
            DeclinedError: the model declines.
            RejectedError: the server finds this request bad.
            ConfigError: wrong key, address or model, or no credit.
        """
        # The slot is held through the waits: a server in trouble then has fewer requests to answer, not more.
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + self.config.deadline_s
            failures, unusable = 0, 0
            while True:
                try:
                    raw = await self._attempt(request, self.config.seed + unusable, deadline)
                    return _answer(raw, parse, self.config.max_tokens)
                except HttpFailure as failure:
                    failures += 1
                    await self._wait(failure, failures, deadline)
                except ReplyError:
                    unusable += 1
                    if unusable >= self.config.reply_attempts:
                        raise
                self.spent.retries += 1

    async def _attempt(self, request: ChatRequest, seed: int, deadline: float) -> RawReply:
        limit = min(self.config.timeout_s, max(deadline - asyncio.get_running_loop().time(), 0.0))
        self.spent.requests += 1
        try:
            async with asyncio.timeout(limit):
                raw = await self._provider.send(request, seed=seed)
        except TimeoutError as error:
            raise HttpFailure(f"no complete answer within {limit:.3g} s") from error
        self.spent.prompt_tokens += raw.prompt_tokens
        self.spent.completion_tokens += raw.completion_tokens
        return raw

    async def _wait(self, failure: HttpFailure, failures: int, deadline: float) -> None:
        if not (failure.status is None or failure.status in _PASSING or failure.status >= 500):
            _give_up(failure)
        config, now = self.config, asyncio.get_running_loop().time()
        ceiling = min(config.backoff_max_s, config.backoff_s * 2 ** (failures - 1))
        wait = max(failure.retry_after_s or 0.0, self._jitter.uniform(0, ceiling))
        if failures >= config.attempts or now + wait >= deadline:
            raise ServerError(
                f"server gave no answer in {failures} attempts, last: {failure.problem}",
                field="status",
                value=failure.status,
                remedy="see that the server is up, or raise timeout_s and deadline_s",
            ) from failure
        await asyncio.sleep(wait)


def make_provider(config: ChatConfig) -> Provider:
    """The client library's adapter for a configuration; `ConfigError` where the library is not installed."""
    if config.provider == "anthropic":
        return AnthropicProvider(
            base_url=config.base_url,
            api_key=config.api_key,
            model=config.model,
            max_tokens=config.max_tokens,
            timeout_s=config.timeout_s,
        )
    assert config.base_url is not None
    return OpenAIProvider(
        base_url=config.base_url,
        api_key=config.api_key,
        model=config.model,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        timeout_s=config.timeout_s,
    )


def _answer(raw: RawReply, parse: Callable[[str], T], max_tokens: int) -> Answer[T]:
    if raw.stop == "refused" or _REFUSAL.match(raw.text):
        raise DeclinedError("the model declined", field="reply", value=raw.text[:200])
    if raw.stop == "cut":
        raise ReplyError("reply was cut", field="max_tokens", value=max_tokens, remedy="raise max_tokens")
    try:
        value = parse(raw.text)
    except ValueError as error:
        problem = " ".join(str(error).split())[:300]
        raise ReplyError(f"reply is not what was asked for: {problem}", field="reply", value=raw.text[:200]) from error
    return Answer(value=value, prompt_tokens=raw.prompt_tokens, completion_tokens=raw.completion_tokens)


def _give_up(failure: HttpFailure) -> NoReturn:
    if failure.status in _GLOBAL:
        raise ConfigError(
            f"server refuses all requests: {failure.problem}",
            field="status",
            value=failure.status,
            remedy="check base_url, model, key and the credit of its account",
        ) from failure
    raise RejectedError(f"server rejects the request: {failure.problem}", field="status", value=failure.status)
