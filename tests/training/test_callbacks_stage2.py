"""Gate curves, update magnitudes, calibration: what stage 2 shows, and that stage 1 refuses what it does not have."""

import math
from dataclasses import replace

import pytest
import torch
from fakes.toy_training import ToyModel, ToyModule, points, read_board, toy_fit, toy_loader, toy_step, toy_trainer

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.training.callbacks.calibration import Calibration
from scaleearth_pl.training.callbacks.gate_curves import GateCurves, split_rank_tiers
from scaleearth_pl.training.callbacks.losses import Losses
from scaleearth_pl.training.callbacks.update_magnitude import UpdateMagnitude, heat_map, short_names


def fit(folder, module, *callbacks, steps):
    trainer = toy_trainer(folder, list(callbacks), steps=steps)
    trainer.fit(module, toy_loader(steps))
    trainer.logger.experiment.close()


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


def test_calibration_ratio_of_the_window(tmp_path):
    board = toy_fit(tmp_path, Calibration(window_steps=2, every_n_steps=3))
    ratio = 0.1 / math.exp(-2.0)
    assert points(board, "train/calibration_ratio") == [(3, pytest.approx(ratio)), (6, pytest.approx(ratio))]
    assert points(board, "train/calibration_reference")[0][1] == pytest.approx(0.7979, abs=1e-4)


def test_calibration_window_forgets(tmp_path):
    class Worse(ToyModule):
        def training_step(self, batch, batch_idx):
            report = super().training_step(batch, batch_idx)["report"]
            return {"report": replace(report, mu=report.log10_gsd.nan_to_num() + 0.1 * report.step)}

    fit(tmp_path, Worse(), Calibration(window_steps=2, every_n_steps=4), steps=4)
    known = [int((toy_step(step).nll_weight > 0).sum()) for step in (3, 4)]
    mean_error = (0.3 * known[0] + 0.4 * known[1]) / sum(known)
    ratio = dict(points(read_board(tmp_path), "train/calibration_ratio"))
    assert ratio == {4: pytest.approx(mean_error / math.exp(-2.0))}


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
