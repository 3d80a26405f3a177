"""What the routes of a server share: the model, the queue, the count of accepted requests, and the check of a body."""

import math
from dataclasses import dataclass, field

import anyio
from anyio.to_thread import run_sync

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.model.pass_size import PassSize, max_slots
from scaleearth_pl.serving import openai_api
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.metrics import ServerMetrics
from scaleearth_pl.serving.openai_api import ChatRequest
from scaleearth_pl.serving.query import Prepared, Query
from scaleearth_pl.serving.queueing import Batcher
from scaleearth_pl.serving.server_images import image_from_url
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits

HOST_THREADS = 4
"""Requests checked at the same time (JSON, base64, decoding, resizing, tokens): more would only take the engine's cores.
It bounds memory too: so many images of `max_image_pixels` are decoded at once, at most."""


@dataclass(kw_only=True, eq=False)
class Service:
    """What the routes share."""

    assistant: Assistant
    name: str
    limits: ServerLimits
    batcher: Batcher
    metrics: ServerMetrics
    accepted: int = 0
    stopping: bool = False
    threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(HOST_THREADS))

    def accept(self) -> None:
        """Counts a request in, or refuses it."""
        if self.stopping:
            raise RefusedError(503, "the server is stopping", retry_after_s=5)
        if self.accepted >= self.limits.max_queue:
            wait = math.ceil(min(60.0, max(1.0, self.accepted * self.batcher.seconds_per_job)))
            raise RefusedError(429, f"{self.accepted} requests are waiting already; try again", retry_after_s=wait)
        self._count(+1)

    def stop(self) -> None:
        """From now on, requests are refused; those accepted are answered."""
        self.stopping = True

    def release(self) -> None:
        """Counts it out."""
        self._count(-1)

    def _count(self, change: int) -> None:
        self.accepted += change
        self.metrics.accepted.set(self.accepted)

    async def check(self, body: bytes) -> tuple[ChatRequest, Prepared]:
        """All host work of one request, in a thread; every fault of the client comes out as `RefusedError`."""
        return await run_sync(self._checked, body, limiter=self.threads)

    def _checked(self, body: bytes) -> tuple[ChatRequest, Prepared]:
        try:
            return self._prepare(body)
        except GsdError as error:
            raise RefusedError(422, str(error), param="gsd_m") from error
        except (SampleError, ConfigError) as error:
            raise RefusedError(422, str(error)) from error

    def _prepare(self, body: bytes) -> tuple[ChatRequest, Prepared]:
        request = openai_api.parse(body)
        if request.model != self.name:
            raise RefusedError(404, f"no model {request.model!r}; this server has {self.name!r}", param="model")
        questions = openai_api.prompts(request, self.limits)
        self.limits.check_gsd_m(request.gsd_m, "gsd_m")
        self.limits.check_gsd_m(request.spoof_gsd_m, "spoof_gsd_m")
        if request.gsd_sigma_log10 is not None and request.gsd_m is None:
            raise RefusedError(422, "gsd_sigma_log10 says how sure gsd_m is, which is absent", param="gsd_sigma_log10")
        url = openai_api.image_url(request)
        query = Query(
            image=image_from_url(url, self.limits, max_read_pixels=self.assistant.max_read_pixels),
            questions=questions,
            policy=request.gsd_policy,
            gsd_m=request.gsd_m,
            gsd_sigma_log10=0.01 if request.gsd_sigma_log10 is None else request.gsd_sigma_log10,
            spoof_gsd_m=request.spoof_gsd_m,
        )
        prepared = self.assistant.prepare(query)
        self.limits.check_gsd_m(prepared.gsd.gsd_m, "the file's GSD")
        check_size(prepared.size(self.longest_answer(request)), self.assistant.max_batch_tokens)
        return request, prepared

    def longest_answer(self, request: ChatRequest) -> int:
        """Tokens of one answer at most: what the request allows, within what the server does."""
        longest = self.assistant.max_new_tokens
        return min(request.max_completion_tokens or request.max_tokens or longest, longest)


def check_size(size: PassSize, max_batch_tokens: int) -> None:
    """Refuses a request that fills more than one pass by itself."""
    if size.n_tokens > max_batch_tokens:
        raise RefusedError(413, f"{size.n_tokens} tokens, of {max_batch_tokens} allowed: ask less at once")
    if not size.fits(max_batch_tokens):
        raise RefusedError(
            413,
            f"{size.n_slots} cache slots, of {max_slots(max_batch_tokens)} allowed: {size.n_branches} questions x (the "
            f"longest's {size.longest_prompt} tokens + {size.max_new_tokens} of an answer) + {size.longest_prefix} of "
            "the image. Ask the longest question apart, fewer at once, or with a smaller max_tokens",
            param="questions",
        )
