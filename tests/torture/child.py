"""One training process that can be told to fail: `python child.py fit ...` with $TORTURE = JSON of `Fault`.

The command line, callbacks and data are the project's own. What is added sits in `RunRecord`, which every run has: it
writes down what was read (a line a step and rank, before the step is taken) and, at the end, every number of the final
state; and it calls the fault.
"""

import json
import os
import resource
import signal
import sys
import time
import zlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong on `rank` at `step` (of the step about to be taken); `kind` is a key of `AT_STEP` or `PATCHES`."""

    out: str
    kind: str = "none"
    rank: int = 0
    step: int = 0
    micro: int = 0
    n_bytes: int = 0
    point: str = ""
    dropout: float = 0.1
    pause_s: float = 0.0


def main() -> int:
    """The console command, with the fault of $TORTURE."""
    fault = Fault(**json.loads(os.environ["TORTURE"]))
    install(fault)
    from scaleearth_pl.cli import run
    from scaleearth_pl.training.process import as_process

    return as_process(lambda: run(sys.argv[1:]))


def install(fault: Fault) -> None:
    """Prepares this process: recording, dropout, the fault."""
    import torch

    from scaleearth_pl.training.callbacks import run_record

    torch.set_num_threads(1)
    os.umask(0)
    sys.path[:0] = [p for p in os.environ.get("TORTURE_PATH", "").split(":") if p]
    run_record.RunRecord = type("RunRecord", (Instrumented(fault, run_record.RunRecord),), {})
    if fault.dropout:
        add_dropout(fault.dropout)
    if fault.kind in PATCHES:
        PATCHES[fault.kind](fault)


def Instrumented(fault: Fault, base: type) -> type:
    """`RunRecord` that writes the sample stream, the process id and the final state."""

    class Recording(base):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            append(fault, f"pids-{trainer.global_rank}", {"pid": os.getpid(), "step": trainer.global_step})

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            append(fault, f"stream-{trainer.global_rank}", {"step": trainer.global_step, "read": read_of(batch)})
            time.sleep(fault.pause_s)
            if (trainer.global_rank, trainer.global_step) == (fault.rank, fault.step) and fault.kind in AT_STEP:
                AT_STEP[fault.kind]()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            loss = float(outputs["report"].loss).hex()
            append(fault, f"done-{trainer.global_rank}", {"step": trainer.global_step, "loss": loss})

        def on_validation_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            row = {"step": trainer.global_step, "batch": batch_idx, "pid": os.getpid()}
            append(fault, f"validation-{trainer.global_rank}", row)
            if fault.kind == "kill_in_validation" and (trainer.global_step, batch_idx) == (fault.step, fault.micro):
                kill()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_end(trainer, pl_module)
            save_final(Path(fault.out) / f"final-{trainer.global_rank}.pt", trainer, pl_module)

    return Recording


def append(fault: Fault, name: str, row: dict[str, Any]) -> None:
    """One line, in one write, so that a kill never cuts it."""
    handle = os.open(Path(fault.out) / f"{name}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(handle, (json.dumps(row | {"time": time.time()}) + "\n").encode())
    os.close(handle)


def read_of(batch: Any) -> list[Any]:
    """What this rank reads in a step: ids, and a checksum over all tensors' bytes."""
    rows = []
    for micro in batch.micro:
        sums = [zlib.crc32(getattr(micro, f.name).numpy().tobytes()) for f in fields(micro) if f.name[-1].isupper()]
        questions: list[list[str]] = [[] for _ in micro.trees]
        for branch in micro.branches:
            questions[branch.tree].append(branch.qa_id)
        ids = [[tree.image_id, *qa] for tree, qa in zip(micro.trees, questions)]
        rows.append({"filler": micro.is_filler, "trees": ids, "crc": sums})
    return rows


def save_final(path: Path, trainer: Any, module: Any) -> None:
    """Weights that train, optimizer, schedule and step, for comparison to the bit."""
    import torch

    state = {
        "step": trainer.global_step,
        "weights": {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad},
        "optimizer": [o.state_dict() for o in trainer.optimizers],
        "schedule": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "callbacks": {
            c.state_key: c.state_dict() for c in trainer.callbacks if c.state_dict() and "Throughput" not in c.state_key
        },
    }
    torch.save(state, path)


def add_dropout(share: float) -> None:
    """Dropout behind every adapter's A, so that a resume with other random numbers shows."""
    import torch

    from scaleearth_pl.model.gated_lora import GatedLoRALinear

    create = GatedLoRALinear.__init__

    def with_dropout(self: Any, *args: Any, **settings: Any) -> None:
        create(self, *args, **settings)
        self.lora_A.register_forward_hook(
            lambda module, _, out: torch.nn.functional.dropout(out, share, training=module.training)
        )

    GatedLoRALinear.__init__ = with_dropout  # type: ignore[method-assign]


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
    checkpoint_io.flush_folder = at("flush_folder", checkpoint_io.flush_folder)

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


def environment(fault: Fault) -> dict[str, str]:
    """What tells a process of its fault."""
    return {"TORTURE": json.dumps(asdict(fault))}


if __name__ == "__main__":
    sys.exit(main())
