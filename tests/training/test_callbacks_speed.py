"""Throughput, progress and layout: what is counted, what is printed, and that every chart has its tags."""

import io
import re

import pytest
from fakes.toy_training import ToyModule, points, read_board, toy_loader, toy_trainer
from rich.console import Console
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.data import DataLoader

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.training.callbacks import throughput
from scaleearth_pl.training.callbacks.calibration import Calibration
from scaleearth_pl.training.callbacks.gate_curves import GateCurves
from scaleearth_pl.training.callbacks.layout import CustomScalarsLayout
from scaleearth_pl.training.callbacks.losses import Losses
from scaleearth_pl.training.callbacks.progress import Progress
from scaleearth_pl.training.callbacks.sse_u_diagrams import SseUDiagrams
from scaleearth_pl.training.callbacks.throughput import Throughput
from scaleearth_pl.training.callbacks.update_magnitude import UpdateMagnitude


class Clock:
    """Time that passes only while something sleeps: a busy machine changes nothing."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class SlowStep(ToyModule):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.sleep(0.02)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock.sleep(0.3)
        return super().validation_step(batch, batch_idx)


class SlowData:
    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.clock.sleep(self.seconds)
        return i


class LoggingModule(ToyModule):
    def on_validation_epoch_end(self):
        for group in ("overall", "by_tier/high", "by_family/scale_specific", "by_type/presence"):
            self.log(f"val/accuracy/{group}", 0.5)


def fit_slow(folder, clock, seconds, callback):
    trainer = toy_trainer(folder, [callback], steps=6, val_check_interval=3)
    trainer.fit(SlowStep(clock), DataLoader(SlowData(clock, seconds)), toy_loader(1))
    trainer.logger.experiment.close()
    return read_board(folder)


def test_rates_leave_validation_out(tmp_path, clock):
    callback = Throughput(every_n_steps=4)
    board = fit_slow(tmp_path, clock, 0.0, callback)
    for tag in ("qas_per_second", "tokens_per_second", "step_seconds", "wait_share", "padding_share"):
        assert [step for step, _ in points(board, f"throughput/{tag}")] == [4, 6]
    assert dict(points(board, "throughput/step_seconds")) == pytest.approx({4: 0.02, 6: 0.02})
    rates = dict(points(board, "throughput/qas_per_second"))
    assert rates == pytest.approx({4: 8 / 0.02, 6: 8 / 0.02})
    assert points(board, "throughput/padding_share")[0][1] == pytest.approx(0.2)
    assert callback.qas_per_second == pytest.approx(rates[4])


def test_waiting_for_data_shows(tmp_path, clock):
    waits = points(fit_slow(tmp_path, clock, 0.06, Throughput(every_n_steps=6)), "throughput/wait_share")
    assert waits[0][1] > 0.5


def plain_progress(**settings):
    text = io.StringIO()
    return Progress(console=Console(file=text, soft_wrap=True, highlight=False), **settings), text


def test_a_log_file_gets_one_plain_line_every_n_steps(tmp_path):
    progress, text = plain_progress(every_n_steps=2)
    trainer = toy_trainer(tmp_path, [progress], steps=6, enable_progress_bar=True)
    trainer.fit(LoggingModule(), toy_loader(6), toy_loader(1))
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert [re.match(r"step (\d+)/6  loss ", line)[1] for line in lines if line.startswith("step")] == list("1246")
    assert "nll -0.5" in lines[0]
    assert "QAs/s" in lines[0]
    assert lines[-1] == "validation at step 6  val/accuracy/overall 0.5"


def test_a_terminal_gets_the_bar_and_no_lines(tmp_path):
    text = io.StringIO()
    progress = Progress(every_n_steps=2, console=Console(file=text, force_terminal=True))
    trainer = toy_trainer(tmp_path, [progress], steps=4, enable_progress_bar=True)
    trainer.fit(ToyModule(), toy_loader(4))
    assert not progress.is_disabled
    assert text.getvalue() == ""
    assert {"loss", "vlm", "nll", "QAs/s"} == set(progress.get_metrics(trainer, trainer.lightning_module))


@pytest.mark.parametrize(
    ("stage", "callbacks"),
    [
        ("stage1", [Losses(), Throughput()]),
        (
            "stage2",
            [Losses(), Throughput(), GateCurves(), Calibration(every_n_steps=2), UpdateMagnitude(), SseUDiagrams()],
        ),
    ],
)
def test_every_chart_of_the_layout_has_tags(tmp_path, stage, callbacks):
    trainer = toy_trainer(tmp_path, [CustomScalarsLayout(stage=stage), *callbacks])
    trainer.fit(LoggingModule(sse_u=stage == "stage2"), toy_loader(6), toy_loader(1))
    trainer.logger.experiment.close()
    board = read_board(tmp_path)
    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    titles = " ".join(category.title for category in layout.category)
    assert ("Figure 7" in titles) == (stage == "stage1")
    assert ("Figure 8" in titles and "Figure 9" in titles) == (stage == "stage2")
    tags = board.Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, tag) for tag in tags), (chart.title, pattern)


def test_the_mean_update_is_not_among_the_modules():
    chart = CustomScalarsLayout(stage="stage2").layout["Figure 8: stage 2, CS-HLoRA and SSE-U"]
    (pattern,) = chart["(f) effective update magnitude, per module"][1]
    assert re.match(pattern, "update/03.q_proj")
    assert not re.match(pattern, "update/mean")


def test_an_interval_of_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Throughput(every_n_steps=0)


def test_a_run_without_tensorboard_is_observed_by_nobody(tmp_path):
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Losses(), Throughput(), GateCurves(), Calibration(), UpdateMagnitude(), SseUDiagrams()],
    )
    trainer.fit(ToyModule(), toy_loader(2), toy_loader(1))
    assert trainer.global_step == 2
    assert not list(tmp_path.iterdir())
