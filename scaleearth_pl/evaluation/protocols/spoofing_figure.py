"""Figure 10: accuracy over the pseudo-GSD, all models in one chart, bands over places, the truth marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scaleearth_pl.core.figures import BLACK, GREY, gsd_axis, new_figure, styles_of
from scaleearth_pl.evaluation.protocols.spoofing import SpoofingCurve


def save_spoofing_figure(
    path: Path,
    curves: Mapping[str, SpoofingCurve],
    *,
    floor: float | None = None,
    edges: Sequence[float] = (),
    untold: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws all curves of one kind (absolute or relative) into a PNG.

    Args:
        path: where to; folders are made.
        curves: by name, in the order of the legend.
        floor: majority floor in [0, 1], drawn as a grey line.
        edges: bucket edges on the axis (log10), drawn as thin lines.
        untold: accuracies, in [0, 1] by name, of models that are not told the GSD: no pseudo-GSD moves them.
        title: over the chart.
    """
    figure, (ax,) = new_figure(panel_size=(6.6, 4.2))
    first = next(iter(curves.values()))
    styles = styles_of([*curves, *(untold or {})])
    for name, curve in curves.items():
        style = styles[name]
        x = curve.log10_K if curve.relative else 10.0**curve.log10_K
        ax.fill_between(x, 100 * curve.low_K, 100 * curve.high_K, color=style.colour, alpha=0.15, linewidth=0)
        ax.plot(x, 100 * curve.mean_K, color=style.colour, linestyle=style.dash, marker="o", markersize=3, label=name)
    for name, accuracy in (untold or {}).items():
        style = styles[name]
        ax.axhline(100 * accuracy, color=style.colour, linestyle=style.dash, label=f"{name} (not told)")
    place = (lambda v: v) if first.relative else (lambda v: 10.0**v)
    ax.axvline(place(first.truth), color=BLACK, linewidth=1, linestyle=(0, (2, 2)))
    ax.annotate("truth", (place(first.truth), 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    for edge in edges:
        ax.axvline(place(edge), color=GREY, linewidth=0.6)
    if floor is not None:
        ax.axhline(100 * floor, color=GREY, linewidth=1)
        ax.annotate("majority floor", (0.01, 100 * floor), xycoords=("axes fraction", "data"), va="bottom", color=GREY)
    if first.relative:
        ax.set_xlabel("pseudo-GSD over true GSD (decades; left: told finer than it is)")
    else:
        ends = 10.0 ** np.array([first.log10_K[0] - 0.05, first.log10_K[-1] + 0.05])
        gsd_axis(ax, "x", label="pseudo-GSD", limits_m=(float(ends[0]), float(ends[1])))
    ax.set_ylabel(f"accuracy, % (95 % over {first.n_places} places)")
    ax.set_title(title or f"{first.n_questions} questions, {first.n_images} images", fontsize=10, pad=16)
    figure.legend(loc="outside lower center", ncols=min(4, len(curves) + len(untold or {})), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
