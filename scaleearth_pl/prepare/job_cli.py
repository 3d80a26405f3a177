"""What the commands `generate` and `audit` share: options of the server, the progress bar, the summary.

The bar shows items, failures, tokens in and out, their price where one is given, and the time left. Prices are options,
because a local server costs by the hour and a hosted one by the token.
"""

import argparse
import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID, TextColumn
from rich.table import Table

from scaleearth_pl.core.console import console, progress_bar
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.chat import Chat, ChatConfig, Spent
from scaleearth_pl.prepare.job_limits import Limits, RunReport
from scaleearth_pl.prepare.jobs import Job, run_jobs
from scaleearth_pl.prepare.ledger import Ledger

STATUS_ALL, STATUS_SOME_FAILED = 0, 3
"""Exit status: every item has its result; the run ended and some items were quarantined. 2: an error stopped the run."""


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the server and of the run."""
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder of index.json")
    add("--out", type=Path, required=True, help="ledger of results; <out>.failed.jsonl holds what failed")
    add("--base-url", help="OpenAI-compatible server, such as http://localhost:8000/v1")
    add("--model", required=True, help="name of the model as the server knows it")
    add("--provider", choices=["openai", "anthropic"], default="openai", help="kind of server")
    add("--api-key-env", help="environment variable that holds the key; a local server needs none")
    add("--concurrency", type=int, default=8, help="requests in flight")
    add("--attempts", type=int, default=6, help="tries per request while the server fails")
    add("--timeout", type=float, default=120.0, help="seconds for one attempt")
    add("--deadline", type=float, default=600.0, help="seconds for a request with all its attempts")
    add("--backoff", type=float, default=0.5, help="seconds of the first wait at most; doubled each time")
    add("--max-tokens", type=int, default=1024, help="longest reply")
    add("--temperature", type=float, default=0.0, help="of an OpenAI-compatible server")
    add("--seed", type=int, default=1, help="seed of the first attempt")
    add("--max-failed-share", type=float, default=0.05, help="share of failed items above which the run stops")
    add("--retry-failed", action="store_true", help="ask quarantined items again")
    add("--price-in", type=float, default=0.0, help="price of a million prompt tokens")
    add("--price-out", type=float, default=0.0, help="price of a million completion tokens")


def chat_config(args: argparse.Namespace) -> ChatConfig:
    """The client's settings from parsed options; `ConfigError` where the key's variable is not set."""
    return ChatConfig(
        base_url=args.base_url,
        model=args.model,
        provider=args.provider,
        api_key=_api_key(args.api_key_env),
        concurrency=args.concurrency,
        attempts=args.attempts,
        timeout_s=args.timeout,
        deadline_s=args.deadline,
        backoff_s=args.backoff,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )


def _api_key(variable: str | None) -> str:
    if variable is None:
        return "none"
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(
            "no key in this environment variable",
            field="api_key_env",
            value=variable,
            remedy=f"export {variable}=..., or leave --api-key-env out for a server that needs no key",
        )
    return key


def run_command(
    args: argparse.Namespace, jobs_of: Callable[[ChatConfig], tuple[Iterator[Job], int]], *, what: str
) -> int:
    """Runs `jobs_of(config)` (jobs, how many at most) with a bar and a summary; returns the exit status."""
    config, limits = chat_config(args), Limits(max_share=args.max_failed_share)
    jobs, total = jobs_of(config)
    failed_path = args.out.with_name(f"{args.out.name.removesuffix('.jsonl')}.failed.jsonl")
    cost = TextColumn("{task.fields[cost]}")
    with Ledger(args.out) as done, Ledger(failed_path) as failed, progress_bar(cost) as bar:
        watcher = _Watcher(bar, bar.add_task(what, total=total, cost=""), args.price_in, args.price_out)
        report, spent = asyncio.run(_run(jobs, config, done, failed, limits, args.retry_failed, watcher))
    console(stderr=True).print(summary(report, spent, watcher.price(spent)))
    return STATUS_SOME_FAILED if report.n_failed else STATUS_ALL


async def _run(
    jobs: Iterator[Job],
    config: ChatConfig,
    done: Ledger,
    failed: Ledger,
    limits: Limits,
    retry_failed: bool,
    watcher: "_Watcher",
) -> tuple[RunReport, Spent]:
    async with Chat(config) as chat:
        report = await run_jobs(
            jobs,
            chat=chat,
            done=done,
            failed=failed,
            limits=limits,
            retry_failed=retry_failed,
            observe=lambda report: watcher.show(report, chat.spent),
        )
        return report, chat.spent


class _Watcher:
    def __init__(self, bar: Progress, task: TaskID, price_in: float, price_out: float) -> None:
        self._bar, self._task, self._price_in, self._price_out = bar, task, price_in, price_out

    def price(self, spent: Spent) -> float:
        return (spent.prompt_tokens * self._price_in + spent.completion_tokens * self._price_out) / 1e6

    def show(self, report: RunReport, spent: Spent) -> None:
        cost = f"{report.n_failed} failed, tokens {spent.prompt_tokens:,} in {spent.completion_tokens:,} out"
        if self._price_in or self._price_out:
            cost += f", cost {self.price(spent):.2f}"
        self._bar.update(self._task, completed=report.n_seen, cost=cost)


def summary(report: RunReport, spent: Spent, price: float) -> Table:
    """Counts of a run for people."""
    rows: dict[str, Any] = {
        "asked and recorded": report.asked,
        "recorded by an earlier run": report.recorded_before,
        "same request twice in the plan": report.twice_in_plan,
        **{f"failed: {kind}": n for kind, n in sorted(report.failed.items())},
        "quarantined by an earlier run": report.failed_before,
        "requests sent": spent.requests,
        "of these, repeated attempts": spent.retries,
        "prompt tokens": spent.prompt_tokens,
        "completion tokens": spent.completion_tokens,
    }
    table = Table(show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    if price:
        table.add_row("cost", f"{price:,.2f}")
    return table
