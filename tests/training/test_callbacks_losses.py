"""Losses misses no step, averages without bias, goes on after a resume."""

import math
from types import SimpleNamespace

import pytest
import torch
from fakes.toy_training import ToyModule, points, read_board, toy_fit, toy_loader, toy_step, toy_trainer

from scaleearth_pl.core.curves import DebiasedEma
from scaleearth_pl.core.errors import ConfigError, NonFiniteError
from scaleearth_pl.training.callbacks.losses import Losses

STAGE2_TAGS = {
    "train/loss_total",
    "train/loss_vlm",
    "train/gsd_nll",
    "train/ema/loss_total",
    "train/ema/loss_vlm",
    "train/ema/gsd_nll",
    "train/lambda_eff",
    "train/lr/adapters",
    "train/lr/sse_u",
    "train/grad_norm/adapters",
    "train/grad_norm/thresholds",
    "train/log10_grad_norm/adapters",
    "val/loss_vlm",
}
OF_STEP = {
    "train/loss_total": lambda step: 2.0 / step,
    "train/loss_vlm": lambda step: 1.5 / step,
    "train/gsd_nll": lambda step: -0.5,
    "train/ema/gsd_nll": lambda step: -0.5,
    "train/lambda_eff": lambda step: 0.1 * step,
    "train/lr/adapters": lambda step: 1e-3,
    "train/lr/sse_u": lambda step: 1e-4,
    "train/grad_norm/adapters": lambda step: 10.0,
    "train/log10_grad_norm/adapters": lambda step: 1.0,
}
"""What `toy_step` reports."""


def test_every_curve_shows_its_own_number(tmp_path):
    board = toy_fit(tmp_path, Losses(every_n_steps=4), steps=6)
    for tag, expected in OF_STEP.items():
        assert dict(points(board, tag)) == pytest.approx({step: expected(step) for step in range(1, 7)}), tag
    for name in ("loss_total", "loss_vlm"):
        ema = DebiasedEma(0.95)
        averages = [float(ema.update(torch.tensor(OF_STEP[f"train/{name}"](step)))) for step in range(1, 7)]
        assert [value for _, value in points(board, f"train/ema/{name}")] == pytest.approx(averages), name


def test_every_step_has_its_point_though_the_interval_does_not_divide_the_run(tmp_path):
    board = toy_fit(tmp_path, Losses(every_n_steps=4), steps=6)
    assert set(board.Tags()["scalars"]) >= STAGE2_TAGS
    assert dict(points(board, "train/loss_total")) == pytest.approx({s: 2.0 / s for s in range(1, 7)})
    assert [step for step, _ in points(board, "train/lr/adapters")] == list(range(1, 7))


def test_a_zero_gradient_norm_has_a_point_but_no_logarithm(tmp_path):
    board = toy_fit(tmp_path, Losses(every_n_steps=2))
    assert points(board, "train/log10_grad_norm/adapters")[0][1] == pytest.approx(1.0)
    assert points(board, "train/grad_norm/thresholds")[0][1] == 0
    assert "train/log10_grad_norm/thresholds" not in board.Tags()["scalars"]


def test_stage1_has_no_nll_and_no_lambda(tmp_path):
    tags = toy_fit(tmp_path, Losses(every_n_steps=2), sse_u=False).Tags()["scalars"]
    assert "train/loss_vlm" in tags
    assert not {"train/gsd_nll", "train/ema/gsd_nll", "train/lambda_eff"} & set(tags)


def test_held_out_loss_is_per_token_over_all_batches(tmp_path):
    assert points(toy_fit(tmp_path, Losses()), "val/loss_vlm") == [(6, pytest.approx(1.5))]


def test_ema_of_a_constant_is_the_constant_from_the_first_step():
    ema = DebiasedEma(0.95)
    assert [float(ema.update(torch.tensor(3.0))) for _ in range(4)] == pytest.approx([3.0] * 4)


def test_ema_equals_its_definition():
    values, decay, ema = [5.0, 1.0, 2.0], 0.8, DebiasedEma(0.8)
    got = [float(ema.update(torch.tensor(v))) for v in values][-1]
    weights = [decay**2, decay, 1.0]
    assert got == pytest.approx(sum(w * v for w, v in zip(weights, values)) / sum(weights))


def test_resumed_averages_equal_uninterrupted_ones(tmp_path):
    whole = toy_fit(tmp_path / "whole", Losses(every_n_steps=1), steps=6)
    trainer = toy_trainer(tmp_path / "cut", [Losses(every_n_steps=1)], steps=3)
    trainer.fit(ToyModule(), toy_loader(6))
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    trainer = toy_trainer(tmp_path / "cut", [Losses(every_n_steps=1)], steps=6)
    trainer.fit(ToyModule(), toy_loader(6), ckpt_path=tmp_path / "cut.ckpt")
    trainer.logger.experiment.close()
    cut = dict(points(read_board(tmp_path / "cut"), "train/ema/loss_vlm"))
    assert cut == pytest.approx(dict(points(whole, "train/ema/loss_vlm")))


def test_observing_a_step_reads_nothing_from_the_device(monkeypatch):
    callback, reads = Losses(every_n_steps=10), []
    for name in ("item", "tolist", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: reads.append(name) or math.nan)
    for step in range(1, 10):
        callback._take(None, toy_step(step))
    assert reads == []


@pytest.mark.parametrize("bad", [{"every_n_steps": 0}, {"ema_decay": 1.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        Losses(**bad)


@pytest.mark.parametrize("event", ["checkpoint", "nan", "other"])
def test_steps_that_wait_are_written_before_the_run_can_end(monkeypatch, event):
    """A run that is resumed from a checkpoint does not see the steps before it again; a NaN's are the ones to look at."""
    written = []
    writer = SimpleNamespace(add_scalar=lambda tag, value, step: written.append((tag, step)))
    monkeypatch.setattr("scaleearth_pl.training.callbacks.losses.board", lambda trainer: writer)
    losses = Losses(every_n_steps=10)
    for step in (1, 2):
        losses._take(None, toy_step(step))
    if event == "checkpoint":
        losses.on_save_checkpoint(None, None, {})
    else:
        losses.on_exception(None, None, NonFiniteError("nan") if event == "nan" else RuntimeError("CUDA error"))
    steps = [step for tag, step in written if tag == "train/loss_total"]
    assert steps == ([] if event == "other" else [1, 2])
