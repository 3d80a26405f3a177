"""Nobody waits for the dead: a thread on every rank that ends the process when another rank failed or fell silent.

A rank that raises, is killed or hangs leaves the others in a collective, which NCCL and gloo notice after minutes, or
never. The main thread cannot be woken there, so a thread beside it watches, over a store of its own (TCP, hosted by
rank 0), and leaves with `os._exit`:

    every rank     beat/<rank> counts up; "leave" holds the first failure {rank, status, reason}
    rank 0         reads all beats and polls the processes that it launched; the others read rank 0's only

Everything is one small message per half second and rank; nothing runs in the training loop. The same thread keeps the
deadline of a stop that was asked for: a step that outlasts it is not waited for, the last checkpoint stands.

Price: a host so busy that a thread gets no turn for `silence_s` loses its run to a false alarm (and resumes).
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from scaleearth_pl.core.errors import PeerLostError
from scaleearth_pl.training.process import is_writing

log = logging.getLogger(__name__)

BEAT_S = 0.5
_LEAVE, _ABSENT = "leave", ""


class Deadline(NamedTuple):
    """When this process leaves if it has not by then (`time.monotonic`), with what, why, and how long it was given."""

    until: float
    status: int
    reason: str
    seconds: float


class PeerWatch:
    """Watches the other ranks of a run; with one rank it only keeps deadlines.

    Args:
        rank: this process.
        world_size: all processes.
        address: (host, port) of the store; port 0 on rank 0 takes a free one, see `port`.
        children: processes that this one launched, whose exit status is looked at: the ranks after its own.
        silence_s: seconds without a beat after which a rank counts as hung.
        grace_s: seconds that a rank gets to leave by itself after a failure or a request to stop.
        at_deadline: called with the reason before a request to stop that was not obeyed in time ends the process.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        address: tuple[str, int] = ("127.0.0.1", 0),
        children: Sequence["subprocess.Popen[bytes]"] = (),
        silence_s: float = 12.0,
        grace_s: float = 12.0,
        at_deadline: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.rank, self.world_size, self.children = rank, world_size, tuple(children)
        self.silence_s, self.grace_s, self.at_deadline = silence_s, grace_s, at_deadline
        self.store: TCPStore | None = None
        if world_size > 1:
            host, port = address
            self.store = TCPStore(host, port, world_size, rank == 0, timedelta(seconds=60), wait_for_workers=False)
        self._deadline: Deadline | None = None
        self._word: tuple[int, str] | None = None
        self._signals: tuple[int, dict[int, tuple[int, float]]] | None = None
        self._over = threading.Event()
        self._beats: dict[int, tuple[int, float]] = {}
        self._thread = threading.Thread(target=self._run, name="peer-watch", daemon=True)

    @property
    def port(self) -> int:
        """Where the store listens."""
        return 0 if self.store is None else int(self.store.port)

    def start(self) -> None:
        """Starts watching; every rank must have joined the store."""
        if self.store is not None:
            self.store.set(f"beat/{self.rank}", "0")
        self._beats = {other: (-1, time.monotonic()) for other in self._others()}
        self._thread.start()

    def leave_within(self, status: int, reason: str, seconds: float | None = None) -> None:
        """Ends this process with `status` unless it ended by itself before; safe to call in a signal handler."""
        if self._deadline is None:
            seconds = self.grace_s if seconds is None else seconds
            self._deadline = Deadline(time.monotonic() + seconds, status, reason, seconds)

    def listen(self, read_end: int, statuses: dict[int, tuple[int, float]]) -> None:
        """Takes signal numbers from a pipe (`signal.set_wakeup_fd`), which works while the main thread is in C++.

        Args:
            read_end: non-blocking file descriptor.
            statuses: for each signal (exit status, seconds to leave in).
        """
        self._signals = (read_end, statuses)

    def no_deadline(self) -> None:
        """All ranks agreed to leave and are saving: that takes as long as it takes.

        Signals are not listened to any more: the one that was agreed on may still wait in the pipe, and another one asks
        for nothing new. Either would put a deadline on the save.
        """
        self._signals = self._deadline = None

    def fail(self, status: int, reason: str) -> tuple[int, str] | None:
        """Tells all ranks that this one leaves with `status`, and waits until they know (at most three seconds).

        Returns:
            (status, reason) of the rank that failed first, where this one only lost its connection to it.
        """
        self.leave_within(status, reason)
        echo = self._word if status == PeerLostError.exit_status else None
        if self.store is None or self._over.is_set():
            return echo
        try:
            word = json.dumps({"rank": self.rank, "status": status, "reason": reason})
            first = json.loads(self.store.compare_set(_LEAVE, _ABSENT, word))
            if first["rank"] != self.rank and status == PeerLostError.exit_status:
                echo = int(first["status"]), f"rank {first['rank']}: {first['reason']}"
            self.store.set(f"knows/{self.rank}", "1")
            if self.rank == 0:
                self._wait_for("knows", 3.0)
        except (RuntimeError, OSError):
            log.debug("the store is gone, so are the others")
        return echo

    def stop(self) -> None:
        """An orderly end: says so to the others; rank 0, who hosts the store, lets them go first."""
        if self._over.is_set():
            return
        try:
            if self.store is not None:
                self.store.set(f"bye/{self.rank}", "1")
                if self.rank == 0:
                    self._wait_for("bye", self.grace_s)
        except (RuntimeError, OSError):
            log.debug("the store is gone, so are the others")
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_S):
            beat += 1
            try:
                self._look(beat)
            except (RuntimeError, OSError) as error:
                self._without_store(str(error))

    def _without_store(self, why: str) -> None:
        """Rank 0 is gone: as announced, then its word and status hold, or not."""
        if self._over.is_set():
            return
        if self._deadline is None:
            self._exit(PeerLostError.exit_status, f"rank 0 is gone ({why.splitlines()[0][:120]})")
        else:
            time.sleep(max(0.0, self._deadline.until - time.monotonic()))
            self._exit(self._deadline.status, self._deadline.reason)

    def _hear(self) -> None:
        if self._signals is None:
            return
        read_end, statuses = self._signals
        try:
            heard = os.read(read_end, 64)
        except OSError:
            return
        for number in heard:
            if number in statuses and self._signals is not None:
                status, seconds = statuses[number]
                self.leave_within(status, signal.Signals(number).name, seconds)

    def _look(self, beat: int) -> None:
        self._hear()
        self._look_at_deadline(self._deadline)
        if self.store is None:
            return
        self.store.set(f"beat/{self.rank}", str(beat))
        if self.store.check([_LEAVE]):
            self._obey(json.loads(self.store.get(_LEAVE)))
        self._look_at_children()
        for other in self._others():
            self._look_at(other)

    def _look_at_deadline(self, given: Deadline | None) -> None:
        """A file that is being written is waited for, unless another rank is gone, without whom it never ends."""
        if given is None:
            return
        if is_writing() and self._word is None:
            self._deadline = given._replace(until=time.monotonic() + given.seconds)
        elif time.monotonic() > given.until:
            self.fail(given.status, given.reason)
            self.at_deadline(given.reason)
            self._exit(given.status, f"{given.reason}; the step did not end in time, the last checkpoint stands")

    def _obey(self, word: dict[str, object]) -> None:
        assert self.store is not None
        self.store.set(f"knows/{self.rank}", "1")
        status, reason = int(str(word["status"])), f"rank {word['rank']}: {word['reason']}"
        self._word = (status, reason) if word["rank"] != self.rank else None
        if self._word and self._deadline is None:
            # Most failures are seen by all ranks at once: those get the time to say it in their own words.
            self.leave_within(status, reason, seconds=3.0)

    def _look_at_children(self) -> None:
        for number, child in enumerate(self.children):
            status = child.poll()
            rank = self.rank + 1 + number
            if status is not None and not self._leaves(rank):
                self._lost(rank, f"its process ended with status {status}")

    def _look_at(self, other: int) -> None:
        assert self.store is not None
        now = time.monotonic()
        key = f"beat/{other}"
        count = int(self.store.get(key)) if self.store.check([key]) else -1
        last, since = self._beats[other]
        if count != last:
            self._beats[other] = (count, now)
        elif now - since > self.silence_s and not self._leaves(other):
            self._lost(other, f"silent for {now - since:.0f} s")

    def _lost(self, other: int, why: str) -> None:
        self.fail(PeerLostError.exit_status, f"rank {other} is gone: {why}")
        self._exit(PeerLostError.exit_status, f"rank {other} is gone: {why}")

    def _leaves(self, other: int) -> bool:
        """True of a rank whose silence is explained: it ended in order, or knows of a failure."""
        return self._said("bye", other) or self._said("knows", other)

    def _said(self, what: str, other: int) -> bool:
        return self.store is not None and bool(self.store.check([f"{what}/{other}"]))

    def _others(self) -> list[int]:
        if self.store is None:
            return []
        return [r for r in range(self.world_size) if r != self.rank] if self.rank == 0 else [0]

    def _wait_for(self, what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        for other in range(1, self.world_size):
            while not self._said(what, other) and time.monotonic() < until:
                time.sleep(0.05)

    def _exit(self, status: int, reason: str) -> None:
        for number, child in enumerate(self.children):
            if child.poll() is None and not self._said("knows", self.rank + 1 + number):
                child.kill()
        sys.stderr.write(f"\nrank {self.rank} leaves with status {status}: {reason}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
