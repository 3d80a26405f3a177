"""Draws the world: one row per landscape, one column per GSD, for the README.

python -m scaleearth_pl.prepare.world.contact_sheet --out docs/figures/world.png
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.prepare.world.compose import compose
from scaleearth_pl.prepare.world.plan import Place, aim, draw_focus
from scaleearth_pl.prepare.world.render import expose, render
from scaleearth_pl.prepare.world.selfsimilar import compose_self_similar

ROWS = {
    "farmland": 20,
    "village": 23,
    "city": 20,
    "forest": 24,
    "heath": 25,
    "desert": 22,
    "coast": 22,
    "islands": 21,
    "snow": 2,
    "open sea": 6,
}
"""Landscapes and the seeds of the places shown; the last two have no scale cue."""
GSDS_M = (0.1, 0.25, 0.7, 2.0, 5.0, 12.0, 40.0)


def draw_row(label: str, seed: int, n_px: int) -> list[NDArray[np.uint8]]:
    """One place at all of `GSDS_M`."""
    rng = np.random.default_rng(seed)
    if label in ("snow", "open sea"):
        scene = compose_self_similar(rng, label)
    else:
        scene = compose(rng, label, draw_focus(rng, label, GSDS_M[1::2]))
    place = Place(split="train", index=0, first_image=0, gsds_m=GSDS_M, scene=scene, lon=0.0, lat=0.0)
    day = int(rng.integers(1 << 30))
    return [
        expose(render(scene, aim(rng, place, i, n_px)), np.random.default_rng(day), noise_levels=0.0)
        for i in range(len(GSDS_M))
    ]


def draw_sheet(out: Path, *, n_px: int = 128) -> None:
    """Writes the sheet as PNG."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(ROWS), len(GSDS_M), figsize=(1.55 * len(GSDS_M), 1.6 * len(ROWS)))
    tiers = TierBoundaries()
    for row, (label, seed) in enumerate(ROWS.items()):
        for column, levels in enumerate(draw_row(label, seed, n_px)):
            axis = axes[row, column]
            axis.imshow(levels, interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(f"{GSDS_M[column]:g} m  ({tiers.tier_of(GSDS_M[column])})", fontsize=8)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
    figure.subplots_adjust(left=0.03, right=0.998, top=0.975, bottom=0.003, wspace=0.03, hspace=0.03)
    out.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    Image.open(buffer).convert("RGB").save(out, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures/world.png"), help="PNG file to write")
    draw_sheet(parser.parse_args(argv).out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
