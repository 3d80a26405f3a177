"""Processes of the scoreboard: each is a real one, forked from one that has done all imports."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

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

    def send_to_family(self, number: int) -> int:
        """To the process and those that it started, as `timeout` and systemd do; returns how many those are."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, listed)):
            os.kill(pid, number)
        return len(listed)

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

    def fork(self, argv: Sequence[str], env: Mapping[str, str], log: Path, rank: int) -> Process:
        """One process; the first call waits until all imports are done."""
        assert self._ready.wait(600), "the zygote did not start"
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


def wait_all(processes: Sequence[Process], since: float, limit_s: float = LIMIT_S) -> tuple[list[int], float]:
    """Exit statuses, and seconds from `since` to the last end."""
    statuses = [p.wait(timeout=max(1.0, limit_s + 40 - (time.time() - since))) for p in processes]
    return statuses, max(p.ended for p in processes) - since


def survivors(process: Process) -> list[int]:
    """Processes of its session that still run: loader workers that it left behind."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, fields = stat.read_text().rpartition(") ")
        except OSError:
            continue
        state, _, _, session = fields.split()[:4]
        if int(session) == process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return found
