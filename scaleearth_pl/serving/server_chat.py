"""One chat request from its first byte to its last: accept, read, check, queue, reply.

Without `Service.accept` nothing of a body is kept, and `server_body.py` bounds what is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from scaleearth_pl.serving import openai_api_reply, server_body
from scaleearth_pl.serving.openai_api import ChatRequest
from scaleearth_pl.serving.openai_api_reply import ReplyHead
from scaleearth_pl.serving.query import Answer
from scaleearth_pl.serving.queueing import Job
from scaleearth_pl.serving.server_limits import RefusedError, error_body
from scaleearth_pl.serving.server_service import Service


async def answer_chat(service: Service, request: Request) -> Response:
    """The reply to one request; `RefusedError` where there is none."""
    begin = time.monotonic()
    try:
        service.accept()
    except RefusedError:
        await server_body.discard(request, service.limits)
        raise
    handed_over = False
    try:
        chat, prepared = await service.check(await server_body.read(request, service.limits))
        limit = service.longest_answer(chat)
        head = ReplyHead(model=service.name, notes=chat.notes)
        if chat.stream:
            handed_over = True
            return _Streamed(service, head, chat, Job(prepared=prepared, max_new_tokens=limit), begin)
        answers = await _answers(service, request, Job(prepared=prepared, max_new_tokens=limit))
        service.metrics.answered(answers, time.monotonic() - begin)
        return JSONResponse(openai_api_reply.completion(head, answers))
    finally:
        if not handed_over:
            service.release()


async def _answers(service: Service, request: Request, job: Job) -> list[Answer]:
    """The answers; a client that leaves before its turn is not computed for."""
    answers = asyncio.wrap_future(service.batcher.submit(job))
    left = asyncio.create_task(_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {answers, left}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise RefusedError(400, server_body.LEFT)
        return answers.result()
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(500, _failed(error)) from error
    finally:
        left.cancel()
        answers.cancel()


async def _gone(request: Request) -> None:
    """Waits until the client of a body that has been read leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed(error: BaseException) -> str:
    return f"the model failed: {type(error).__name__}"


class _Streamed(StreamingResponse):
    """A streamed reply that gives its place back however it ends: read to the end, or left by its client.

    A client that leaves before its turn is not computed for.
    """

    def __init__(self, service: Service, head: ReplyHead, chat: ChatRequest, job: Job, begin: float) -> None:
        self._service, self._job = service, job
        events = _events(service, head, chat, job, begin)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.future.cancel()
            self._service.release()


async def _events(service: Service, head: ReplyHead, chat: ChatRequest, job: Job, begin: float) -> AsyncIterator[bytes]:
    """Events of one reply, as its texts grow."""
    texts = asyncio.Queue[tuple[int, str] | None]()
    post = _into(asyncio.get_running_loop(), texts)
    job.listen(lambda question, text: post((question, text)))
    sent = dict.fromkeys(range(len(job.prepared.questions)), "")
    service.batcher.submit(job).add_done_callback(lambda _: post(None))
    for index in sent:
        yield openai_api_reply.chunk(head, index, {"role": "assistant", "content": ""})
    while (item := await texts.get()) is not None:
        index, whole = item[0], item[1].rstrip("\ufffd")  # half a character is not sent
        if len(whole) > len(sent[index]) and whole.startswith(sent[index]):
            yield openai_api_reply.chunk(head, index, {"content": whole[len(sent[index]) :]})
            sent[index] = whole
    if error := job.future.exception():
        yield openai_api_reply.event(error_body(500, _failed(error)))
        return
    answers = job.future.result()
    for part in _ends(head, chat, answers, sent):
        yield part
    service.metrics.answered(answers, time.monotonic() - begin)


def _into(
    loop: asyncio.AbstractEventLoop, texts: "asyncio.Queue[tuple[int, str] | None]"
) -> Callable[[tuple[int, str] | None], None]:
    """From the engine's thread into the loop's queue."""

    def post(item: tuple[int, str] | None) -> None:
        loop.call_soon_threadsafe(texts.put_nowait, item)

    return post


def _ends(head: ReplyHead, chat: ChatRequest, answers: list[Answer], sent: dict[int, str]) -> list[bytes]:
    scale = openai_api_reply.scale_row(head, answers)
    parts = []
    for index, answer in enumerate(answers):
        rest = answer.text[len(sent[index]) :]
        finish = openai_api_reply.finish_reason(answer)
        parts.append(openai_api_reply.chunk(head, index, {"content": rest} if rest else {}, finish, scaleearth=scale))
    if chat.stream_options and chat.stream_options.include_usage:
        parts.append(openai_api_reply.usage_chunk(head, answers))
    return [*parts, openai_api_reply.DONE]
