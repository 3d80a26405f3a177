"""`scaleearth serve`: an OpenAI-compatible endpoint for one trained model.

    scaleearth serve --model runs/stage2-tiny-world/latest --port 8000
    curl localhost:8000/v1/models

Requests of different GSDs share a packed pass (`queueing.py`); what a request may hold and how it is refused stands in
`server_limits.py`, the request's fields in `openai_api.py`. There is no authentication: the default address is this
machine's own, and a public one belongs behind a proxy that knows its users.

SIGTERM and SIGINT stop gracefully: no new connection is taken, accepted requests are answered, and the process ends with 0.
A client that does not read its answer cannot hold that up (`server_stalls.py`). A second SIGINT ends it at once.
"""

import argparse
import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType

import uvicorn
from fastapi import FastAPI

from scaleearth_pl.core.console import command, console
from scaleearth_pl.model.backbone import silence_loading
from scaleearth_pl.serving.options import add_model_options, assistant_of
from scaleearth_pl.serving.queueing import BatchPolicy
from scaleearth_pl.serving.server_announce import AnnouncingServer
from scaleearth_pl.serving.server_app import create_app
from scaleearth_pl.serving.server_limits import ServerLimits, port
from scaleearth_pl.serving.server_service import Service
from scaleearth_pl.serving.server_stalls import StallWatch


class GracefulServer(AnnouncingServer):
    """uvicorn's server that ends with 0 after a signal: its own raises the signal again once it has stopped."""

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[int], None] | None) -> None:
        super().__init__(config, announce)
        self._service = service

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to stop; stalled clients are dropped all the while."""
        watch = StallWatch(self.server_state.connections, self._service.limits.send_seconds)
        watching = asyncio.create_task(watch.run())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM for as long as the server runs, in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._service.stop()
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


@command
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    silence_loading()
    limits = ServerLimits(**{f.name: getattr(args, f.name) for f in fields(ServerLimits) if hasattr(args, f.name)})
    batching = BatchPolicy(max_batch=args.max_batch, max_wait_s=args.max_wait_ms / 1000)
    assistant = assistant_of(args)
    screen = console(stderr=True, highlight=False)
    screen.print(f"model {assistant.loaded.adapter.path}", soft_wrap=True)

    def announce(port: int) -> None:
        screen.print(f"http://{args.host}:{port}/v1  as model {args.name!r}; stop with Ctrl-C", soft_wrap=True)

    app = create_app(assistant, name=args.name, limits=limits, batching=batching)
    return serve(app, host=args.host, port=args.port, announce=announce)


def serve(app: FastAPI, *, host: str, port: int, announce: Callable[[int], None]) -> int:
    """Serves until a signal comes; 0 after an orderly stop, 1 where the address cannot be had.

    `announce` gets the port, once there is one: of port 0 the system makes its choice.
    """
    server = make_server(app, host=host, port=port, announce=announce)
    server.run()
    return 0 if server.started else 1


def make_server(app: FastAPI, *, host: str, port: int, announce: Callable[[int], None] | None = None) -> GracefulServer:
    """The server of an app made by `create_app`, not yet running; tests run it in a thread."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_keep_alive=15,
        server_header=False,
    )
    return GracefulServer(config, app.state.service, announce)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaleearth serve", description="Serves a trained model, OpenAI-compatible.")
    parser.add_argument("--name", default="scaleearth", help="the model's name in requests")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on")
    parser.add_argument("--max-batch", type=int, default=32, help="requests in one packed pass")
    parser.add_argument("--max-wait-ms", type=float, default=5.0, help="how long an idle server waits for company")
    limits = parser.add_argument_group("limits")
    default = ServerLimits()
    limits.add_argument("--max-queue", type=int, default=default.max_queue, help="accepted requests; more get 429")
    limits.add_argument("--max-image-bytes", type=int, default=default.max_image_bytes)
    limits.add_argument("--max-image-pixels", type=int, default=default.max_image_pixels)
    limits.add_argument("--max-questions", type=int, default=default.max_questions, help="in one request")
    add_model_options(parser)
    return parser
