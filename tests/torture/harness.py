"""What all cases share: a workspace with corpus and stage-1 folder, and the register of cases."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from legs import Run  # noqa: E402
from processes import Zygote  # noqa: E402


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


Case = Callable[[Bench], str]

CASES: dict[str, tuple[str, Case]] = {}


def case(id: str, title: str) -> Callable[[Case], Case]:
    """Registers a case of the scoreboard: a function that returns what it found, or fails with AssertionError."""

    def register(function: Case) -> Case:
        CASES[id] = (title, function)
        return function

    return register
