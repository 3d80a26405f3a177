"""The report's training figures hold what the board shows as the paper's Figures 7, 8 and 9, and draw what was logged."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from scaleearth_pl.evaluation.falsify import figures
from scaleearth_pl.training.callbacks import layout

ELSEWHERE = ("gates/", "update/(?!mean)", "train/calibration_reference")
"""A figure of their own, one line a module, a line of reference."""


@pytest.mark.parametrize(("board", "panels"), [(layout.STAGE1, figures.STAGE1), (layout.STAGE2, figures.STAGE2)])
def test_no_chart_of_the_papers_figures_is_left_out(board: layout.Layout, panels: dict[str, list[str]]) -> None:
    drawn = {tag for tags in panels.values() for tag in tags}
    charts = [chart for title, charts in board.items() if title.startswith("Figure") for chart in charts.values()]
    patterns = [str(p) for _, found in charts for p in found if not str(p).startswith(ELSEWHERE)]  # type: ignore[attr-defined]
    assert len(patterns) >= 4
    for pattern in patterns:
        assert any(re.match(pattern.replace("log10_", ""), tag) for tag in drawn), pattern


def test_raw_values_stand_behind_their_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    for seed in (1, 2):
        with SummaryWriter(str(tmp_path / str(seed))) as writer:
            for step in range(3):
                writer.add_scalar("train/loss_vlm", seed + step, step)
                writer.add_scalar("train/ema/loss_vlm", seed + step / 2, step)
    panels = {"SFT loss": figures.STAGE1["SFT loss"]}
    figures.save_training_figure(tmp_path / "x.png", [tmp_path / "1", tmp_path / "2"], panels)
    (ax,) = kept[0].axes
    lines = {(line.get_label(), tuple(line.get_ydata())): line.get_alpha() for line in ax.lines}
    assert lines == {
        ("raw", (1, 2, 3)): 0.25, ("_raw", (2, 3, 4)): 0.25, ("EMA", (1, 1.5, 2)): 0.8, ("_EMA", (2, 2.5, 3)): 0.8,
    }  # fmt: skip
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["raw", "EMA"]
