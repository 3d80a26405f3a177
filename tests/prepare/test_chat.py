"""The client against a real server that misbehaves: always a checked reply or a typed error, in bounded time."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes.chat_server import ChatServer

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.chat import Answer, Chat, ChatConfig
from scaleearth_pl.prepare.chat_errors import DeclinedError, RejectedError, ReplyError, ServerError
from scaleearth_pl.prepare.chat_providers import ChatRequest, retry_after_s
from scaleearth_pl.prepare.replies import GeneratedPairs, parse_pairs, reply_schema


def request(text: str = "x") -> ChatRequest:
    name, schema = reply_schema(GeneratedPairs)
    system = "Family: IDENTIFICATION. told to you alone: beach."
    return ChatRequest(
        system=system, text=text, image=b"\x89PNG", image_mime="image/png", schema_name=name, schema=schema
    )


def config(server: ChatServer, **changes: Any) -> ChatConfig:
    settings: dict[str, Any] = {"timeout_s": 5.0, "deadline_s": 10.0, "backoff_s": 0.01, "attempts": 4}
    return ChatConfig(base_url=server.base_url, model="m", **{**settings, **changes})


def parse(text: str) -> dict[str, Any]:
    return parse_pairs("0" * 32, text)


def ask(settings: ChatConfig, n: int = 1, parse: Callable[[str], Any] = parse) -> tuple[list[Answer[Any]], Chat]:
    """Answers to `n` requests; a client that is held for 15 s is an error, whatever it would have said."""

    async def go() -> tuple[list[Answer[Any]], Chat]:
        async with Chat(settings) as chat:
            return list(await asyncio.gather(*(chat.ask(request(str(k)), parse) for k in range(n)))), chat

    return asyncio.run(asyncio.wait_for(go(), 15))


def test_a_reply_is_parsed_and_counted() -> None:
    with ChatServer() as server:
        (answer,), chat = ask(config(server, temperature=0.5, max_tokens=99))
    assert answer.value["qas"][0]["question"].endswith("?")
    assert answer.prompt_tokens == chat.spent.prompt_tokens > 0
    assert (chat.spent.requests, chat.spent.retries) == (1, 0)
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == reply_schema(GeneratedPairs)[1]
    assert (body["temperature"], body["max_tokens"], body["seed"], body["model"]) == (0.5, 99, 1, "m")
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="


def test_schema_needs_no_references_and_forbids_the_rest() -> None:
    schema = reply_schema(GeneratedPairs)[1]
    assert "$ref" not in json.dumps(schema)
    pair = schema["properties"]["pairs"]["items"]
    assert pair["additionalProperties"] is False
    assert list(pair["properties"]) == pair["required"] == ["evidence", "question", "answer", "options", "type"]


@pytest.mark.parametrize("fault", ["429", "500", "503-date", "html", "odd", "cut", "prose", "length"])
def test_passing_faults_are_retried(fault: str) -> None:
    with ChatServer(faults={fault: 1.0}, fault_attempts=1) as server:
        answers, chat = ask(config(server), n=3)
        assert len(answers) == 3
        assert server.faults_given[fault] == chat.spent.retries == 3
    if fault == "prose":
        assert sorted(body["seed"] for body in server.bodies) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("fault", "error", "n_requests"),
    [
        ("500", ServerError, 4),
        ("429", ServerError, 4),
        ("cut", ServerError, 4),
        ("odd", ServerError, 4),
        ("prose", ReplyError, 2),
        ("length", ReplyError, 2),
        ("refuse", DeclinedError, 1),
        ("apology", DeclinedError, 1),
        ("400", RejectedError, 1),
    ],
)
def test_lasting_faults_are_typed_and_bounded(fault: str, error: type[Exception], n_requests: int) -> None:
    with ChatServer(faults={fault: 1.0}, fault_attempts=99) as server, pytest.raises(error):
        ask(config(server))
    assert server.arrivals.total() == n_requests


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_a_server_that_never_ends_does_not_hold_the_client(fault: str) -> None:
    with ChatServer(faults={fault: 1.0}, fault_attempts=99) as server:
        with pytest.raises(ServerError, match=r"no complete answer within 0\.6 s"):
            ask(config(server, timeout_s=0.6, attempts=2))  # time enough for a busy machine to ask at all
        assert server.arrivals.total() == 2


def test_the_deadline_bounds_all_attempts() -> None:
    with ChatServer(faults={"hang": 1.0}, fault_attempts=99) as server:
        with pytest.raises(ServerError):
            ask(config(server, timeout_s=0.3, deadline_s=0.5, attempts=99))
        assert server.arrivals.total() <= 2


def test_retry_after_is_honoured() -> None:
    with ChatServer(faults={"429": 1.0}, retry_after="0.3") as server:
        ask(config(server))
    assert server.times[1] - server.times[0] >= 0.3


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    with ChatServer(faults={"429": 1.0}, retry_after="3600") as server, pytest.raises(ServerError, match="1 attempts"):
        ask(config(server))


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-1", 0.0), (None, None), ("soon", None), ("nan", None)]
)
def test_retry_after_header(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text) == seconds


def test_retry_after_as_a_date() -> None:
    text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 50 < (retry_after_s(text) or 0) <= 60


def test_concurrency_is_bounded_and_used() -> None:
    with ChatServer(latency_s=0.05) as server:
        ask(config(server, concurrency=3), n=9)
    assert server.most_in_flight == 3


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_a_wrong_key_model_or_address_stops_at_once(status: int) -> None:
    with ChatServer(status=status) as server, pytest.raises(ConfigError, match="base_url, model, key and the credit"):
        ask(config(server))
    assert server.arrivals.total() == 1


def test_no_server_at_all() -> None:
    with ChatServer() as server:
        settings = config(server, attempts=3)
    with pytest.raises(ServerError, match="3 attempts"):
        ask(settings)


def test_the_parser_decides_what_is_usable() -> None:
    def never(text: str) -> None:
        raise ValueError("not this")

    with ChatServer() as server, pytest.raises(ReplyError, match="not this"):
        ask(config(server), parse=never)
    assert server.arrivals.total() == 2


@pytest.mark.parametrize(
    ("fault", "error"), [(None, None), ("refuse", DeclinedError), ("length", ReplyError), ("429", None), ("cut", None)]
)
def test_claude_goes_the_same_way(fault: str | None, error: type[Exception] | None) -> None:
    faults = {fault: 1.0} if fault else {}
    with ChatServer(faults=faults, fault_attempts=99 if error else 1) as server:
        settings = config(server, provider="anthropic")
        settings = ChatConfig(**{**settings.__dict__, "base_url": server.root_url})
        if error:
            with pytest.raises(error):
                ask(settings)
            return
        (answer,), chat = ask(settings)
    assert answer.value["qas"]
    assert answer.completion_tokens > 0
    assert chat.spent.requests == 1 + bool(fault)
    assert server.bodies[0]["output_config"]["format"]["schema"] == reply_schema(GeneratedPairs)[1]


@pytest.mark.parametrize(
    "changes",
    [{"base_url": "localhost:8000"}, {"base_url": None}, {"concurrency": 0}, {"timeout_s": float("inf")}],
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ChatConfig(**{"base_url": "http://x/v1", "model": "m", **changes})
