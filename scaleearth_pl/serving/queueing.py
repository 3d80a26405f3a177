"""Micro-batching: requests that arrive together are answered in one packed pass, whatever their GSDs.

    HTTP tasks  --submit-->  queue  --collect: up to `max_batch` jobs, a full pass, or `max_wait_s`-->  engine.run
        ^                                                                                               |
        +------------------------- futures, and texts as they grow ------------------------------------+

One thread owns the engine. While it computes, others queue, so under load batches fill by themselves; the wait only
serves requests that arrive within a few milliseconds of each other on an idle server, and is its price: `max_wait_s`
of latency for a lone request. The engine's answers do not depend on who shares the pass.

A job's own `max_new_tokens` is honoured although the pass runs to the longest: greedy decoding of n tokens is the
beginning of a longer one, so an answer is cut where its own limit was reached.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.pass_size import PassSize
from scaleearth_pl.serving.query import Answer, Prepared
from scaleearth_pl.serving.stream import OnToken

_LOG = logging.getLogger(__name__)

OnText = Callable[[int, str], None]
"""Called with (number of the question, answer so far), in the engine's thread."""


class Engine(Protocol):
    """What the queue needs of `engine.Assistant`."""

    max_batch_tokens: int

    def run(
        self, prepared: Sequence[Prepared], *, max_new_tokens: int | None = None, on_token: OnToken | None = None
    ) -> list[list[Answer]]:
        """Answers of prepared queries, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """When a batch is closed: `max_batch` jobs, a full pass (`pass_size.py`), or `max_wait_s` after the first arrived."""

    max_batch: int = 32
    max_wait_s: float = 0.005

    def __post_init__(self) -> None:
        if self.max_batch < 1 or not 0 <= self.max_wait_s <= 10:
            raise ConfigError(
                "max_batch must be positive and max_wait_s between 0 and 10",
                field="max_batch, max_wait_s",
                value=(self.max_batch, self.max_wait_s),
            )


@dataclass(kw_only=True, eq=False)
class Job:
    """One accepted request; its future holds the answers or what went wrong."""

    prepared: Prepared
    max_new_tokens: int
    on_text: OnText | None = None
    future: "Future[list[Answer]]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> PassSize:
        """Of a pass that holds this job alone."""
        return self.prepared.size(self.max_new_tokens)

    def listen(self, on_text: OnText) -> None:
        """Who hears the texts as they grow; to be said before `submit`."""
        self.on_text = on_text


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """One pass: how many jobs and questions it held, and how long it took."""

    n_jobs: int
    n_questions: int
    seconds: float


class Batcher:
    """The queue and the thread that empties it; see the module's docstring."""

    def __init__(self, engine: Engine, policy: BatchPolicy, observe: Callable[[BatchReport], None]) -> None:
        self.policy = policy
        self.seconds_per_job = 0.1
        self._engine, self._observe = engine, observe
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._held: Job | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Answers whatever was submitted before, then ends the thread."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether anybody will answer."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> "Future[list[Answer]]":
        """Queues a job; returns its future."""
        self._jobs.put(job)
        return job.future

    def _loop(self) -> None:
        while batch := self._collect():
            begun = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if begun:
                self._answer(begun)

    def _collect(self) -> list[Job]:
        """The next batch; an empty one means stop."""
        first = self._held or self._jobs.get()
        self._held = None
        if first is None:
            return []
        batch, size, closes = [first], first.size, first.arrived + self.policy.max_wait_s
        while len(batch) < self.policy.max_batch:
            job = self._next(closes)
            if job is None:
                break
            size = size + job.size
            if not size.fits(self._engine.max_batch_tokens):
                self._held = job
                break
            batch.append(job)
        return batch

    def _next(self, closes: float) -> Job | None:
        """A job that is there already, or comes before the batch closes."""
        try:
            wait = closes - time.monotonic()
            job = self._jobs.get(timeout=wait) if wait > 0 else self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._jobs.put(None)  # for the next round: first the jobs in hand
        return job

    def _answer(self, batch: list[Job]) -> None:
        begin = time.monotonic()
        try:
            self._pass(batch)
        except Exception as error:
            if len(batch) == 1:
                _LOG.error("a pass failed", exc_info=error)  # the client is told its type only
                batch[0].future.set_exception(error)
                return
            for job in batch:  # memory, or one bad job: nobody suffers for a neighbour
                self._answer([job])
            return
        seconds = time.monotonic() - begin
        self.seconds_per_job += 0.2 * (seconds / len(batch) - self.seconds_per_job)
        n_questions = sum(len(job.prepared.questions) for job in batch)
        self._observe(BatchReport(n_jobs=len(batch), n_questions=n_questions, seconds=seconds))

    def _pass(self, batch: list[Job]) -> None:
        cuts = _Cuts(batch)
        longest = max(job.max_new_tokens for job in batch)
        rows = self._engine.run([job.prepared for job in batch], max_new_tokens=longest, on_token=cuts)
        for number, (job, answers) in enumerate(zip(batch, rows, strict=True)):
            job.future.set_result([cuts.cut(number, k, answer) for k, answer in enumerate(answers)])


class _Cuts:
    """Counts every answer's tokens, passes its text on, and keeps the text at the job's own limit."""

    def __init__(self, batch: Sequence[Job]) -> None:
        self._batch = batch
        self._counts: dict[tuple[int, int], int] = {}
        self._texts: dict[tuple[int, int], str] = {}

    def __call__(self, query: int, question: int, text: str) -> None:
        key, job = (query, question), self._batch[query]
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= job.max_new_tokens:
            self._texts[key] = text
            if job.on_text is not None:
                job.on_text(question, text)

    def cut(self, query: int, question: int, answer: Answer) -> Answer:
        """The answer as a pass with the job's own limit would have given it."""
        limit = self._batch[query].max_new_tokens
        if answer.n_new_tokens <= limit:
            return replace(answer, complete=answer.n_new_tokens < limit)
        return replace(answer, text=self._texts[query, question], n_new_tokens=limit, complete=False)
