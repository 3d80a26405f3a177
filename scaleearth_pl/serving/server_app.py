"""The HTTP side of `scaleearth serve`: FastAPI over the engine and the queue.

    POST /v1/chat/completions   `openai_api.py`         GET /v1/models    GET /health    GET /metrics

    accept (429, 503) -> read the body (408, 413) -> parse (400, 422) -> decode, resize, tokenise in a thread (413, 422)
        -> queue -> packed pass -> reply, whole or streamed

A request counts as accepted from its first line to the last byte of its answer, so `max_queue` bounds bodies, decoded
images and waiting jobs alike.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.metrics import ServerMetrics
from scaleearth_pl.serving.queueing import Batcher, BatchPolicy
from scaleearth_pl.serving.server_chat import answer_chat
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits, error_body
from scaleearth_pl.serving.server_service import Service

ADDRESSES = "POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics"
"""What a browser that opens the bare address is told."""


def create_app(
    assistant: Assistant, *, name: str = "scaleearth", limits: ServerLimits | None = None, batching: BatchPolicy
) -> FastAPI:
    """The application; its `state.service` is the `Service`."""
    metrics = ServerMetrics()
    batcher = Batcher(assistant, batching, metrics.passed)
    limits = limits or ServerLimits()
    service = Service(assistant=assistant, name=name, limits=limits, batcher=batcher, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await run_sync(batcher.stop)

    app = FastAPI(title="ScaleEarth", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    _routes(app, service)
    _refusals(app, service)
    return app


def _routes(app: FastAPI, service: Service) -> None:
    started = int(time.time())
    card = {"id": service.name, "object": "model", "created": started, "owned_by": "scaleearth"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer_chat(service, request)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, object]:
        if model != service.name:
            raise RefusedError(404, f"no model {model!r}; this server has {service.name!r}", param="model")
        return dict(card)

    @app.get("/health")
    async def health() -> JSONResponse:
        well = service.batcher.alive and not service.stopping
        row = {"status": "ok" if well else "stopping", "accepted": service.accepted}
        return JSONResponse(row, status_code=200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _refusals(app: FastAPI, service: Service) -> None:
    app.add_middleware(_Counted, metrics=service.metrics)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        message = (
            f"{error.detail}: this server has {ADDRESSES}" if error.status_code in (404, 405) else str(error.detail)
        )
        return JSONResponse(
            error_body(error.status_code, message), status_code=error.status_code, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, f"a fault of the server: {type(error).__name__}"), status_code=500)


class _Counted:
    """Counts replies by status; that to an unforeseen error is sent around it, after the error has passed through."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.replied(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            if scope["type"] == "http" and not begun:
                self.metrics.replied(500)
            raise
