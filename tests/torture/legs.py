"""One run folder and the processes that work on it, one leg after the other; comparison of two runs to the bit."""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fault import Fault, environment
from processes import Process

if TYPE_CHECKING:
    from harness import Bench

STEPS, EPOCH = 9, 3
"""Optimizer steps of a run and of one epoch; a validation ends each epoch."""


class Run:
    """One run folder and the processes that work on it, one leg after the other."""

    def __init__(
        self,
        bench: "Bench",
        out: Path,
        *,
        world: int = 1,
        stage: str = "stage2",
        every: int = 1,
        workers: int = 0,
        extra: tuple[str, ...] = (),
        runs: Path | None = None,
        corpus: Path | None = None,
        steps: int | None = None,
    ) -> None:
        self.bench, self.out, self.world, self.stage, self.workers = bench, out, world, stage, workers
        self.every, self.extra = every, extra
        self.steps = steps or (STEPS if bench.full else 2 * EPOCH)
        self.corpus = corpus or bench.corpus
        out.mkdir(parents=True, exist_ok=True)
        self.folder = (runs or out / "runs") / stage / "v0"
        self.legs = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def argv(self, *, resume: bool, world: int, extra: Sequence[str] = ()) -> list[str]:
        from fakes.runs import DATA

        experiments = self.bench.root / "experiments"
        words = ["fit", "-c", str(experiments / f"{self.stage}.yaml"), "-c", str(experiments / "size" / "tiny.yaml")]
        words += ["--experiment", self.stage, "--runs_dir", str(self.folder.parents[1])]
        words += ["--trainer.max_steps", str(self.steps), "--data.root", str(self.corpus)]
        words += ["--data.train_splits", "[train]"]  # stage1.yaml names its own
        words += ["--trainer.val_check_interval", "1.0", "--trainer.check_val_every_n_epoch", "1"]
        for name, value in (DATA | {"num_workers": self.workers}).items():
            words += [f"--data.{name}", str(value)]
        if self.stage == "stage2":
            words += ["--model.init_args.init_from", str(self.bench.hf)]
        if world > 1:
            words += ["--trainer.devices", str(world), "--trainer.strategy", "ddp"]
        words += ["-c", f"trainer: {{callbacks: {self._callbacks()}}}"]
        return [*words, *(["--resume", "true"] if resume else []), *self.extra, *extra]

    def _callbacks(self) -> str:
        import yaml

        rows = yaml.safe_load((self.bench.root / "experiments" / f"{self.stage}.yaml").read_text())["trainer"][
            "callbacks"
        ]
        for row in rows:
            if row["class_path"].endswith(".Checkpoints"):
                row["init_args"] = {"every_n_steps": self.every, "keep": 2}
        return yaml.safe_dump(rows, default_flow_style=True, width=10**6).strip()

    def start(
        self, fault: Fault | None = None, *, extra: Sequence[str] = (), world: int | None = None, **env: str
    ) -> list[Process]:
        """Starts all ranks, resuming where there is a checkpoint."""
        world = world or self.world
        self.legs += 1
        fault = fault or Fault(out=str(self.out))
        resume = any(self.checkpoints.glob("[!.]*.ckpt"))
        argv = self.argv(resume=resume, world=world, extra=extra)
        shared = environment(fault) | {"SCALEEARTH_VERSION": "v0", "TORTURE_RUNS": str(self.folder.parents[1])} | env
        if world == 1:
            return [self.bench.zygote.fork(argv, shared, self._log(0), 0)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "NODE_RANK": "0"}
        ranks = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
        return [self.bench.zygote.fork(argv, env, self._log(r), r) for r, env in enumerate(ranks)]

    def finish(self, **settings: Any) -> None:
        """Goes on without faults to the end."""
        processes = self.start(**settings)
        statuses = [p.wait() for p in processes]
        assert statuses == [0] * len(processes), f"{statuses}\n{self.tail()}"

    def _log(self, rank: int) -> Path:
        return self.out / f"leg{self.legs}-rank{rank}.log"

    def tail(self) -> str:
        logs = sorted(self.out.glob("leg*.log"), key=lambda p: p.stat().st_mtime)[-2:]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2500:]}" for log in logs)

    def rows(self, name: str) -> list[dict[str, Any]]:
        path = self.out / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int, *, rank: int = 0, timeout: float = 300.0) -> dict[str, Any]:
        """Waits until `rank` begins `step` in the current leg; its row."""
        until = time.time() + timeout
        while time.time() < until:
            for row in reversed(self.rows(f"stream-{rank}")):
                if row["step"] >= step:
                    return row
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached\n{self.tail()}")

    def stream(self, rank: int = 0) -> dict[int, Any]:
        """What `rank` read, by step; asserts that a step that was taken twice read the same."""
        seen: dict[int, Any] = {}
        for row in self.rows(f"stream-{rank}"):
            first = seen.setdefault(row["step"], row["read"])
            assert first == row["read"], f"step {row['step']} was read differently when it was repeated"
        return seen

    def losses(self, rank: int = 0) -> dict[int, str]:
        """Bits of the loss by step; asserts that a repeated step gave the same."""
        seen: dict[int, str] = {}
        for row in self.rows(f"done-{rank}"):
            assert seen.setdefault(row["step"], row["loss"]) == row["loss"], f"another loss at step {row['step']}"
        return seen

    def final(self, rank: int = 0) -> Any:
        import torch

        return torch.load(self.out / f"final-{rank}.pt", weights_only=False)

    def max_abs_dw(self, other: "Run") -> float:
        """Largest difference of a trained weight, over all ranks."""
        pairs = [(self.final(rank)["weights"], other.final(rank)["weights"]) for rank in range(self.world)]
        return max(float((a[n].double() - b[n].double()).abs().max()) for a, b in pairs for n in a if a[n].numel())

    def assert_same_as(self, other: "Run") -> None:
        """Weights, optimizer, schedule, callbacks, losses and sample stream are equal to the bit."""
        for rank in range(self.world):
            assert self.stream(rank) == other.stream(rank), "another sample stream"
            assert list(self.stream(rank)) == sorted(self.stream(rank)), "another order"
            assert self.losses(rank) == other.losses(rank), "another loss"
            ours, theirs = self.final(rank), other.final(rank)
            if rank:  # callbacks look on rank 0 only; a resumed rank 1 is told what rank 0 saw
                del ours["callbacks"], theirs["callbacks"]
            difference = [*differences(ours, theirs)]
            assert not difference, f"not equal to the bit: {difference[:3]}"


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Places at which two nested states differ; tensors are compared as bytes."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        if not same or not torch.equal(
            a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
        ):
            yield f"{place}: max |d| = {(a.double() - b.double()).abs().max() if same else 'shape'}"
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f"{place}: keys {set(a) ^ set(b)}"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            yield f"{place}: lengths {len(a)}, {len(b)}"
        for number, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{place}[{number}]")
    elif a != b and not (a != a and b != b):
        yield f"{place}: {a!r} {b!r}"
