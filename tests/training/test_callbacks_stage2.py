"""Gate curves, update magnitudes, calibration: what stage 2 shows, and that stage 1 refuses what it does not have."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes.toy_training import ToyModel, ToyModule, points, read_board, toy_fit, toy_loader, toy_step, toy_trainer

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.training.callbacks import gate_curves
from scaleearth_pl.training.callbacks.calibration import Calibration
from scaleearth_pl.training.callbacks.gate_curves import GATE_GSDS_M, GateCurves, split_rank_tiers
from scaleearth_pl.training.callbacks.losses import Losses
from scaleearth_pl.training.callbacks.update_magnitude import UpdateMagnitude, heat_map, short_names


def fit(folder, module, *callbacks, steps):
    trainer = toy_trainer(folder, list(callbacks), steps=steps)
    trainer.fit(module, toy_loader(steps))
    trainer.logger.experiment.close()


def direct_means(log10_gsd_S):
    """Of the untrained toy, whose twelve ranks are four of each tier."""
    gates_MrS = ToyModel().gate_values(log10_gsd_S)
    tiers = {"object": gates_MrS[:, :4], "structure": gates_MrS[:, 4:8], "semantic": gates_MrS[:, 8:]}
    return {tier: part.flatten(0, 1).mean(0).tolist() for tier, part in tiers.items()}


def test_gate_scalars_are_means_of_their_tier(tmp_path):
    board = toy_fit(tmp_path, GateCurves())
    for tier, means in direct_means(torch.tensor(GATE_GSDS_M).log10()).items():
        drawn = [points(board, f"gates/{tier}/{gsd_m:g}m")[0][1] for gsd_m in GATE_GSDS_M]
        assert drawn == pytest.approx(means, rel=1e-5), tier


def test_the_figure_draws_mean_band_and_start(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(gate_curves, "add_figure", lambda writer, tag, figure, step: figures.append(figure))
    toy_fit(tmp_path, GateCurves())
    (first,), (last,) = figures[0].axes, figures[-1].axes
    grid_S = torch.linspace(-2, 3, 101)
    gates_MrS = ToyModel().gate_values(grid_S)
    for i, (tier, means) in enumerate(direct_means(grid_S).items()):
        now, start = first.lines[2 * i : 2 * i + 2]
        assert now.get_label() == f"{tier} (4 ranks)"
        assert now.get_xdata() == pytest.approx((10**grid_S).tolist(), rel=1e-4)
        for line in (now, start, last.lines[2 * i + 1]):
            assert line.get_ydata() == pytest.approx(means, abs=1e-5)
        fallen_S = now.get_ydata() - last.lines[2 * i].get_ydata()
        assert fallen_S.min() >= 0 < fallen_S.max(), "the toy's thresholds fall at every step"
        low_S, high_S = gates_MrS[:, 4 * i : 4 * i + 4].flatten(0, 1).quantile(torch.tensor([0.1, 0.9]), dim=0)
        band = first.collections[i].get_datalim(first.transData)
        assert (band.y0, band.y1) == pytest.approx((float(low_S.min()), float(high_S.max())), abs=1e-4)


def test_gate_scalars_and_figures(tmp_path):
    board = toy_fit(tmp_path, GateCurves(every_n_steps=2, figure_every_n_steps=4))
    for tier in ("object", "structure", "semantic"):
        for gsd in ("0.1m", "1m", "10m", "30m"):
            assert [step for step, _ in points(board, f"gates/{tier}/{gsd}")] == [0, 2, 4, 6, 6]
    assert [image.step for image in board.Images("figures/gate_curves")] == [0, 4, 6]
    at_start = [points(board, f"gates/object/{gsd}")[0][1] for gsd in ("0.1m", "1m", "10m", "30m")]
    assert at_start == sorted(at_start, reverse=True), "coarser GSD closes object ranks"
    falls = [points(board, "gates/object/1m")[i][1] for i in (0, -1)]
    assert falls[1] < falls[0], "the toy's thresholds fall at every step"


def test_rank_tiers_are_slices_finest_first():
    gates_MrS = torch.arange(64.0).reshape(1, 64, 1)
    parts = split_rank_tiers(gates_MrS)
    assert [p.shape[1] for p in parts.values()] == [22, 21, 21]
    assert parts["structure"][0, 0, 0] == 22


def test_the_start_survives_a_resume(tmp_path):
    callback = GateCurves()
    toy_fit(tmp_path, callback)
    resumed = GateCurves()
    resumed.load_state_dict(callback.state_dict())
    initial = split_rank_tiers(ToyModel().gate_values(torch.linspace(-2, 3, 101)))["object"].mean(dim=(0, 1))
    assert resumed.state_dict()["start_mean"]["object"] == pytest.approx(initial.tolist(), abs=1e-5)


def test_update_magnitudes_by_module(tmp_path):
    board = toy_fit(tmp_path, UpdateMagnitude(every_n_steps=4))
    assert points(board, "update/00.q_proj") == [(4, pytest.approx(0.1)), (6, pytest.approx(0.1))]
    assert points(board, "update/01.down_proj")[0][1] == pytest.approx(1.4)
    assert points(board, "update/mean")[0][1] == pytest.approx(0.75)
    assert len(board.Images("figures/update_magnitude")) == 2


def test_short_names_keep_layers_apart_and_refuse_a_clash():
    full = {"a.layers.3.self_attn.q_proj": 1.0, "a.layers.13.mlp.up_proj": 2.0, "head": 3.0}
    assert short_names(full) == {"03.q_proj": 1.0, "13.up_proj": 2.0, "head": 3.0}
    with pytest.raises(ConfigError, match=r"03\.q_proj"):
        short_names({"a.layers.3.self_attn.q_proj": 1.0, "b.layers.3.self_attn.q_proj": 1.0})


def test_heat_map_leaves_modules_without_adapter_blank():
    image = heat_map({"00.q_proj": 1.0, "01.k_proj": 2.0}, 0).axes[0].images[0].get_array()
    assert image.mask.tolist() == [[False, True], [True, False]]


SIGMA = math.exp(-2.0)
WINDOWS = {3: (0.8, 4.0), 6: (0.85, 5.5)}
"""Sums of trust x error and of trust over the toy's steps 2, 3 and 5, 6: errors of 0.1 with trust 1, 0.3 with 0.5."""


