"""Processes killed with -9 while they ask or write, and what that may cost; `chain.py` runs them.

    asking    launch -> a random number of requests arrive -> kill -9 -> what is recorded? -> launch again ...
    writing   launch -> the first byte on the disk -> a random part of the time that writing takes -> kill -9 -> again ...

One round of asking is a server that stops half way instead of a client that is killed; a new one takes over on another
port. Every bound that `docs/scale.md` states is asserted here, at each kill and not on average.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.chat_server import ChatServer

from scaleearth_pl.prepare.ledger import read_records

PASSING = {
    "hang": 0.01, "trickle": 0.01, "429": 0.04, "500": 0.04, "503-date": 0.02, "html": 0.02, "odd": 0.02, "prose": 0.04,
    "cut": 0.02, "length": 0.02,
}  # fmt: skip
LASTING = {"refuse": 0.01, "apology": 0.01, "400": 0.01}
PATIENCE_S = 180.0  # a process that takes longer hangs, which is a failure


class UnrulyServer(ChatServer):
    """Passing faults meet the first arrival of a request, lasting ones every arrival; both are drawn from its hash.

    Args:
        former: the server whose place it takes: arrivals are counted on, so that a passing fault has passed.
    """

    def __init__(self, former: "UnrulyServer | None" = None) -> None:
        super().__init__(faults={**LASTING, **PASSING}, fault_attempts=sys.maxsize, latency_s=0.02)
        self.bodies = deque(maxlen=1)  # type: ignore[assignment]  # images of hundreds of requests are of no use here
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # killed clients reset connections
        if former is not None:
            self.arrivals, self.faults_given = former.arrivals, former.faults_given

    def fault_of(self, key: str) -> str | None:
        """The fault of this arrival, which the caller has counted already."""
        fault = super().fault_of(key)
        return fault if fault in LASTING or self.arrivals[key] == 1 else None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A command that asks a server.

    Args:
        command: without the server's address.
        out: its ledger of results.
        key_of: record to the hash of the request that it answers.
        concurrency: requests in flight at most.
    """

    command: Sequence[str]
    out: Path
    key_of: Callable[[dict[str, Any]], str]
    concurrency: int

    def launch(self, server: ChatServer) -> "subprocess.Popen[bytes]":
        """Starts it in a process group of its own."""
        return launch([*self.command, "--base-url", server.base_url, "--concurrency", str(self.concurrency)])

    def recorded(self) -> dict[str, dict[str, Any]]:
        """Records by id; each id once."""
        found = list(read_records(self.out)) if self.out.is_file() else []
        by_id = {record["id"]: record for record in found}
        assert len(by_id) == len(found), "a result is recorded twice"
        return by_id

    def given_up(self) -> dict[str, str]:
        """Kind of failure by id, of items that are not asked again."""
        path = self.out.with_name(f"{self.out.stem}.failed.jsonl")
        rows = list(read_records(path)) if path.is_file() else []
        return {row["id"]: row["kind"] for row in rows if row["kind"] != "server"}


Round = tuple[set[str], str]  # the requests that arrived in it, as hashes, and how it ended


def ask_whole(asking: Asking) -> dict[str, Any]:
    """The uninterrupted run."""
    start = time.monotonic()
    with UnrulyServer() as server:
        status = asking.launch(server).wait(PATIENCE_S)
        assert status in (0, 3), f"status {status}"
        arrivals, given = server.arrivals, server.faults_given
    seconds = round(time.monotonic() - start, 1)
    kinds = Counter(asking.given_up().values())
    figures = {"recorded": len(asking.recorded()), "requests": len(arrivals), "arrivals": arrivals.total()}
    return {**figures, "quarantined": dict(kinds), "faults": dict(given), "seconds": seconds}


