"""What the guarantees cost: per step and per checkpoint, against the same work without them."""

import statistics
import time
from typing import Any

from fault import Fault
from harness import Bench, case


@case("O1", "price of a step")
def o1(bench: Bench) -> str:
    """Seconds that rank 0 of two spends in the hooks of this issue, per step; waiting for the other rank included."""
    run = bench.run("overhead", world=2, every=10**6, steps=40, extra=("--data.val_splits", "[]"))
    fault = Fault(out=str(run.out), kind="timed", dropout=0.0)
    assert [p.wait() for p in run.start(fault)] == [0, 0], run.tail()
    rows = [row for row in run.rows("timed-0") if row["step"] > 5]
    hooks = statistics.median(row["hooks"] for row in rows)
    step = statistics.median(row["step_s"] for row in rows)
    percent = round(100 * hooks / step, 2)
    bench.figures["overhead_step"] = {
        "step_ms": round(1e3 * step, 2),
        "hooks_ms": round(1e3 * hooks, 3),
        "percent": percent,
    }
    assert percent < 2, bench.figures["overhead_step"]
    return f"{1e3 * hooks:.2f} ms of a step of {1e3 * step:.0f} ms: {percent} %"


@case("O2", "price of a checkpoint")
def o2(bench: Bench) -> str:
    """The same content through our writer and through Lightning's, which neither flushes nor hashes."""
    row = bench.figures["overhead_checkpoint"] = checkpoint_seconds(bench)
    return f"{row['megabytes']} MB: {row['ours_ms']} ms instead of {row['lightning_ms']} ms, {row['percent']:+} %"


def checkpoint_seconds(bench: Bench, n: int = 7) -> dict[str, float]:
    """Median seconds to write a checkpoint: ours (hash, two fsyncs) against Lightning's own writer."""
    import torch
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO, newest_valid

    content = torch.load(newest_valid(bench.reference().checkpoints), weights_only=True)
    seconds = {}
    for name, io in (("lightning", TorchCheckpointIO()), ("ours", DurableCheckpointIO())):
        path, times = bench.root / f"overhead-{name}.ckpt", []
        for _ in range(n):
            began = time.perf_counter()
            io.save_checkpoint(content, path)
            times.append(time.perf_counter() - began)
        seconds[name] = statistics.median(times)
    ours, theirs = seconds["ours"], seconds["lightning"]
    size = path.stat().st_size / 1e6
    return {
        "megabytes": round(size, 1),
        "ours_ms": round(1e3 * ours, 1),
        "lightning_ms": round(1e3 * theirs, 1),
        "percent": round(100 * (ours / theirs - 1), 1),
    }


def timed(fault: Fault) -> None:
    """In the child: sums the seconds of our hooks, and writes them with each step's."""
    from fault import append

    from scaleearth_pl.training.callbacks import numbers, rng_state, stop_signals

    spent = {"hooks": 0.0, "began": 0.0}
    for owner in (rng_state.RngStreams, numbers.Numbers, stop_signals.StopSignals):
        for name in ("on_train_batch_start", "on_train_batch_end"):
            if name in vars(owner):
                setattr(
                    owner, name, _timed(getattr(owner, name), spent, fault, append, owner is stop_signals.StopSignals)
                )


def _timed(hook: Any, spent: dict[str, float], fault: Fault, append: Any, last: bool) -> Any:
    def called(self: Any, trainer: Any, *args: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        result = hook(self, trainer, *args, **settings)
        now = time.perf_counter()
        spent["hooks"] += now - began
        if last:
            row = {"step": trainer.global_step, "hooks": spent["hooks"], "step_s": now - spent["began"]}
            append(fault, f"timed-{trainer.global_rank}", row)
            spent.update(hooks=0.0, began=now)
        return result

    return called
