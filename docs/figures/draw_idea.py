"""The idea in one picture: one place at five GSDs, the ranks that each opens, and the gates that decide.

python docs/figures/draw_idea.py    (writes docs/figures/idea.png)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scaleearth_pl.core.figures import RANK_TIER_STYLES, gsd_axis
from scaleearth_pl.model.gate import ContinuousGate, GateConfig, rank_tier_slices
from scaleearth_pl.prepare.world.contact_sheet import GSDS_M, ROWS, draw_row

RANK = 64
SHOWN = (0, 2, 3, 5, 6)  # of GSDS_M


def main() -> None:
    """Draws and writes."""
    gate = ContinuousGate(GateConfig(), RANK)
    figure = Figure(figsize=(10.5, 6.6), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, len(SHOWN), height_ratios=(2.0, 0.75, 1.75), hspace=0.32, wspace=0.06)
    tiles = draw_row("village", ROWS["village"], 256)
    for column, i in enumerate(SHOWN):
        tile = figure.add_subplot(grid[0, column])
        tile.imshow(tiles[i])
        tile.set_title(f"GSD {GSDS_M[i]:g} m", fontsize=11)
        tile.set(xticks=[], yticks=[])
        draw_ranks(figure.add_subplot(grid[1, column]), gate, GSDS_M[i], first=column == 0)
    draw_curves(figure.add_subplot(grid[2, :]), gate)
    figure.savefig(Path(__file__).with_name("idea.png"), bbox_inches="tight", facecolor="white")


def draw_ranks(ax: Any, gate: ContinuousGate, gsd_m: float, *, first: bool) -> None:
    """h_k(s) of every rank dimension as a bar."""
    h_r = gate(torch.tensor([np.log10(gsd_m)], dtype=torch.float32), torch.zeros(1))[0].detach().numpy()
    for name, ranks in rank_tier_slices(RANK).items():
        where = np.arange(RANK)[ranks]
        ax.bar(where, np.ones(len(where)), width=0.8, color="#EEEEEE")
        ax.bar(where, h_r[ranks], width=0.8, color=RANK_TIER_STYLES[name].colour)
    ax.set(xlim=(-1, RANK), ylim=(0, 1.02), xticks=[], yticks=[0, 1] if first else [])
    ax.set_xlabel(f"sum of h: {h_r.sum():.0f} of {RANK}", fontsize=9)
    if first:
        ax.set_ylabel("gate h", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)


def draw_curves(ax: Any, gate: ContinuousGate) -> None:
    """One line per rank dimension, and the five GSDs above."""
    log10_gsd_S = torch.linspace(-1.7, 2.0, 200)
    h_Sr = gate(log10_gsd_S, torch.zeros_like(log10_gsd_S)).detach().numpy()
    gsd_m_S = 10 ** log10_gsd_S.numpy()
    for name, ranks in rank_tier_slices(RANK).items():
        style = RANK_TIER_STYLES[name]
        lines = ax.plot(gsd_m_S, h_Sr[:, ranks], color=style.colour, linestyle=style.dash, linewidth=0.7, alpha=0.75)
        lines[0].set_label(f"{name} ranks ({ranks.stop - ranks.start})")
    for i in SHOWN:
        ax.axvline(GSDS_M[i], color="#555555", linewidth=0.9, linestyle=":")
    gsd_axis(ax, "x", label="GSD", limits_m=(0.02, 100.0))
    ax.set_ylabel(r"$h_k(s)=\mathrm{sigmoid}(\mathrm{sharpness}\,(\tau_k-s))$")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", fontsize=9, frameon=False)


if __name__ == "__main__":
    main()
