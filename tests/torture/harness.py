"""What all cases share: a workspace with corpus and stage-1 folder, processes, and comparison to the bit."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from child import Fault, environment  # noqa: E402

STEPS, EPOCH = 9, 3
"""Optimizer steps of a run and of one epoch; a validation ends each epoch."""

LIMIT_S = 20.0
"""Seconds from a fault to the last rank's end."""


@dataclass
class Process:
    """One training process; `status` is None while it runs, negative after a signal."""

    id: int
    rank: int
    log: Path
    started: float
    pid: int = 0
    status: int | None = None
    ended: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 600.0) -> int:
        """Its exit status; -1000 if it had to be killed after `timeout`."""
        if not self.over.wait(timeout):
            os.kill(self.pid, signal.SIGKILL)
            self.over.wait(10)
            self.status = -1000
        assert self.status is not None
        return self.status

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Zygote:
    """The process that forks all others."""

    def __init__(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )
        self._known: dict[int, Process] = {}
        self._lock, self._ready, self._next = threading.Lock(), threading.Event(), 0
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._ready.wait(600), "the zygote did not start"

    def fork(self, argv: Sequence[str], env: Mapping[str, str], log: Path, rank: int) -> Process:
        with self._lock:
            self._next += 1
            process = Process(id=self._next, rank=rank, log=log, started=time.time())
            self._known[process.id] = process
            request = {"id": process.id, "argv": list(argv), "env": dict(env), "log": str(log), "cwd": os.getcwd()}
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
        while not process.pid:
            time.sleep(0.005)
        return process

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            row = json.loads(line)
            if row["id"] == -1:
                self._ready.set()
                continue
            process = self._known[row["id"]]
            if "pid" in row:
                process.pid = row["pid"]
            else:
                process.status, process.ended = row["status"], time.time()
                process.over.set()


@dataclass
class Bench:
    """A workspace. `corpus` and `hf` are shared by all cases and not written to."""

    root: Path
    corpus: Path
    hf: Path
    zygote: Zygote
    full: bool = True
    figures: dict[str, Any] = field(default_factory=dict)
    references: dict[Any, "Run"] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def run(self, name: str, **settings: Any) -> "Run":
        return Run(self, self.root / name, **settings)

    def reference(self, *, world: int = 1, stage: str = "stage2", extra: tuple[str, ...] = ()) -> "Run":
        """The run that nobody disturbed, made once."""
        key = (world, stage, extra)
        with self._lock:
            if key not in self.references:
                run = self.run(f"reference-{len(self.references)}", world=world, stage=stage, extra=extra)
                statuses = [p.wait() for p in run.start()]
                assert statuses == [0] * world, run.tail()
                self.references[key] = run
            return self.references[key]


class Run:
    """One run folder and the processes that work on it, one leg after the other."""

    def __init__(
        self,
        bench: Bench,
        out: Path,
        *,
        world: int = 1,
        stage: str = "stage2",
        every: int = 1,
        workers: int = 0,
        extra: tuple[str, ...] = (),
        runs: Path | None = None,
        corpus: Path | None = None,
        steps: int = STEPS,
    ) -> None:
        self.bench, self.out, self.world, self.stage, self.workers = bench, out, world, stage, workers
        self.every, self.extra, self.steps = every, extra, steps
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


def make_bench(root: Path, *, full: bool) -> Bench:
    """Corpus, stage-1 folder and zygote below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    done = root / "prepared"
    if not done.exists():
        program = (
            "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
            "from fakes.corpus import make_fake_corpus; from fakes.runs import tiny_hf\n"
            "root = Path(sys.argv[1]); tiny_hf(make_fake_corpus(root / 'corpus'))"
        )
        subprocess.run([sys.executable, "-c", program, str(root), str(HERE.parent), str(HERE.parents[1])], check=True)
        done.touch()
    shutil.rmtree(root / "experiments", ignore_errors=True)
    shutil.copytree(HERE.parents[1] / "experiments", root / "experiments")  # somebody may be editing
    return Bench(root=root, corpus=root / "corpus", hf=root / "hf", zygote=Zygote(), full=full)


def wait_all(processes: Sequence[Process], since: float, limit_s: float = LIMIT_S) -> tuple[list[int], float]:
    """Exit statuses, and seconds from `since` to the last end."""
    statuses = [p.wait(timeout=max(1.0, limit_s + 40 - (time.time() - since))) for p in processes]
    return statuses, max(p.ended for p in processes) - since


Case = Callable[[Bench], str]

CASES: dict[str, tuple[str, Case]] = {}


def case(id: str, title: str) -> Callable[[Case], Case]:
    """Registers a case of the scoreboard: a function that returns what it found, or fails with AssertionError."""

    def register(function: Case) -> Case:
        CASES[id] = (title, function)
        return function

    return register
