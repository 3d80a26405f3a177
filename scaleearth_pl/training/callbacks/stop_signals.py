"""Leaving together: SIGTERM to any rank ends all ranks after the step, with a checkpoint and status 143.

    handler:   set a flag, nothing else                   (no collective: the other ranks may be anywhere)
    step end:  all-reduce the flag over the host's network; if set: save, leave
    beside it: a thread (`peer_watch`) that ends what does not end by itself, and ranks whose peers are gone

Lightning's own handler broadcasts *inside the handler*: SIGTERM to one rank then blocks until the process group times
out, and the process ends with status 0. It is therefore not registered. SIGUSR1 under SLURM does the same as SIGTERM
and puts the job back into the queue.

Price: one all-reduce of one integer a step (gloo, on the host: the device is not waited for).
"""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

from scaleearth_pl.training.callbacks.checkpoint import Checkpoints, is_last_step
from scaleearth_pl.training.faults import exit_status, first_line
from scaleearth_pl.training.peer_watch import PeerWatch
from scaleearth_pl.training.process import is_writing
from scaleearth_pl.training.requeue import REQUEUED_STATUS, job_id, requeue

log = logging.getLogger(__name__)

TERMINATED_STATUS = 128 + signal.SIGTERM
"""143, what a shell reports of a process that SIGTERM ended."""

STATUSES = {int(signal.SIGTERM): TERMINATED_STATUS, int(signal.SIGUSR1): REQUEUED_STATUS}


class Stopped(SystemExit):
    """Training was asked to stop and did, with a checkpoint; `code` is the exit status."""


class StopSignals(Checkpoint):
    """Stops all ranks on a signal to any; a subclass of `Checkpoint`, so that every observer has counted the step.

    Args:
        grace_s: seconds for the step to end after SIGTERM; then the process leaves, and the last checkpoint stands. A
            checkpoint or result that is being written is waited for.
        requeue_grace_s: the same after SIGUSR1: less than SLURM was told to send it before the time limit (`USR1@120`).
        silence_s: seconds after which a rank that gives no sign of life counts as dead.
    """

    def __init__(self, *, grace_s: float = 12.0, requeue_grace_s: float = 90.0, silence_s: float = 12.0) -> None:
        self.grace_s, self.requeue_grace_s, self.silence_s = grace_s, requeue_grace_s, silence_s
        self.watch: PeerWatch | None = None
        self._asked = 0
        self._fitting = self._requeued = False
        self._group: dist.ProcessGroup | None = None
        self._children: list[Any] = []
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int, int] | None = None

    # -- hooks --------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Starts the watch and takes the signals; collective."""
        if self.watch is None:
            self.watch = self._start_watch(trainer)
            self._take_signals()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Keeps Lightning from registering its handlers, the one private touch here: there is no switch."""
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """From here on a signal waits for the end of the step."""
        self._fitting = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Saves and leaves if any rank was asked to; a run at its last step goes on to its end, for `grace_s`."""
        if not is_last_step(trainer) and (number := self._agree(trainer)):
            self._leave(trainer, number, save=True)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Leaves amid a validation inside `fit`; the checkpoint from before it stands, so that it is run in full."""
        if self._fitting and not is_last_step(trainer) and (number := self._agree(trainer)):
            self._leave(trainer, number, save=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Nothing is left to save."""
        self._fitting = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Tells the other ranks, without a collective; what is only the echo of another rank's failure ends as that.

        SIGUSR1 puts the job back into the queue wherever it came: during a step, before the first, or in the final test.
        """
        self._fitting = False
        if isinstance(exception, Stopped) and exception.code == REQUEUED_STATUS and trainer.is_global_zero:
            self._requeue()
        if self.watch is None:
            return
        several, echo = self.watch.world_size > 1, None
        if several:
            text = f"{type(exception).__name__}: {first_line(str(exception))}"
            echo = self.watch.fail(exit_status(exception), text)
        self._give_back(keep_watch=several)
        if echo is not None:
            log.error("leaving with status %d because of %s", *echo)
            raise Stopped(echo[0]) from exception

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """An orderly end."""
        self._give_back(keep_watch=False)

    # -- signals ------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGTERM, *([signal.SIGUSR1] if job_id() else [])]
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = (read_end, write_end, signal.set_wakeup_fd(write_end, warn_on_full_buffer=False))
        assert self.watch is not None
        graces = {signal.SIGTERM: self.grace_s, signal.SIGUSR1: self.requeue_grace_s}
        self.watch.listen(read_end, {int(number): (STATUSES[number], graces[number]) for number in numbers})

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = max(self._asked, number)
        if not self._fitting and not is_writing():
            raise Stopped(STATUSES[number])

    def _requeue(self) -> None:
        if not self._requeued:
            self._requeued = True
            requeue()

    def _at_deadline(self, reason: str) -> None:
        """In the watch's thread: the job of a step that outlasts SIGUSR1's grace goes back into the queue all the same."""
        if self.watch is not None and self.watch.rank == 0 and reason.endswith(signal.SIGUSR1.name):
            self._requeue()

    def _agree(self, trainer: pl.Trainer) -> int:
        """The signal that any rank was sent; 0 for none. SIGTERM (15) outranks SIGUSR1 (10)."""
        if trainer.world_size == 1:
            return self._asked
        asked = torch.tensor(self._asked)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return int(asked)

    def _leave(self, trainer: pl.Trainer, number: int, *, save: bool) -> None:
        if self.watch is not None:
            self.watch.no_deadline()
        for checkpoints in (c for c in trainer.callbacks if save and isinstance(c, Checkpoints)):  # type: ignore[attr-defined]
            checkpoints.save(trainer)
        log.warning("%s: leaving at step %d", signal.Signals(number).name, trainer.global_step)
        raise Stopped(STATUSES[number])

    # -- the watch ----------------------------------------------------------------------------------------------

    def _start_watch(self, trainer: pl.Trainer) -> PeerWatch:
        strategy, rank = trainer.strategy, trainer.global_rank
        launched = getattr(strategy.launcher, "procs", [])
        # Lightning polls its children every five seconds and kills all, itself included, with SIGKILL. Without its
        # list it stops; the watch polls them instead, and leaves with a status that tells.
        self._children = self._children or list(launched)
        launched.clear()
        environment = getattr(strategy, "cluster_environment", None)
        host = "127.0.0.1" if environment is None else environment.main_address
        watch = None if rank else self._new_watch(trainer, host, 0)
        port = int(strategy.broadcast(0 if watch is None else watch.port))
        watch = watch or self._new_watch(trainer, host, port)
        if trainer.world_size > 1 and dist.get_backend() != "gloo" and self._group is None:
            self._group = dist.new_group(backend="gloo")
        watch.start()
        return watch

    def _new_watch(self, trainer: pl.Trainer, host: str, port: int) -> PeerWatch:
        return PeerWatch(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            address=(host, port),
            children=self._children,
            silence_s=self.silence_s,
            grace_s=self.grace_s,
            at_deadline=self._at_deadline,
        )

    def _give_back(self, *, keep_watch: bool) -> None:
        if self.watch is not None and not keep_watch:
            self.watch.stop()
            self.watch = None
        if self._pipe is not None and threading.current_thread() is threading.main_thread():
            for number, previous in self._previous.items():
                signal.signal(number, previous)
            read_end, write_end, previous_fd = self._pipe
            signal.set_wakeup_fd(previous_fd)
            if not keep_watch:
                os.close(read_end)
            os.close(write_end)
            self._pipe = None


def _nothing() -> None:
    """Registers no handler."""
