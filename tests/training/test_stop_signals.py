"""Signals are taken between steps; every step draws its own random numbers; a job finds its folder again."""

import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fakes.toy_training import ToyModule, toy_loader, toy_trainer

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.training.callbacks import stop_signals
from scaleearth_pl.training.callbacks.checkpoint import Checkpoints
from scaleearth_pl.training.callbacks.rng_state import RngStreams, seed_step
from scaleearth_pl.training.callbacks.stop_signals import Stopped, StopSignals
from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO, checkpoints_by_step
from scaleearth_pl.training.peer_watch import BEAT_S, PeerWatch
from scaleearth_pl.training.process import writing
from scaleearth_pl.training.requeue import identity, requeue
from scaleearth_pl.training.run_folder import choose_run, find_last, point_latest


class At(pl.Callback):
    """Does something at the beginning of a training step, or of a validation batch of the n-th validation."""

    def __init__(self, act: Any, *, step: int | None = None, validation: int | None = None) -> None:
        self.act, self.step, self.validation, self.seen = act, step, validation, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.act()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen += not trainer.sanity_checking
        if self.seen == self.validation and not trainer.sanity_checking:
            self.act()


def fit(folder: Path, *callbacks: pl.Callback, steps: int = 9, every: int = 2, **settings: Any) -> Any:
    trainer = toy_trainer(
        folder,
        [Checkpoints(every_n_steps=every), StopSignals(), *callbacks],
        steps=steps,
        enable_checkpointing=True,
        max_epochs=-1,
        plugins=[DurableCheckpointIO()],
    )
    module = ToyModule()
    trainer.fit(module, toy_loader(3), toy_loader(2), **settings)
    return module


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in checkpoints_by_step(folder / "checkpoints")]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_ends_the_step_saves_and_tells(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, At(send, step=4), every=100)
    assert stopped.value.code == 143
    assert steps_in(tmp_path) == [5]
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = fit(tmp_path, every=100, ckpt_path=tmp_path / "checkpoints")
    whole = fit(tmp_path / "whole", every=100)
    assert all(a.equal(b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_sigterm_amid_a_validation_leaves_the_checkpoint_from_before(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, At(send, validation=2), every=1)
    assert steps_in(tmp_path) == [4, 5]


def test_a_step_before_a_validation_is_saved_after_it_and_the_last_one_never(tmp_path: Path) -> None:
    class Order(pl.Callback):
        seen: list[Any] = []

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append(("validation", trainer.global_step, steps_in(tmp_path)))

    fit(tmp_path, Order(), every=1)
    assert [(step, max(saved, default=0)) for _, step, saved in Order.seen] == [(0, 0), (3, 2), (6, 5), (9, 8)]
    assert steps_in(tmp_path) == [7, 8]


def test_a_run_at_its_last_step_is_brought_to_its_end(tmp_path: Path) -> None:
    fit(tmp_path, At(send, step=8), every=100)
    assert steps_in(tmp_path) == []


def test_an_early_end_is_saved(tmp_path: Path) -> None:
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    fit(tmp_path, Enough(), every=100)
    assert steps_in(tmp_path) == [4]


@pytest.mark.parametrize(("epochs", "saved"), [(2, [3]), (1, [])])
def test_an_early_end_at_an_epochs_end_is_saved(tmp_path: Path, epochs: int, saved: list[int]) -> None:
    """Early stopping ends a run where an epoch ends; a run of that one epoch is complete there."""

    class Enough(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = True

    callbacks = [Checkpoints(every_n_steps=100), Enough()]
    saving = {"enable_checkpointing": True, "plugins": [DurableCheckpointIO()]}
    toy_trainer(tmp_path, callbacks, steps=-1, max_epochs=epochs, **saving).fit(ToyModule(), toy_loader(3))
    assert steps_in(tmp_path) == saved


def test_an_exception_gives_the_signals_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        fit(tmp_path, At(fail, step=4))
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_heard_after_the_agreement_puts_no_deadline_on_the_save(monkeypatch) -> None:
    """The watch reads its pipe every half second; the step may have ended, and a long save begun, before it does."""
    left: list[int] = []
    watch = PeerWatch(rank=0, world_size=1)
    monkeypatch.setattr(watch, "_exit", lambda status, reason: left.append(status))
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    watch.listen(read_end, {int(signal.SIGTERM): (143, 0.1)})
    os.write(write_end, bytes([signal.SIGTERM]))
    watch.no_deadline()
    watch.start()
    time.sleep(4 * BEAT_S)
    watch.stop()
    for end in (read_end, write_end):
        os.close(end)
    assert left == []


@pytest.mark.parametrize("peer_failed", [False, True])
def test_a_deadline_waits_for_what_is_being_written_unless_a_rank_is_gone(monkeypatch, peer_failed: bool) -> None:
    left: list[str] = []
    watch = PeerWatch(rank=0, world_size=1, at_deadline=lambda reason: left.append(f"at deadline: {reason}"))
    monkeypatch.setattr(watch, "_exit", lambda status, reason: left.append(f"{status}: {reason.split(';')[0]}"))
    watch._word = (1, "rank 1: bug") if peer_failed else None
    watch.leave_within(75, "SIGUSR1", 0.1)
    time.sleep(0.2)
    with writing():
        watch._look(1)
        assert bool(left) is peer_failed
    left.clear()
    watch._look(2)
    assert bool(left) is peer_failed, "its time begins anew when the file is whole"
    time.sleep(0.2)
    left.clear()
    watch._look(3)
    assert left == ["at deadline: SIGUSR1", "75: SIGUSR1"]


@pytest.mark.parametrize(
    ("reason", "rank", "asked"), [("SIGUSR1", 0, 1), ("rank 3: SIGUSR1", 0, 1), ("SIGUSR1", 1, 0), ("SIGTERM", 0, 0)]
)
def test_a_job_whose_step_outlasts_usr1_is_requeued_once(monkeypatch, reason: str, rank: int, asked: int) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(stop_signals, "requeue", lambda: calls.append(True))
    signals = StopSignals()
    signals.watch = PeerWatch(rank=rank, world_size=1)
    signals._at_deadline(reason)
    signals._at_deadline(reason)
    assert len(calls) == asked


def test_usr1_gets_the_time_that_slurm_leaves_and_sigterm_less(monkeypatch) -> None:
    monkeypatch.setattr(stop_signals, "job_id", lambda: "7")
    signals = StopSignals(grace_s=5, requeue_grace_s=70)
    signals.watch = PeerWatch(rank=0, world_size=1)
    try:
        signals._take_signals()
        assert signals.watch._signals is not None
        assert signals.watch._signals[1] == {signal.SIGTERM: (143, 5), signal.SIGUSR1: (75, 70)}
    finally:
        signals._give_back(keep_watch=False)


def test_a_signal_after_training_does_not_interrupt_the_writing_of_the_result() -> None:
    signals = StopSignals()
    with writing():
        signals._handle(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        signals._handle(signal.SIGTERM, None)


@pytest.mark.parametrize(("error", "rank", "asked"), [(75, 0, True), (75, 1, False), (143, 0, False), (None, 0, False)])
def test_usr1_requeues_wherever_it_came(monkeypatch, error: int | None, rank: int, asked: bool) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(stop_signals, "requeue", lambda: calls.append(True))
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0)
    StopSignals().on_exception(trainer, None, ValueError("bug") if error is None else Stopped(error))  # type: ignore[arg-type]
    assert bool(calls) is asked


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_step_draws_the_same_whatever_came_before() -> None:
    seed_step(1, 7, 0)
    first = draws()
    draws()
    seed_step(1, 7, 0)
    assert draws() == first
    others = set()
    for key in ((1, 8, 0), (1, 7, 1), (2, 7, 0)):
        seed_step(*key)
        others.add(draws())
    assert len(others | {first}) == 4


def test_another_seed_is_refused_by_name() -> None:
    streams = RngStreams(seed=3)
    streams.load_state_dict(streams.state_dict())
    with pytest.raises(CheckpointError, match=r"seed_everything.*\(3, 4\)"):
        RngStreams(seed=4).load_state_dict(streams.state_dict())


def test_a_slurm_job_finds_its_folder_again(tmp_path: Path, monkeypatch) -> None:
    for name in ("SCALEEARTH_VERSION", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert choose_run(tmp_path, resume=False, fit=True) == ("slurm-4711", None)
    folder = tmp_path / "slurm-4711" / "checkpoints"
    DurableCheckpointIO().save_checkpoint({"global_step": 1}, folder / "step=00000001.ckpt")
    with pytest.raises(ConfigError, match="checkpoints of an earlier run"):
        choose_run(tmp_path, resume=False, fit=True)
    assert choose_run(tmp_path, resume=False, fit=False) == ("slurm-4711", None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.delenv("SCALEEARTH_VERSION")
    assert choose_run(tmp_path, resume=False, fit=True) == ("slurm-4711", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "1; rm -rf x")
    with pytest.raises(ConfigError, match="not a SLURM job number"):
        identity()


def test_a_named_run_is_gone_on_with_though_latest_moved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SCALEEARTH_VERSION", "")
    for name in ("first", "second"):
        folder = tmp_path / name / "checkpoints"
        DurableCheckpointIO().save_checkpoint({"global_step": 1}, folder / "step=00000001.ckpt")
    point_latest(tmp_path / "first")
    assert choose_run(tmp_path, resume=True, fit=True)[0] == "first"
    point_latest(tmp_path / "second")  # another run begins before this one's other ranks look
    assert choose_run(tmp_path, resume=True, fit=True) == ("first", str(tmp_path / "first" / "checkpoints"))
    with pytest.raises(ConfigError, match="only fit can be resumed"):
        choose_run(tmp_path, resume=True, fit=False)
    monkeypatch.setenv("SCALEEARTH_VERSION", "third")
    with pytest.raises(CheckpointError, match=r"nothing to resume.*third"):
        choose_run(tmp_path, resume=True, fit=True)


def test_ranks_without_a_common_name_are_refused(monkeypatch) -> None:
    for name in ("SLURM_JOB_ID", "SCALEEARTH_VERSION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="export SCALEEARTH_VERSION"):
        identity()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my/job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert identity() == ("torchrun-my-job", True)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        find_last(tmp_path)


def test_settings_of_checkpoints_are_checked() -> None:
    for settings in ({"every_n_steps": 0}, {"keep": 1}):
        with pytest.raises(ConfigError):
            Checkpoints(**settings)  # type: ignore[arg-type]
