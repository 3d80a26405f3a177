"""One training process that can be told to fail: `python child.py fit ...` with $TORTURE = JSON of `Fault`.

The command line, callbacks and data are the project's own. What is added sits in `RunRecord`, which every run has: it
writes down what was read (a line a step and rank, before the step is taken) and, at the end, every number of the final
state; and it calls the fault.
"""

import json
import os
import sys
import time
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from child_faults import AT_STEP, PATCHES, kill  # noqa: E402
from fault import Fault, append  # noqa: E402


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

    from scaleearth_pl.training import command

    torch.set_num_threads(1)
    os.umask(0)
    sys.path[:0] = [p for p in os.environ.get("TORTURE_PATH", "").split(":") if p]
    command.RunRecord = type("RunRecord", (Instrumented(fault, command.RunRecord),), {})
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
    torch.save(local(state), path)


def local(state: Any) -> Any:
    """A nested state with this rank's part of every sharded tensor."""
    if isinstance(state, dict):
        return {name: local(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [local(value) for value in state]
    return state.to_local() if hasattr(state, "to_local") else state


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


if __name__ == "__main__":
    sys.exit(main())
