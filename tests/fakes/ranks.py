"""Ranks as processes of their own over gloo on the CPU, forked: what takes seconds to import is there already."""

import importlib
import json
import multiprocessing as mp
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaleearth_pl.cli import collector_at_rest

TESTS = Path(__file__).parents[1]
LIMIT_S = 300
IMPORTED = (
    "torch.distributed.checkpoint.state_dict",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "scaleearth_pl.training.command",
    "scaleearth_pl.training.stage1",
    "scaleearth_pl.training.stage2",
)


def in_group(work: Callable[[int], Any], folder: Path, n: int = 2) -> list[Any]:
    """What `work(rank)` returns in each of `n` forks of this process, which meet in `folder` as one process group."""
    ended = _fork([(_work_in_group, (work, rank, n, folder)) for rank in range(n)])
    assert ended == [0] * n, ended
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(n)]


def _work_in_group(work: Callable[[int], Any], rank: int, n: int, folder: Path) -> None:
    meet = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=n, timeout=timedelta(seconds=60))
    torch.save(work(rank), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def run_ranks(commands: list[list[list[str]]], logs: Path) -> list[tuple[int, str]]:
    """Runs `commands[rank]`, a list of command lines, in one process a rank; (exit status, output) of each.

    The ranks share one process group for all their command lines, one after the other. They are forked from a process
    that has done nothing but imports: this one may have threads.
    """
    words = [sys.executable, "-m", "fakes.ranks", json.dumps(commands), str(logs)]
    path = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    subprocess.run(words, env=os.environ | path, check=True)
    statuses = json.loads((logs / "statuses.json").read_text())
    return [(status, (logs / f"rank{rank}.log").read_text()) for rank, status in enumerate(statuses)]


def main(commands: list[list[list[str]]], logs: Path) -> None:
    """In the process that forks."""
    torch.set_num_threads(1)
    with collector_at_rest():
        for name in IMPORTED:
            importlib.import_module(name)
        sys.modules["scaleearth_pl.model.backbone"].import_bitsandbytes()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(commands))}
    shared |= {"SCALEEARTH_VERSION": "v0", "NODE_RANK": "0"}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(commands))]
    jobs = [(_run_lines, (lines, ranks[r], logs / f"rank{r}.log")) for r, lines in enumerate(commands)]
    (logs / "statuses.json").write_text(json.dumps(_fork(jobs)))


def _run_lines(lines: list[list[str]], environment: dict[str, str], log: Path) -> None:
    from fakes.runs import shallow

    from scaleearth_pl.cli import run

    os.environ.update(environment)
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    with shallow():
        for line in lines:
            if status := run(line):
                sys.exit(status)


def _fork(jobs: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> list[int | None]:
    """Each job in a fork of this process; their exit statuses, None for one that was not through in time."""
    context = mp.get_context("fork")
    forks = [context.Process(target=target, args=arguments) for target, arguments in jobs]
    end = time.monotonic() + LIMIT_S
    try:
        for fork in forks:
            fork.start()
        for fork in forks:
            fork.join(max(0.0, end - time.monotonic()))
        return [fork.exitcode for fork in forks]
    finally:
        for fork in forks:
            fork.kill()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
