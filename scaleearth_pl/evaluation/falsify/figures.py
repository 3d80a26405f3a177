"""The paper's figures of a whole comparison, drawn from its runs: 7 and 8 and 9 (training), 8d (gates).

Curves are those of TensorBoard's event files; smoothing is the EMA that training logged. One line a seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from scaleearth_pl.core.curves import CALIBRATION_REFERENCE
from scaleearth_pl.core.figures import BLACK, BLUE, ORANGE, PURPLE, RANK_TIER_STYLES, gsd_axis, new_figure
from scaleearth_pl.evaluation.predictions import RunFolder

Curve = tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]
STYLES = ((BLUE, "-"), (ORANGE, "-"), (PURPLE, "--"))
"""Colour and dash of the tags of a panel; where the last two coincide, as the learning rates do, both are seen."""
STAGE1 = {
    "SFT loss": ["train/loss_vlm", "train/ema/loss_vlm"],
    "gradient norm": ["train/grad_norm/model"],
    "learning rate": ["train/lr/model"],
}
STAGE2 = {
    "total objective": ["train/loss_total", "train/ema/loss_total"],
    "VLM loss, nats per token": ["train/loss_vlm", "train/ema/loss_vlm"],
    "GSD NLL, nats per image": ["train/gsd_nll", "train/ema/gsd_nll"],
    "calibration ratio": ["train/calibration_ratio"],
    "effective update magnitude, mean": ["update/mean"],
    "gradient norm": ["train/grad_norm/adapters", "train/grad_norm/thresholds", "train/grad_norm/sse_u"],
    "learning rate": ["train/lr/adapters", "train/lr/thresholds", "train/lr/sse_u"],
    "lambda_eff": ["train/lambda_eff"],
}
LOG_SCALE = ("gradient norm",)


def save_training_figure(path: Path, runs: Sequence[Path], panels: Mapping[str, Sequence[str]]) -> None:
    """One panel a quantity, three a row; one line a run and tag; tags of one panel differ in colour."""
    curves = [scalars(run) for run in runs]
    figure, axes = new_figure(min(3, len(panels)), -(-len(panels) // 3), panel_size=(3.6, 3.0))
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    for ax, (title, tags) in zip(axes, panels.items(), strict=False):
        for tag, (colour, dash) in zip(tags, STYLES, strict=False):
            for i, found in enumerate(curves):
                if tag in found:
                    label, alpha = _label(tag, tags)
                    ax.plot(
                        *found[tag], color=colour, linestyle=dash, linewidth=1, alpha=alpha, label="_" * (i > 0) + label
                    )
        ax.set(xlabel="step", title=title, yscale="log" if title in LOG_SCALE else "linear")
        if title == "calibration ratio":
            ax.axhline(CALIBRATION_REFERENCE, color=BLACK, linewidth=1, linestyle=":", label="calibrated: 0.798")
        if len(tags) > 1 or title == "calibration ratio":
            ax.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _label(tag: str, tags: Sequence[str]) -> tuple[str, float]:
    """A tag in the legend of its panel, and how opaque it is drawn: raw values stand behind their average."""
    if tag.replace("train/", "train/ema/") in tags:
        return "raw", 0.25
    return ("EMA" if "/ema/" in tag else tag.rpartition("/")[2]), 0.8


def scalars(run: Path) -> dict[str, Curve]:
    """Steps and values of every scalar of a run; empty where there is no event file.

    A resumed run has several files, which share the steps after its checkpoint: the later one's count.
    """
    if not any(run.glob("events.out.tfevents.*")):
        return {}
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: _curve(accumulator.Scalars(tag)) for tag in accumulator.Tags()["scalars"]}


def _curve(events: Sequence[ScalarEvent]) -> Curve:
    value_of = {event.step: event.value for event in events}
    steps = sorted(value_of)
    return np.array(steps, float), np.array([value_of[step] for step in steps], float)


def save_gates_figure(path: Path, runs: Sequence[RunFolder]) -> None:
    """Mean learned gate of each rank tier over the GSD, a line a seed."""
    figure, (ax,) = new_figure(panel_size=(5.6, 3.4))
    for i, run in enumerate(runs):
        gsds_m = sorted(float(gsd) for gsd in run.gates)
        for tier, style in RANK_TIER_STYLES.items():
            means = [run.gates[f"{gsd:g}"][tier] for gsd in gsds_m]
            label = tier if i == 0 else None
            ax.plot(gsds_m, means, color=style.colour, linestyle=style.dash, marker="o", markersize=3, label=label)
    gsd_axis(ax, "x", label="GSD", limits_m=(0.07, 45.0))
    ax.set_ylabel("mean gate h after training")
    ax.legend(frameon=False, title="rank tier")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
