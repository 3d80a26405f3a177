"""Many requests, each paid for once: the engine under generation and audit.

    jobs (lazy) -> `concurrency` workers: ask -> parse -> recorded and fsynced -> next job
                                           |-> failed: quarantine file, with kind and reason

A worker takes its next job only when its last result is on the disk. So at any moment at most `concurrency` requests
are unrecorded, and that is all that a kill -9 can cost; recorded ids are passed over on the next run. Results that
arrive together share one write and one `fsync` (group commit): milliseconds against seconds of a model.

When a run is stopped: `job_limits.py`.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.prepare.chat import Chat, ChatConfig
from scaleearth_pl.prepare.chat_errors import ChatError, RejectedError, ServerError
from scaleearth_pl.prepare.chat_providers import ChatRequest
from scaleearth_pl.prepare.job_limits import Limits, RunReport
from scaleearth_pl.prepare.ledger import Ledger, read_records, record_id
from scaleearth_pl.prepare.prompts.compose import Prompt
from scaleearth_pl.prepare.views import MIMES, EncodedImage


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request and its record.

    Args:
        id: hash of all that decides the reply (`ledger.record_id`).
        facts: what the record says beside the reply.
        request: makes the request; called only if it is asked, raises `SampleError` for a bad image.
        parse: text of the reply to the record's reply fields; `ValueError` where it is not what was asked for.
    """

    id: str
    facts: dict[str, Any]
    request: Callable[[], ChatRequest]
    parse: Callable[[str], dict[str, Any]]


def make_job(
    facts: dict[str, Any],
    prompt: Prompt,
    image: Callable[[], EncodedImage],
    schema: tuple[str, dict[str, Any]],
    parse: Callable[[str, str], dict[str, Any]],
    config: ChatConfig,
) -> Job:
    """A job whose id hashes image, view, prompt, model and sampling, and in an audit the record that is judged.

    Args:
        facts: what the record says of the view (`views.facts_of`); holds `image_sha256` and `factor`. A `record_id`
            counts too: verdicts name that record's questions, so equal texts of another record are asked anew.
        prompt: the texts.
        image: encodes the view; called only if the job is asked.
        schema: name and JSON schema of the reply.
        parse: (id, text of the reply) to the record's reply fields.
        config: the client's, for what it decides of the reply.
    """
    asked: dict[str, Any] = {name: facts[name] for name in ("factor", "record_id") if name in facts}
    sampling = {"max_tokens": config.max_tokens, "temperature": config.temperature, "seed": config.seed}
    identity = record_id(
        image_sha256=facts["image_sha256"],
        prompt_version=prompt.version,
        prompt=f"{prompt.system}\n\n{prompt.user}",
        model=config.model,
        parameters={**asked, **sampling},
    )

    def request() -> ChatRequest:
        encoded = image()
        return ChatRequest(
            system=prompt.system,
            text=prompt.user,
            image=encoded.data,
            image_mime=MIMES[encoded.ext],
            schema_name=schema[0],
            schema=schema[1],
        )

    facts = {**facts, "model": config.model, "prompt_version": prompt.version}
    return Job(id=identity, facts=facts, request=request, parse=partial(parse, identity))


def broken_job(facts: dict[str, Any], error: SampleError | GsdError) -> Job:
    """A job that fails with `error` when it is asked, so that an unreadable image is quarantined like any failure."""

    def request() -> ChatRequest:
        raise error

    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return Job(id=identity, facts=facts, request=request, parse=lambda _: {})


async def run_jobs(
    jobs: Iterator[Job],
    *,
    chat: Chat,
    done: Ledger,
    failed: Ledger,
    limits: Limits,
    retry_failed: bool = False,
    observe: Callable[[RunReport], None] = lambda _: None,
) -> RunReport:
    """Asks every job that has no record yet.

    Args:
        jobs: pulled lazily, so that a plan of millions costs no memory.
        chat: the client; its concurrency is the number of workers.
        done: ledger of results.
        failed: ledger of failures; those that are the item's own fault are not asked again, unless `retry_failed`.
        limits: when to stop.
        retry_failed: ask quarantined items again.
        observe: called after every item, for a progress bar.

    Raises:
        QuarantineLimitError: too large a share has failed.
        ServerError: the server seems to be gone.
        ConfigError: the server refuses all requests, or rejected every one of the first `patience`: none of them is
            recorded as failed, since that is the fault of no item.
        DiskSpaceError: a record cannot be written.
    """
    run = _Run(jobs, chat, done, failed, limits, retry_failed, observe)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(chat.config.concurrency):
                group.create_task(run.worker())
    except ExceptionGroup as errors:
        raise _first(errors) from errors
    await run.release()
    observe(run.report)
    run.report.judge(limits, final=True, file=failed.path)
    return run.report


