"""Faults of machine and libraries, recognised and given a name and a remedy.

PyTorch says most of them as a `RuntimeError` with a sentence. Here each sentence that a run can end with becomes a
typed error; what is not recognised stays what it is, with its traceback, because it is a bug.
"""

import re

import torch

from scaleearth_pl.core.errors import (
    DiskSpaceError,
    MemoryExhaustedError,
    PeerLostError,
    ScaleEarthError,
    WorkerError,
)
from scaleearth_pl.core.files import NO_ROOM
from scaleearth_pl.training.ranks import in_group

UNKNOWN_STATUS = 1
"""Exit status after an error that nobody expected (Python's own)."""

_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|bad allocation")
_WORKER = re.compile(r"DataLoader worker \(pid|DataLoader timed out")
_PEER = re.compile(
    r"[Cc]onnection (closed by peer|reset by peer|refused)|Broken pipe|Timed out waiting|NCCL .*(abort|time)|"
    r"[Ss]ocket (closed|error)|recvValue failed|failed to recv|DistNetworkError|DistBackendError"
)


def as_typed(error: BaseException) -> ScaleEarthError | None:
    """The typed error that says the same, or None: `error` is not one that we know."""
    if isinstance(error, ScaleEarthError):
        return error
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _MEMORY.search(text)
    ):
        return MemoryExhaustedError(
            f"out of memory: {first_line(text)}",
            field="data.micro_token_budget",
            remedy="lower micro_token_budget (same gradients, only slower), switch backbone.checkpointing on, or lower "
            "max_pixels; a resumed run goes on where it stood",
        )
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskSpaceError(str(error), file=error.filename, remedy="free space, then resume")
    if isinstance(error, RuntimeError) and _WORKER.search(text):
        return WorkerError(
            f"a loader's worker died or fell silent: {first_line(text)}",
            field="data.num_workers",
            remedy="look for the out-of-memory killer and for a slow disk; fewer workers need less; then resume",
        )
    # A broken pipe or a refused connection is a peer's only where there are peers; it may be a pager, or a server.
    of_ranks = isinstance(error, RuntimeError) or (isinstance(error, OSError) and in_group())
    if of_ranks and _PEER.search(text):
        return PeerLostError(f"another rank is gone: {first_line(text)}", remedy="see its message; then resume")
    return None


def exit_status(error: BaseException) -> int:
    """What a process that ends with `error` should tell the shell."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 130  # Lightning leaves with status 1 after Ctrl-C
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    typed = as_typed(error)
    return UNKNOWN_STATUS if typed is None else typed.exit_status


def first_line(text: str) -> str:
    """One line of a message, without a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else text
