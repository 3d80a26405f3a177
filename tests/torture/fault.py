"""What goes wrong in a training process, and how it is told."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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


def environment(fault: Fault) -> dict[str, str]:
    """What tells a process of its fault."""
    return {"TORTURE": json.dumps(asdict(fault))}


def append(fault: Fault, name: str, row: dict[str, Any]) -> None:
    """One line, in one write, so that a kill never cuts it."""
    handle = os.open(Path(fault.out) / f"{name}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(handle, (json.dumps(row | {"time": time.time()}) + "\n").encode())
    os.close(handle)
