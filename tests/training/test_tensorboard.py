"""TensorBoard holds every curve of the paper's Figures 7, 8 and 9 after a short run, and shows them arranged so."""

import re
from pathlib import Path

import pytest
from fakes.runs import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

pytestmark = pytest.mark.slow
STEPS = 10
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
TIERS = ("object", "structure", "semantic")

FIGURE_7 = {"train/loss_vlm", "train/ema/loss_vlm", "train/log10_grad_norm/model", "train/lr/model"}
FIGURE_8 = {
    *("train/loss_total", "train/ema/loss_total", "train/loss_vlm", "train/ema/loss_vlm"),
    *("train/gsd_nll", "train/ema/gsd_nll", "train/calibration_ratio", "train/calibration_reference"),
    *("update/mean",),
}
FIGURE_9 = {
    "train/lambda_eff",
    *(f"train/{kind}/{group}" for kind in ("lr", "grad_norm") for group in ("adapters", "thresholds", "sse_u")),
}


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def board(request: pytest.FixtureRequest, fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """(stage, what TensorBoard reads of its run folder)."""
    runs = tmp_path_factory.mktemp("board")
    evaluated = ("--trainer.val_check_interval", str(STEPS), "--test_after_fit", "true")
    cli = fit(request.param, fake_corpus, runs, *evaluated, steps=STEPS)
    return request.param, EventAccumulator(str(cli.run_folder), size_guidance=EVERYTHING).Reload()


def test_every_curve_of_the_figures_is_there(board) -> None:
    stage, events = board
    wanted = FIGURE_7 if stage == "stage1" else FIGURE_8 | FIGURE_9
    tags = set(events.Tags()["scalars"])
    assert wanted <= tags, sorted(wanted - tags)


def test_curves_have_a_point_for_every_step(board) -> None:
    stage, events = board
    every_step = FIGURE_7 if stage == "stage1" else {tag for tag in FIGURE_8 | FIGURE_9 if "calibration" not in tag}
    for tag in every_step - {"update/mean"}:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == list(range(1, STEPS + 1)), tag
    rates = [event.value for event in events.Scalars(next(t for t in every_step if t.startswith("train/lr/")))]
    assert rates[0] == max(rates) > rates[-1] > 0  # a warm-up of one step, then the cosine


def test_what_one_validation_found_stands_at_one_step(board) -> None:
    stage, events = board
    tags = ("val/accuracy/overall", *(("val/sse_u/nll",) if stage == "stage2" else ()))
    assert {tag: [event.step for event in events.Scalars(tag)] for tag in tags} == {tag: [STEPS] for tag in tags}


def test_gates_by_rank_tier_are_drawn_and_written(board) -> None:
    stage, events = board
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    gates = {tier: [tag for tag in scalars if tag.startswith(f"gates/{tier}/")] for tier in TIERS}
    if stage == "stage1":
        assert not any(gates.values())
        return
    assert all(gates.values())
    assert any("gate" in tag for tag in images)
    modules = [tag for tag in scalars if tag.startswith("update/") and tag != "update/mean"]
    assert len(modules) >= 7


def test_the_layout_has_no_empty_chart(board) -> None:
    """Each chart of the custom page finds at least one tag."""
    _, events = board
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    charts = [(category.title, chart) for category in layout.category for chart in category.chart]
    figures = {title.split(":")[0] for title, _ in charts}
    assert {"Figure 7"} <= figures or {"Figure 8", "Figure 9"} <= figures
    for title, chart in charts:
        found = [tag for expression in chart.multiline.tag for tag in tags if re.match(expression, tag)]
        assert found, f"{title}: {chart.title}"
