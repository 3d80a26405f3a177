"""View tables with known answers: 60 places, ten questions each, true GSD 1 m unless told otherwise."""

from collections.abc import Callable, Sequence

import numpy as np

from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.evaluator.views import View


def view_table(
    views: Sequence[View],
    chance: Callable[[View], float],
    *,
    subject: str = "fake",
    n_places: int = 60,
    per_place: int = 10,
    readings: tuple[SseuReading, ...] = (),
    seed: int = 0,
) -> ViewTable:
    """Each question has one uniform draw; it is right under a view whose `chance` exceeds it, so views are paired."""
    n = n_places * per_place
    draw_N = np.random.default_rng(seed).permutation((np.arange(n) + 0.5) / n)
    place = np.repeat(np.arange(n_places), per_place)
    return ViewTable(
        subject=subject,
        views=tuple(views),
        correct_VN=np.stack([draw_N < chance(view) for view in views]),
        nll_VN=np.stack([np.full(n, 1 - chance(view)) for view in views]),
        image_N=np.array([f"i{p}" for p in place]),
        place_N=np.array([f"p{p}" for p in place]),
        qa_N=np.array([f"q{i}" for i in range(n)]),
        type_N=np.array(["width"] * n),
        family_N=np.array(["scale_specific", "identification"] * (n // 2)),
        tier_N=np.array(["mid"] * n),
        cue_N=(place % 4 != 0).astype(np.int64),
        log10_gsd_N=np.zeros(n),
        readings=readings,
    )
