"""The faults themselves: `AT_STEP` strike when a step begins, `PATCHES` sit inside something and wait."""

import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault import Fault, append

# -- faults at the beginning of a step ---------------------------------------------------------------------------


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("a bug on one rank")


def hang() -> None:
    time.sleep(3600)


def small_files() -> None:
    """From here on no file may grow past 64 KiB: what a full disk looks like."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def read_only() -> None:
    """Checkpoints may no longer be written; root, whom no permission stops, becomes nobody."""
    for folder in Path(os.environ["TORTURE_RUNS"]).glob("*/*/checkpoints"):
        folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


AT_STEP = {"kill": kill, "exception": fail, "hang": hang, "disk_full": small_files, "read_only": read_only}


# -- faults inside something -------------------------------------------------------------------------------------


def patch_backward(fault: Fault) -> None:
    """Before the backward of micro-batch `micro` of the step: NaN loss, out of memory, or a kill."""
    import torch

    from scaleearth_pl.training.base import TreeTraining

    original, calls = TreeTraining._backward, {"step": -1, "micro": -1}

    def backward(self: Any, micro: Any, *args: Any, **settings: Any) -> Any:
        step = self.global_step
        calls["micro"] = calls["micro"] + 1 if calls["step"] == step else 0
        calls["step"] = step
        if (self.trainer.global_rank, step, calls["micro"]) != (fault.rank, fault.step, fault.micro):
            return original(self, micro, *args, **settings)
        if fault.kind == "kill_in_accumulation":
            kill()
        if fault.kind == "out_of_memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB.")
        forward = self.model.forward

        def poisoned(*inputs: Any, **more: Any) -> Any:
            out = forward(*inputs, **more)
            return replace(out, ce_sum=out.ce_sum * float("nan" if fault.kind == "nan" else "inf"))

        self.model.forward = poisoned
        try:
            return original(self, micro, *args, **settings)
        finally:
            del self.model.forward

    TreeTraining._backward = backward  # type: ignore[method-assign]


def patch_save(fault: Fault) -> None:
    """Kills the writer of the `step`-th save of this process after `n_bytes`, or at a named point."""
    from scaleearth_pl.training import checkpoint_io
    from scaleearth_pl.training.callbacks import checkpoint

    saves = {"n": 0}
    write, sealed, prune = checkpoint_io.HashingWriter.write, checkpoint_io.write_sealed, checkpoint.prune

    def counted(*args: Any, **settings: Any) -> None:
        saves["n"] += 1
        append(fault, "saves", {"save": saves["n"], "path": str(args[0])})
        sealed(*args, **settings)

    def writes(self: Any, data: Any) -> int:
        size = memoryview(data).nbytes
        if due() and fault.point == "bytes" and self.n_bytes + size > fault.n_bytes:
            self.file.write(memoryview(data)[: fault.n_bytes - self.n_bytes])
            self.file.flush()
            kill()
        return int(write(self, data))

    def due() -> bool:
        return saves["n"] == fault.step

    def at(point: str, function: Any) -> Any:
        def called(*args: Any, **settings: Any) -> Any:
            if due() and fault.point == f"before_{point}":
                kill()
            result = function(*args, **settings)
            if due() and fault.point == f"after_{point}":
                kill()
            return result

        return called

    checkpoint_io.write_sealed = counted  # type: ignore[assignment]
    checkpoint_io.HashingWriter.write = writes  # type: ignore[method-assign]
    checkpoint.prune = at("prune", prune)
    checkpoint_io.flush = at("flush_folder", checkpoint_io.flush)

    class Os:
        def __getattr__(self, name: str) -> Any:
            value = getattr(os, name)
            return at(name, value) if name in ("fsync", "replace") else value

    checkpoint_io.os = Os()  # type: ignore[assignment]


def patch_worker(fault: Fault) -> None:
    """The loader's worker that makes `step` dies, or stops."""
    from torch.utils.data import get_worker_info

    from scaleearth_pl.data.steps import StepDataset

    original = StepDataset.__getitem__

    def getitem(self: Any, step: int) -> Any:
        if step == fault.step and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "worker_killed" else signal.SIGSTOP)
        return original(self, step)

    StepDataset.__getitem__ = getitem  # type: ignore[method-assign]


def patch_product(fault: Fault) -> None:
    """Kills stage 1 while it writes `hf/`, after the weights."""
    from scaleearth_pl.training import stage1

    original = stage1.save_backbone

    def save(*args: Any, **settings: Any) -> None:
        original(*args, **settings)
        kill()

    stage1.save_backbone = save


def patch_timed(fault: Fault) -> None:
    """No fault: times our hooks."""
    from overhead import timed

    timed(fault)


PATCHES = {
    "timed": patch_timed,
    "nan": patch_backward,
    "inf": patch_backward,
    "out_of_memory": patch_backward,
    "kill_in_accumulation": patch_backward,
    "save": patch_save,
    "worker_killed": patch_worker,
    "worker_stopped": patch_worker,
    "kill_in_product": patch_product,
}
