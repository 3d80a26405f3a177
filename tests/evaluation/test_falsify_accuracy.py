"""Accuracies stand beside their floors, in the table and in the figure, and no bar is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.figures import new_figure
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.evaluation.bootstrap import place_bootstrap
from scaleearth_pl.evaluation.falsify import accuracy as module
from scaleearth_pl.evaluation.falsify.accuracy import GROUPS, accuracy_rows, save_accuracy_figure, seed_means
from scaleearth_pl.evaluation.falsify.plan import OURS
from scaleearth_pl.evaluation.floors import Floors, compute_floors
from scaleearth_pl.evaluation.groups import group_masks
from scaleearth_pl.evaluation.predictions import RunFolder, RunInfo

INFO = RunInfo(
    experiment="x", stage="stage2", size="tiny", corpus="world", commit="c", versions={}, seconds={}, qas_per_second=1.0
)
FAMILIES = ("scale_specific", "scale_specific", "scale_specific", "discriminative", "identification")
ANSWERS = ("2", "2", "9", "yes", "no")
"""One type a family: the best constant has two of three scale-specific questions right."""


def run(n_wrong_places: int, *, backwards: bool = False) -> RunFolder:
    """Ten places of five questions; the first places get all of them wrong."""
    rows = [
        Prediction(
            image_id=f"i{place}", place_id=f"p{place}", source="world", qa_id=f"{q}", type=family, family=family,
            question="?", answer=answer, prediction=None, correct=place >= n_wrong_places, gsd_m=1.0, tier="mid",
            has_scale_cue=True,
        )
        for place in range(10)
        for q, (family, answer) in enumerate(zip(FAMILIES, ANSWERS, strict=True))
    ]  # fmt: skip
    return RunFolder(path=Path("x"), run=INFO, predictions=tuple(rows[:: -1 if backwards else 1]), sse_u=(), gates={})


RUNS = {OURS: [run(2), run(4, backwards=True)], "bucketed": [run(5), run(5)]}
FLOORS = compute_floors(RUNS[OURS][0].predictions)
LOOKED_UP = {"overall": 0.3, "by_family/scale_specific": 0.25}


def test_floors_are_rows_of_the_table() -> None:
    head, *rows = accuracy_rows(RUNS, Floors(majority=FLOORS.majority, question_only=LOOKED_UP))
    assert head == ["variant", "overall", "scale_specific", "discriminative", "identification"]
    assert rows == [
        [OURS, *["80.0 / 60.0"] * 4],
        ["bucketed", *["50.0 / 50.0"] * 4],
        ["floor: majority", "80.0", "66.7", "100.0", "100.0"],
        ["floor: question only", "30.0", "25.0", "-", "-"],
        ["floor: question + GSD", "-", "-", "-", "-"],
    ]


def test_the_mean_over_seeds_has_its_interval_over_places() -> None:
    rows = RUNS[OURS][0].predictions
    right = [{0: 0.0, 1: 0.0, 2: 0.5, 3: 0.5}.get(int(row.place_id[1:]), 1.0) for row in rows]
    expected = place_bootstrap(np.array(right), [row.place_id for row in rows], group_masks(rows))
    assert seed_means(RUNS[OURS], RUNS[OURS][0]) == expected
    assert expected["overall"].low < expected["overall"].estimate == 0.7 < expected["overall"].high
    fewer = RunFolder(path=Path("y"), run=INFO, predictions=rows[1:], sse_u=(), gates={})
    with pytest.raises(ConfigError, match="same questions: 1 differ"):
        seed_means([fewer], RUNS[OURS][0])


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The panels of the figure as drawn."""
    drawn: list[Any] = []

    def kept(*args: Any, **kwargs: Any) -> Any:
        figure, panels = new_figure(*args, **kwargs)
        drawn.extend(panels)
        return figure, panels

    monkeypatch.setattr(module, "new_figure", kept)
    floors = Floors(majority=dict.fromkeys(FLOORS.majority, 0.1), question_only=LOOKED_UP)
    save_accuracy_figure(tmp_path / "accuracy.png", RUNS, floors)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    return drawn


def heights(ax: Any, label: str) -> list[float]:
    return [float(line.get_ydata()[0]) for line in ax.lines if line.get_label() == label]


def test_every_panel_shows_its_floors_inside_its_limits(axes: list[Any]) -> None:
    for ax, group in zip(axes, GROUPS, strict=True):
        low, high = ax.get_ylim()
        assert heights(ax, "floor: majority") == [pytest.approx(10)]
        assert heights(ax, "floor: question only") == [100 * LOOKED_UP[g] for g in (group,) if g in LOOKED_UP]
        assert heights(ax, "floor: question + GSD") == []
        assert low < 10 < high


def test_variants_are_points_with_intervals_and_never_bars(axes: list[Any]) -> None:
    expected = seed_means(RUNS[OURS], RUNS[OURS][0])
    for ax, group in zip(axes, GROUPS, strict=True):
        assert not ax.patches
        points = {bars.get_label(): bars for bars in ax.containers}
        assert list(points) == ["ours: mean of seeds, 95 % over places", "others: mean of seeds, 95 % over places"]
        data, _, (whisker,) = points["ours: mean of seeds, 95 % over places"]
        assert data.get_ydata() == pytest.approx([70])
        ends = whisker.get_segments()[0][:, 1]
        assert ends == pytest.approx([100 * expected[group].low, 100 * expected[group].high])
        assert sorted(y for line in ax.lines if line.get_label() == "a seed" for y in line.get_ydata()) == [
            50,
            50,
            60,
            80,
        ]