def ask_killed(asking: Asking, whole: Asking, *, n_requests: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """The same under fire; asserts that it ends with the same records and at the stated price."""
    start, rounds, step = time.monotonic(), list[Round](), max(1, round(1.5 * n_requests / (kills + 1)))
    server = UnrulyServer()
    server.__enter__()
    for number in range(kills + 1):
        dies = number == kills // 2
        goal, pause_s = rng.randint(1, step), rng.uniform(0, 0.05)
        rounds.append(_one_round(asking, server, goal=goal, server_dies=dies, pause_s=pause_s))
        if dies:
            server = UnrulyServer(server)
            server.__enter__()
    before, arrivals = asking.recorded(), server.arrivals.copy()
    status = asking.launch(server).wait(PATIENCE_S)
    server.stop()
    assert status in (0, 3), f"the last run ended in status {status}"
    _check_round(asking, before, server.arrivals - arrivals)
    rounds.append((set(server.arrivals - arrivals), "done"))
    assert asking.recorded() == whole.recorded(), "the records differ from those of the uninterrupted run"
    assert asking.given_up() == whole.given_up(), "other items were given up than in the uninterrupted run"
    resent = [len(keys & set().union(*(k for k, _ in rounds[n + 1 :]))) for n, (keys, _) in enumerate(rounds)]
    assert max(resent) <= asking.concurrency, f"more than {asking.concurrency} sent again after one kill: {resent}"
    return {
        "kills": sum(how == "killed" for _, how in rounds),
        "server_deaths": sum(how == "server died" for _, how in rounds),
        "recorded_results_asked_again": 0,
        "results_lost": 0,
        "sent_again": sum(resent),
        "sent_again_per_kill_at_most": max(resent),
        "sent_again_allowed_per_kill": asking.concurrency,
        "arrivals": server.arrivals.total(),
        "seconds": round(time.monotonic() - start, 1),
    }


def _one_round(asking: Asking, server: UnrulyServer, *, goal: int, server_dies: bool, pause_s: float) -> Round:
    before, arrivals, deadline = asking.recorded(), server.arrivals.copy(), time.monotonic() + PATIENCE_S
    process = asking.launch(server)
    while server.arrivals.total() < arrivals.total() + goal and process.poll() is None:
        assert time.monotonic() < deadline, "no request arrives"
        time.sleep(0.001)
    if server_dies:
        server.stop()
        assert process.wait(PATIENCE_S) == 2, "the client did not notice that its server is gone"
    else:
        time.sleep(pause_s)
        assert kill(process), "it was done before it could be killed: ask more, or kill less often"
        time.sleep(0.2)  # what the dead client had sent is still read by the server
    _check_round(asking, before, server.arrivals - arrivals)
    return set(server.arrivals - arrivals), "server died" if server_dies else "killed"


def _check_round(asking: Asking, before: dict[str, dict[str, Any]], arrived: Counter[str]) -> None:
    after = asking.recorded()
    assert {k: after.get(k) for k in before} == before, "a recorded result was lost or changed"
    again = {asking.key_of(record) for record in before.values()} & set(arrived)
    assert not again, f"{len(again)} recorded results were asked for again"


def write_killed(
    command: Sequence[str], out: Path, whole: Path, *, seconds: float, kills: int, rng: random.Random
) -> dict[str, Any]:
    """A command that writes `out`, killed `kills` times within `seconds` of its first byte, then left to finish.

    What it leaves beside it (`out.parts`, `out.partial`) is its own to use again. A corpus that has its index is compared
    with `whole` and removed, so that the next kill hits writing again.
    """
    start, expected = time.monotonic(), digests(whole)
    n_killed = compared = unfinished = kept_parts = 0
    while n_killed < kills:
        process, _ = launch_and_await_writing(command, out)
        time.sleep(rng.uniform(0, seconds))
        killed, done = kill(process), (out / "index.json").is_file()
        assert killed or done, f"it failed by itself: status {process.returncode}"
        n_killed, unfinished = n_killed + killed, unfinished + (killed and not done)
        kept_parts += killed and bool(list(out.parent.glob(f"{out.name}.parts/*/log/completions/*")))
        if done:  # it was quicker, or killed between its last byte and its end
            compared += _same(out, expected)
            shutil.rmtree(out)
    status = launch(command).wait(PATIENCE_S)
    assert status in (0, 3), f"the last run ended in status {status}"
    compared += _same(out, expected)
    figures = {"kills": n_killed, "kills_before_the_index": unfinished, "kills_that_left_finished_parts": kept_parts}
    return {**figures, "byte_identical_corpora": compared, "seconds": round(time.monotonic() - start, 1)}


def launch_and_await_writing(command: Sequence[str], out: Path) -> tuple["subprocess.Popen[bytes]", float]:
    """The process, at the moment when something below `out` or beside it (`out.*`) changes, and that moment."""
    seen = _state(out)
    process, deadline = launch(command), time.monotonic() + PATIENCE_S
    while process.poll() is None and _state(out) == seen:
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.002)
    return process, time.monotonic()


def launch(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A process in a group of its own, whose log is nobody's business."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(process: "subprocess.Popen[bytes]") -> bool:
    """kill -9 of the one process; whether it was still running. Its children must be gone soon after."""
    process.kill()
    killed, deadline = process.wait() == -signal.SIGKILL, time.monotonic() + 10
    with suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            assert time.monotonic() < deadline, "a child outlived the killed process"
            time.sleep(0.01)
    return killed


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a corpus by its path."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def _same(out: Path, expected: dict[str, str]) -> bool:
    found = digests(out)
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    assert not differing, f"{out} differs from the uninterrupted run in {differing[:5]}"
    return True


def _state(out: Path) -> set[tuple[str, int, int]]:
    found = set()
    for path in out.parent.glob(f"{out.name}*/**/*"):
        try:
            stat = path.stat()
        except OSError:  # removed between listing and looking
            continue
        found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return found
