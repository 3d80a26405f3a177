"""The referee's figures: accuracy over noise; SSE-U's calibration as coverage, PIT, and error against sigma."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.curves import CALIBRATION_REFERENCE
from scaleearth_pl.core.figures import BLACK, BLUE, CUE_STYLES, GREY, ORANGE, new_figure

_GROUPS = {"cue": "scale cue", "no_cue": "no scale cue", "cue_unknown": "cue unknown"}


def save_noise_figure(path: Path, reports: Mapping[str, Mapping[str, Any]], *, group: str = "all") -> None:
    """Accuracy over noise on the GSD, a panel a subject: told and untold, the predicted GSD as a level line.

    Args:
        path: PNG; folders are made.
        reports: `referee_report` by subject.
        group: which of the report's groups.
    """
    figure, axes = new_figure(len(reports), panel_size=(4.6, 3.7))
    for ax, (name, report) in zip(axes, reports.items(), strict=True):
        views = report["groups"][group]["views"]
        for told, colour, dash in ((False, BLUE, "o-"), (True, ORANGE, "s--")):
            points = sorted(_noise_points(views, told))
            if len(points) < 2:  # no noise was told so
                continue
            x = [p[0] for p in points]
            y, low, high = (100 * np.array([p[i] for p in points]) for i in (1, 2, 3))
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, y, dash, color=colour, markersize=4, label="sigma told" if told else "sigma not told")
        if "predicted" in views:
            ax.axhline(
                100 * views["predicted"]["estimate"], color=BLACK, linewidth=1, linestyle=":", label="SSE-U's word"
            )
        ax.set_title(f"{name}: {report['groups'][group]['questions']} questions ({group})", fontsize=10)
        ax.set_xlabel("deviation of the noise on log10 GSD (decades)")
        ax.set_ylabel("accuracy, % (95 % over places)")
        ax.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def save_sse_u_figure(path: Path, report: Mapping[str, Any]) -> None:
    """Coverage, PIT and error against sigma of `sse_u_report`, apart by scale cue."""
    figure, (coverage, pit, error) = new_figure(3, panel_size=(4.2, 3.6))
    coverage.plot([0, 100], [0, 100], color=GREY, linewidth=1)
    pit.axhline(1.0, color=GREY, linewidth=1)
    ends: list[float] = []
    for group, label in _GROUPS.items():
        numbers = report.get(group)
        if not numbers or numbers["coverage_curve"] is None:
            continue
        style = CUE_STYLES[label]
        curve = 100 * np.array(numbers["coverage_curve"])
        coverage.plot(curve[:, 0], curve[:, 1], f"{style.dash}-", color=style.colour, markersize=3, label=label)
        edges = np.linspace(0, 1, len(numbers["pit"]) + 1)
        pit.stairs(np.array(numbers["pit"]) * len(numbers["pit"]), edges, color=style.colour, label=label)
        bins = np.array(numbers["sigma_bins"])
        error.plot(bins[:, 0], bins[:, 1], style.dash, color=style.colour, label=label)
        ends += bins.flatten().tolist()
    coverage.set(xlabel="nominal interval, %", ylabel="images inside, %")
    pit.set(xlabel="probability integral transform of the true GSD", ylabel="density (calibrated: 1)")
    if ends:
        line = np.array([min(ends), max(ends)])
        error.plot(line, CALIBRATION_REFERENCE * line, color=GREY, linewidth=1)
        error.set(xscale="log", yscale="log")
    error.set(xlabel="SSE-U's sigma (decades)", ylabel="mean absolute error (decades)")
    coverage.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _noise_points(views: Mapping[str, Any], told: bool) -> list[tuple[float, float, float, float]]:
    """(level, accuracy, low, high) of one series; level 0 is the oracle in both."""
    points = [(0.0, views["metadata"]["estimate"], *views["metadata"]["ci95"])]
    for name, row in views.items():
        if "-noise-" in name and ("-told" in name) == told:
            level = float(name.split("-noise-")[1].split("-")[0])
            points.append((level, row["estimate"], *row["ci95"]))
    return points
