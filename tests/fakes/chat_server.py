"""A real HTTP server on 127.0.0.1 that speaks chat completions (and Claude's messages), and misbehaves on purpose.

Replies are a function of the request alone: its SHA-256 (without the seed) decides what is asked and answered, so that
two runs over the same corpus give the same records. Faults are drawn from the same hash: they too are the same always.

    with ChatServer(faults={"429": 0.2, "prose": 0.1}) as server:
        ...  # server.base_url, server.arrivals (Counter of request hashes), server.replied, server.faults_given
"""

import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

FAULTS = (
    "hang",
    "trickle",
    "429",
    "500",
    "503-date",
    "400",
    "html",
    "odd",
    "prose",
    "refuse",
    "apology",
    "cut",
    "length",
)
"""hang: no byte; trickle: one byte at a time; html: 200 with a page; odd: JSON of another shape; prose: text instead
of JSON; refuse and apology: two ways to decline; cut: connection broken inside the body; length: out of tokens."""

SUBJECTS = ("roofs", "open ground", "water", "dark patches", "bright surfaces", "green areas")


class ChatServer:
    """Context manager.

    Args:
        faults: share of requests (by hash) that meet each fault.
        fault_attempts: how many arrivals of such a request meet it; later ones are answered.
        retry_after: header of 429.
        latency_s: before every reply.
        die_after: the server stops listening after so many replies.
        status: answer everything with this status.
    """

    def __init__(
        self,
        *,
        faults: Mapping[str, float] | None = None,
        fault_attempts: int = 1,
        retry_after: str | None = "0.05",
        latency_s: float = 0.0,
        die_after: int | None = None,
        status: int = 200,
    ) -> None:
        assert set(faults or {}) <= set(FAULTS)
        self.faults, self.fault_attempts, self.retry_after = dict(faults or {}), fault_attempts, retry_after
        self.latency_s, self.die_after, self.status = latency_s, die_after, status
        self.arrivals: Counter[str] = Counter()
        self.replied: Counter[str] = Counter()
        self.faults_given: Counter[str] = Counter()
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.lock, self.stopping = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def base_url(self) -> str:
        """Address for OpenAI clients; Claude's client takes `root_url`."""
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops listening; requests that hang are let go."""
        if not self.stopping.is_set():
            self.stopping.set()
            self._http.shutdown()
            self._http.server_close()

    def fault_of(self, key: str) -> str | None:
        """The fault that this request meets on its first arrivals."""
        point, edge = int(key[:8], 16) / 2**32, 0.0
        for name, share in self.faults.items():
            edge += share
            if point < edge:
                return name
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: ChatServer

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = request_key(body)
        with fake.lock:
            if fake.stopping.is_set():
                self.close_connection = True
                return
            fake.arrivals[key] += 1
            fake.bodies.append(body)
            fake.times.append(time.monotonic())
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            fault = fake.fault_of(key) if fake.arrivals[key] <= fake.fault_attempts else None
            fake.faults_given.update([fault] if fault else [])
        try:
            fake.stopping.wait(fake.latency_s)
            self._reply(body, key, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with fake.lock:
                fake.in_flight -= 1

    def _reply(self, body: dict[str, Any], key: str, fault: str | None) -> None:
        fake = self.fake
        if fake.status != 200:
            self._send(fake.status, {"error": {"message": "as configured"}})
        elif fault == "hang":
            fake.stopping.wait(30)
            self.close_connection = True
        elif fault in ("429", "500", "400"):
            headers = {"Retry-After": fake.retry_after} if fault == "429" and fake.retry_after else {}
            self._send(int(fault), {"error": {"message": f"fault {fault}"}}, headers)
        elif fault == "503-date":
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 1))
            self._send(503, {"error": {"message": "busy"}}, {"Retry-After": date})
        elif fault == "html":
            self._send_bytes(200, b"<html>Bad gateway</html>", "text/html")
        elif fault == "odd":
            self._send(200, {"object": "list", "data": []})
        else:
            self._speak(body, key, fault)

    def _speak(self, body: dict[str, Any], key: str, fault: str | None) -> None:
        text, stop = json.dumps(reply_of(body, key)), "stop"
        if fault == "prose":
            text = "Sure! Here are two questions: 1. What can be seen? ..."
        elif fault == "apology":
            text = "I'm sorry, I cannot help with that."
        elif fault == "refuse":
            text, stop = "", "content_filter"
        elif fault == "length":
            text, stop = text[: len(text) // 2], "length"
        tokens = (len(json.dumps(body)) // 4, len(text) // 4)
        claude = self.path.endswith("/messages")
        data = json.dumps(_claude(text, stop, tokens) if claude else _openai(body, text, stop, tokens)).encode()
        if fault in ("cut", "trickle"):
            self._spoil(data, fault)
            return
        with self.fake.lock:
            self.fake.replied[key] += 1
            dying = self.fake.die_after is not None and self.fake.replied.total() >= self.fake.die_after
        self._send_bytes(200, data, "application/json")
        if dying:
            threading.Thread(target=self.fake.stop, daemon=True).start()

    def _spoil(self, data: bytes, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for k in range(len(data) // 2):
            self.wfile.write(data[k : k + 1])
            if fault == "trickle" and self.fake.stopping.wait(0.05):
                break
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _send(self, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(document).encode(), "application/json", headers)

    def _send_bytes(self, status: int, data: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def request_key(body: dict[str, Any]) -> str:
    """SHA-256 of a request without its seed: attempts with another seed are the same request."""
    rest = {k: v for k, v in body.items() if k != "seed"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def reply_of(body: dict[str, Any], key: str) -> dict[str, Any]:
    """An honest reply to a request for pairs or for verdicts; `evidence` of pairs and reasons of verdicts hold its key."""
    text = json.dumps(body)
    number = [int(c, 16) for c in key]
    if "Judge all" in text:
        n_pairs = int(re.search(r"Judge all (\d+) pairs", text)[1])  # type: ignore[index]
        return {"verdicts": [_verdict(k, number[4 * k : 4 * k + 4], key) for k in range(n_pairs)]}
    label = re.search(r"told to you alone: ([a-z ]+)\.", text)
    family = re.search(r"Family: ([A-Z-]+)\.", text)[1]  # type: ignore[index]
    subject = SUBJECTS[number[9] % len(SUBJECTS)]
    pair = {
        "evidence": key,
        "question": f"What lies beside the {subject} in this view?",
        "answer": ("grass", "bare soil", "a paved area")[number[10] % 3],
        "options": [],
        "type": "arrangement",
    }
    bad = {**pair, "question": f"How many cars stand on the {label[1] if label else 'ground'}?", "answer": "3"}
    choice = {**pair, "question": "Which of these is shown?", "options": [label[1] if label else "x", "moor", "heath"]}
    choice |= {"answer": choice["options"][0], "type": "scene_choice"}
    return {"pairs": [choice] if family == "DISCRIMINATIVE" else [pair, bad] if number[8] % 3 == 0 else [pair]}


def _verdict(k: int, draws: list[int], key: str) -> dict[str, Any]:
    axes = ("answerable", "right_for_scale", "consistent", "well_formed")
    verdicts = {a: {"reason": f"draw {d} of {key}", "passes": d > 1} for a, d in zip(axes, draws, strict=True)}
    return {"pair": k, **verdicts}


def _openai(body: dict[str, Any], text: str, stop: str, tokens: tuple[int, int]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": stop}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    common = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**common, "choices": [choice], "usage": usage}


def _claude(text: str, stop: str, tokens: tuple[int, int]) -> dict[str, Any]:
    reason = {"content_filter": "refusal", "length": "max_tokens"}.get(stop, "end_turn")
    usage = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    common = {"id": "x", "type": "message", "role": "assistant", "model": "claude", "stop_sequence": None}
    return {**common, "content": [{"type": "text", "text": text}], "stop_reason": reason, "usage": usage}
