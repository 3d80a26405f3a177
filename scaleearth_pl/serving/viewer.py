"""`scaleearth viewer`: move the GSD slider and watch the gates and the answers follow.

    scaleearth viewer --model runs/stage2-tiny-world/latest --corpus data_shards/world     then open the address it prints

A page of plain HTML, JavaScript and SVG (`viewer.html`, nothing from elsewhere) over four addresses:

    GET  /             the page                         GET  /api/model   thresholds of every gate, once: the browser
    GET  /api/images   the corpus' images                                 draws h_k(s) itself, at the pace of the slider
    GET  /api/image/N  one of them, as PNG              POST /api/look    answers at a scale, with the gate on and off

`/api/look` asks all questions twice in one packed pass: gated at the wanted scale, and with every rank open.
Images come from the corpus or as a data URL from the visitor's disk. Body, texts, image and pass are within the server's
bounds. It is meant for one person on their own machine: there is no queue here, and the engine's lock is enough.
"""

import argparse
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ScaleEarthError
from scaleearth_pl.model.backbone import silence_loading
from scaleearth_pl.serving import server_body
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.options import add_model_options, assistant_of
from scaleearth_pl.serving.server_announce import AnnouncingServer
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits, error_body, port
from scaleearth_pl.serving.viewer_corpus import CorpusImages
from scaleearth_pl.serving.viewer_look import Look, gates, look

PAGE = Path(__file__).with_name("viewer.html")


def create_viewer(assistant: Assistant, images: CorpusImages, *, limits: ServerLimits | None = None) -> FastAPI:
    """The application."""
    app = FastAPI(title="ScaleEarth viewer", docs_url=None, redoc_url=None)
    bounds, page, model = limits or ServerLimits(), PAGE.read_text(encoding="utf-8"), gates(assistant)

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/api/model")
    def about() -> dict[str, Any]:
        return model

    @app.get("/api/images")
    def listing() -> list[dict[str, Any]]:
        return images.rows

    @app.get("/api/image/{number}")
    def picture(number: int) -> Response:
        stream = io.BytesIO()
        images.open(number).pixels.save(stream, format="PNG")
        return Response(stream.getvalue(), media_type="image/png")

    @app.post("/api/look")
    async def looked(request: Request) -> dict[str, Any]:
        wanted = server_body.parse(Look, await server_body.read(request, bounds))
        return await run_sync(look, assistant, images, wanted, bounds)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(ScaleEarthError)
    async def faulty(_: Request, error: ScaleEarthError) -> JSONResponse:
        return JSONResponse(error_body(422, str(error)), status_code=422)

    return app


@command
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    silence_loading()
    assistant = assistant_of(args)
    images = CorpusImages(args.corpus, split=args.split, count=args.images, max_read_pixels=assistant.max_read_pixels)
    app = create_viewer(assistant, images)
    screen = console(stderr=True, highlight=False)
    screen.print(f"model {assistant.loaded.adapter.path}, {len(images.rows)} images of {args.corpus}", soft_wrap=True)

    def announce(port: int) -> None:
        screen.print(f"open http://{args.host}:{port}/   stop with Ctrl-C", soft_wrap=True)

    config = uvicorn.Config(app, host=args.host, port=args.port, log_level="warning", ws="none", server_header=False)
    server = AnnouncingServer(config, announce)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has stopped
        server.run()
    return 0 if server.started else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaleearth viewer", description="A page with a GSD slider.")
    parser.add_argument("--corpus", type=Path, default=Path("data_shards/world"), help="images to pick from")
    parser.add_argument("--split", default="val", help="of the corpus")
    parser.add_argument("--images", type=int, default=48, help="how many images to offer")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=port, default=7860, help="port to listen on")
    add_model_options(parser)
    return parser
