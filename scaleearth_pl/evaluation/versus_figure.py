"""The comparison as a small chart: difference to every twin with its interval, zero marked.

Bars that end left of zero are drawn like those that end right of it: the chart shows the sign that came out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.figures import BLACK, new_figure, styles_of


def save_versus_figure(path: Path, versus: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws `versus` of comparison.json (overall, families, tiers; all twins side by side) into a PNG."""
    groups = [name for name in next(iter(versus.values()))["groups"] if not name.startswith("by_type/")]
    height = 1.2 + 0.28 * len(groups) * len(versus)
    figure, (ax,) = new_figure(panel_size=(6.4, height))
    thickness, styles = 0.8 / len(versus), styles_of(list(versus))
    for i, (twin, entry) in enumerate(versus.items()):
        rows = [entry["groups"][name] for name in groups]
        middle = np.array([100 * row["estimate"] for row in rows])
        # A percentile interval may miss its estimate in tiny samples; an error bar cannot be negative.
        ends = 100 * np.array([row["ci95"] for row in rows]).T
        reach = np.stack([middle - ends[0], ends[1] - middle]).clip(min=0)
        ax.barh(
            np.arange(len(groups)) + (i - (len(versus) - 1) / 2) * thickness,
            middle,
            height=0.9 * thickness,
            xerr=reach,
            color=styles[twin].colour,
            ecolor=BLACK,
            capsize=2,
            label=twin,
        )
    ax.set_yticks(np.arange(len(groups)), [name.partition("/")[2] or name for name in groups])
    ax.invert_yaxis()
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_xlabel("ours minus twin, percentage points (95 % over places)")
    figure.legend(loc="outside upper center", ncols=len(versus), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