def test_calibration_ratio_of_the_window_by_trust(tmp_path):
    board = toy_fit(tmp_path, Calibration(window_steps=2, every_n_steps=3))
    expected = {step: error / (trust * SIGMA) for step, (error, trust) in WINDOWS.items()}
    assert dict(points(board, "train/calibration_ratio")) == pytest.approx(expected)
    assert points(board, "train/calibration_reference")[0][1] == pytest.approx(0.7979, abs=1e-4)


def test_calibration_window_forgets(tmp_path):
    class Worse(ToyModule):
        def training_step(self, batch, batch_idx):
            report = super().training_step(batch, batch_idx)["report"]
            return {"report": replace(report, mu=report.log10_gsd.nan_to_num() + 0.1 * report.step)}

    fit(tmp_path, Worse(), Calibration(window_steps=2, every_n_steps=4), steps=4)
    trust = [float(toy_step(step).nll_weight.sum()) for step in (3, 4)]
    mean_error = (0.3 * trust[0] + 0.4 * trust[1]) / sum(trust)
    ratio = dict(points(read_board(tmp_path), "train/calibration_ratio"))
    assert ratio == {4: pytest.approx(mean_error / SIGMA)}


def test_calibration_is_that_of_all_ranks(monkeypatch):
    """The other rank's window holds an error of 9 decades with trust 1."""
    (error, trust), drawn = WINDOWS[3], {}
    writer = SimpleNamespace(add_scalar=lambda tag, value, step: drawn.update({tag: value}))
    monkeypatch.setattr("scaleearth_pl.training.callbacks.calibration.board", lambda trainer: writer)
    others = torch.tensor([9.0, SIGMA], dtype=torch.float64)
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda sums, reduce_op: sums + others))
    calibration = Calibration(window_steps=2, every_n_steps=3)
    for step in (2, 3):
        calibration.on_train_batch_end(trainer, None, {"report": toy_step(step)}, None, 0)
    assert drawn["train/calibration_ratio"] == pytest.approx((error + 9) / ((trust + 1) * SIGMA))


def test_a_resumed_window_equals_an_uninterrupted_one(tmp_path):
    whole = toy_fit(tmp_path / "whole", Calibration(window_steps=4, every_n_steps=1), steps=6)
    trainer = toy_trainer(tmp_path / "cut", [Calibration(window_steps=4, every_n_steps=1)], steps=3)
    trainer.fit(ToyModule(), toy_loader(6))
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    trainer = toy_trainer(tmp_path / "cut", [Calibration(window_steps=4, every_n_steps=1)], steps=6)
    trainer.fit(ToyModule(), toy_loader(6), ckpt_path=tmp_path / "cut.ckpt")
    trainer.logger.experiment.close()
    cut = points(read_board(tmp_path / "cut"), "train/calibration_ratio")
    assert cut == points(whole, "train/calibration_ratio")


def test_a_window_of_two_ranks_is_shared_out_again():
    """The window that rank zero saves is of both, and what both go on with adds up to it."""
    others = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    strategy = SimpleNamespace(reduce=lambda sums, reduce_op: sums + others, root_device=torch.device("cpu"))
    trainer, checkpoint = SimpleNamespace(strategy=strategy, world_size=2), {}
    saved, resumed = Calibration(), Calibration()
    saved.on_train_batch_end(trainer, None, {"report": toy_step(1)}, None, 0)
    saved.on_save_checkpoint(trainer, None, checkpoint)
    resumed.on_load_checkpoint(trainer, None, checkpoint)
    trainer.strategy.reduce, again = (lambda sums, reduce_op: 2 * sums), {}
    resumed.on_save_checkpoint(trainer, None, again)
    assert again == checkpoint
    assert len(again["calibration_window"]) == 1


def test_no_known_gsd_gives_no_point(tmp_path):
    class Unknown(ToyModule):
        def training_step(self, batch, batch_idx):
            report = super().training_step(batch, batch_idx)["report"]
            report.nll_weight.zero_()
            report.log10_gsd.fill_(math.nan)
            return {"report": report}

    fit(tmp_path, Unknown(), Calibration(every_n_steps=1), Losses(), steps=2)
    tags = read_board(tmp_path).Tags()["scalars"]
    assert "train/loss_vlm" in tags
    assert "train/calibration_ratio" not in tags


@pytest.mark.parametrize("callback", [GateCurves(), UpdateMagnitude()])
def test_stage1_refuses_what_looks_at_adapters(tmp_path, callback):
    with pytest.raises(ConfigError, match="leave it out of stage 1"):
        toy_fit(tmp_path, callback, sse_u=False)


def test_a_step_without_report_is_named(tmp_path):
    class Silent(ToyModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)["report"].loss

    with pytest.raises(ConfigError, match="must return its report"):
        toy_trainer(tmp_path, [Calibration()]).fit(Silent(), toy_loader(1))
