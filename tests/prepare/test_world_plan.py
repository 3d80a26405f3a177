"""Places: tiers balanced, GSDs in range, regions apart, sizes that the GSD does not tell."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.prepare.world.nouns import (
    AREAS_M2,
    COUNTS,
    LARGEST_PX,
    LENGTHS_M,
    NOUNS,
    SMALLEST_PX,
    area_text,
    length_text,
    name_at,
    nearest_bin,
)
from scaleearth_pl.prepare.world.plan import SPLITS, aim, draw_focus, draw_gsds, make_place, visits

BOUNDARIES = TierBoundaries()


def place(split: str, index: int, share: float = 0.12):
    visit = visits(4000)[index]
    return make_place(7, split, index, visit, range_m=(0.05, 60.0), cue_less_share=share, boundaries=BOUNDARIES)


def test_visits_are_three_or_four_and_add_up():
    for n in (1, 5, 600, 2400):
        counts = [count for _, count in visits(n)]
        assert sum(counts) == n
        assert set(counts[:-1]) <= {3, 4}


def test_tiers_are_balanced_and_gsds_log_uniform():
    rng = np.random.default_rng(0)
    gsds_m = [g for first, count in visits(3000) for g in draw_gsds(rng, first, count, (0.05, 60.0), BOUNDARIES)]
    tiers = Counter(BOUNDARIES.tier_of(g) for g in gsds_m)
    assert set(tiers.values()) == {1000}
    assert min(gsds_m) >= 0.05
    assert max(gsds_m) < 60
    high = np.log10([g for g in gsds_m if g < 1])
    assert abs(high.mean() - (math.log10(0.05) / 2)) < 0.03


def test_regions_of_splits_are_further_apart_than_any_footprint():
    lats = {split: [place(split, index).lat for index in range(0, 700, 70)] for split in SPLITS}
    spans = sorted((min(v), max(v)) for v in lats.values())
    for (_, below), (above, _) in itertools.pairwise(spans):
        assert (above - below) * 111_320 > 10 * 60 * 128
    ids = {(place(split, index).region_id, split) for split in SPLITS for index in range(0, 40, 9)}
    assert len({region for region, _ in ids}) == len(ids)


def test_cue_less_share_is_met_and_all_kinds_occur():
    places = [place("train", index) for index in range(100)]
    cue_less = [p.scene.label for p in places if not p.scene.has_scale_cue]
    assert len(cue_less) == 12
    assert set(Counter(cue_less).values()) == {3}


def test_sizes_in_focus_span_the_range_of_pixels_at_every_gsd():
    rng = np.random.default_rng(1)
    pixels: dict[int, list[float]] = defaultdict(list)
    for _ in range(600):
        for gsd_m in (0.1, 2.0, 30.0):
            for noun, size_m in draw_focus(rng, "farmland", (gsd_m,)):
                assert NOUNS[noun].smallest_m <= size_m <= NOUNS[noun].largest_m
                pixels[round(math.log10(gsd_m))].append(size_m / gsd_m)
    for sizes in pixels.values():
        assert SMALLEST_PX <= min(sizes) < 1.5 * SMALLEST_PX
        assert 0.8 * LARGEST_PX < max(sizes) <= LARGEST_PX
        assert 0.25 < np.std(np.log10(sizes)) < 0.55


def test_camera_sees_the_place():
    for index in range(30):
        p = place("val", index)
        for number in range(len(p.gsds_m)):
            view = aim(np.random.default_rng(index), p, number, 128)
            assert view.gsd_m == p.gsds_m[number]
            assert math.hypot(view.x_m, view.y_m) < 3.2 * view.footprint_m


@pytest.mark.parametrize(
    ("value", "expected"), [(20.0, 20.0), (24.0, 20.0), (31.0, None), (45.0, 50.0), (0.2, 0.2), (9e5, None)]
)
def test_sizes_near_a_border_are_not_asked(value, expected):
    index = nearest_bin(value, LENGTHS_M)
    assert (None if index is None else LENGTHS_M[index]) == expected


def test_answers_are_few_and_readable():
    lengths, areas = [length_text(x) for x in LENGTHS_M], [area_text(x) for x in AREAS_M2]
    assert lengths[:3] + lengths[-2:] == ["20 cm", "50 cm", "1 m", "2 km", "5 km"]
    assert areas[:2] + areas[8:10] + areas[-1:] == ["1 m2", "3 m2", "1 ha", "3 ha", "10 km2"]
    assert len({*lengths, *areas, *map(str, COUNTS)}) == len(LENGTHS_M) + len(AREAS_M2) + len(COUNTS)
    lake = NOUNS["lake"]
    assert [lake.names[i][2] for i in (name_at(lake, 1.0), name_at(lake, 2000.0)) if i is not None] == [
        "a puddle",
        "a large lake",
    ]
    assert name_at(lake, 50.0) is None