class _Run:
    def __init__(
        self,
        jobs: Iterator[Job],
        chat: Chat,
        done: Ledger,
        failed: Ledger,
        limits: Limits,
        retry_failed: bool,
        observe: Callable[[RunReport], None],
    ) -> None:
        self.report = RunReport()
        self._jobs, self._chat, self._done, self._limits, self._observe = jobs, chat, done, limits, observe
        self._recorder, self._quarantine = _Recorder(done), _Recorder(failed)
        self._given_up = set() if retry_failed else _for_good(failed)
        self._pulling, self._unanswered = asyncio.Lock(), 0
        self._rejected_first: list[tuple[Job, RejectedError]] | None = []  # None once anything else has happened
        self._seen: set[str] = set()

    async def worker(self) -> None:
        while (job := await self._next()) is not None:
            await self._ask(job)
            self._observe(self.report)
            self.report.judge(self._limits, final=False, file=self._quarantine.ledger.path)

    async def _next(self) -> Job | None:
        # Pulling reads and hashes an image: in a thread, so that the other workers' replies are not kept waiting.
        async with self._pulling:
            return await asyncio.to_thread(self._pull)

    def _pull(self) -> Job | None:
        for job in self._jobs:
            if job.id in self._seen:
                self.report.twice_in_plan += 1
            elif job.id in self._done:
                self.report.recorded_before += 1
            elif job.id in self._given_up:
                self.report.failed_before += 1
            else:
                self._seen.add(job.id)
                return job
            self._seen.add(job.id)
        return None

    async def _ask(self, job: Job) -> None:
        try:
            request = await asyncio.to_thread(job.request)
            answer = await self._chat.ask(request, job.parse)
        except (ChatError, SampleError, GsdError) as error:
            await self._fail_or_hold(job, error)
            return
        await self.release()
        tokens = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        await self._recorder.put({"id": job.id, **job.facts, **tokens, **answer.value})
        self._unanswered = 0
        self.report.asked += 1

    async def release(self) -> None:
        """Records the rejections that were held back: the server does not reject everything, or nothing is left to ask."""
        held, self._rejected_first = self._rejected_first or [], None
        for job, error in held:
            await self._fail(job, error)

    async def _fail_or_hold(self, job: Job, error: ChatError | SampleError | GsdError) -> None:
        held = self._rejected_first
        if held is None or not isinstance(error, RejectedError):
            await self.release()
            await self._fail(job, error)
            return
        held.append((job, error))
        if len(held) >= self._limits.patience:
            raise ConfigError(
                f"the server rejected each of the first {len(held)} requests, the last because: {error.problem}",
                field="status",
                remedy="check the account, --model and --max-tokens; nothing was recorded, so run the same command again",
            ) from error

    async def _fail(self, job: Job, error: ChatError | SampleError | GsdError) -> None:
        kind = error.kind if isinstance(error, ChatError) else "image"
        await self._quarantine.put({"id": job.id, **job.facts, "kind": kind, "reason": str(error)})
        self.report.failed[kind] += 1
        self._unanswered = self._unanswered + 1 if isinstance(error, ServerError) else 0
        if self._unanswered >= self._limits.patience:
            raise ServerError(
                f"the server answered none of the last {self._unanswered} items; what was recorded is kept",
                remedy="start it again and run the same command: only the rest is asked",
            ) from error


class _Recorder:
    """Group commit: whoever gets the lock first writes all that waits, and the others find it written."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: list[dict[str, Any]] = []
        self._lock = asyncio.Lock()

    async def put(self, record: dict[str, Any]) -> None:
        self._waiting.append(record)
        async with self._lock:
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self.ledger.append, batch)


def _for_good(failed: Ledger) -> set[str]:
    return {record["id"] for record in read_records(failed.path) if record.get("kind") != ServerError.kind}


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
