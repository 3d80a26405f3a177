"""A server on a real socket in a thread, and small clients for it."""

import base64
import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from serving_fakes import png

from scaleearth_pl.serving.queueing import BatchPolicy
from scaleearth_pl.serving.server import make_server
from scaleearth_pl.serving.server_app import create_app
from scaleearth_pl.serving.server_limits import ServerLimits

CHAT = "/v1/chat/completions"


@dataclass
class Running:
    """A server that listens."""

    app: Any
    server: Any
    port: int

    @property
    def service(self):
        return self.app.state.service

    def client(self, **kwargs) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=60, **kwargs)

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        """Status, headers and body over a plain connection."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request(method, path, body=body, headers=headers or {})
            reply = link.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            link.close()

    def post(self, row: Any):
        status, headers, body = self.send("POST", CHAT, json.dumps(row).encode(), {"Content-Type": "application/json"})
        return status, headers, json.loads(body)


@contextmanager
def serving(engine, *, max_batch: int = 32, max_wait_s: float = 0.005, **limits):
    """Runs the application; stops it gracefully."""
    batching = BatchPolicy(max_batch=max_batch, max_wait_s=max_wait_s)
    app = create_app(engine, limits=ServerLimits(**limits), batching=batching)
    with listening(app) as running:
        yield running


@contextmanager
def listening(app):
    server = make_server(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    assert server.started
    try:
        yield Running(app, server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition):
    deadline = time.monotonic() + 120  # a busy machine may take its time
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def message(url: str, text: str | None = "Forest?") -> dict[str, Any]:
    """A user's turn."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts + ([] if text is None else [{"type": "text", "text": text}])}


def chat(text: str | None = "Forest?", *, url: str | None = None, **fields) -> dict[str, Any]:
    """A valid request, or one with the fields given."""
    return {"model": "scaleearth", "messages": [message(data_url(png()) if url is None else url, text)], **fields}
