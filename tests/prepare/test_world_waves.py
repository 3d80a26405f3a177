"""Textures average exactly, and self-similar ones look the same at every magnification."""

import numpy as np
import pytest

from scaleearth_pl.prepare.world.canvas import Canvas, View, cell_hash, unit
from scaleearth_pl.prepare.world.waves import Waves


def axis(n: int, step: float) -> np.ndarray:
    return (np.arange(n) - (n - 1) / 2) * step


def test_sampling_coarser_equals_averaging_finer():
    waves = Waves.bump(np.random.default_rng(0), 9.0)
    fine = waves.sample(axis(96, 0.5), axis(96, 0.5), 0.5)[0].astype(np.float64)
    coarse = waves.sample(axis(32, 1.5), axis(32, 1.5), 1.5)[0]
    assert np.abs(fine.reshape(32, 3, 32, 3).mean((1, 3)) - coarse).max() < 1e-5


def test_bump_has_unit_deviation_where_it_is_resolved_and_vanishes_where_it_is_not():
    waves = Waves.bump(np.random.default_rng(1), 8.0, n=64)
    assert waves.sample(axis(128, 1.0), axis(128, 1.0), 1.0).std() == pytest.approx(1.0, rel=0.25)
    assert waves.sample(axis(128, 40.0), axis(128, 40.0), 40.0).std() == 0


def test_self_similar_field_has_the_same_spectrum_at_every_gsd():
    """Deviation of the field and of its differences, over many places, agree within 10 % across three decades."""
    found = []
    for step in (0.05, 1.0, 50.0):
        rows = []
        for seed in range(24):
            waves = Waves.self_similar(np.random.default_rng(seed), 0.02, 2e5)
            field = waves.sample(axis(64, step), axis(64, step), step)[0]
            rows.append((field.std(), np.diff(field, axis=0).std(), abs(field.mean())))
        found.append(np.mean(rows, axis=0))
    for other in found[1:]:
        np.testing.assert_allclose(other[:2], found[0][:2], rtol=0.1)
        assert abs(other[2] - found[0][2]) < 0.3 * found[0][0]


def test_coverage_keeps_the_area_of_bands_of_any_width():
    canvas = Canvas(View(x_m=0, y_m=0, gsd_m=2.0, n_px=64), oversample=1)
    window = canvas.everything()
    for width in (0.1, 0.7, 2.0, 9.3):
        u, v = window.rotated(0.0, 0.0, 0.37)
        assert canvas.band(v, -width / 2, width / 2).mean() * 128 == pytest.approx(width, rel=1e-3)
        assert u.shape == v.shape == (64, 64)


def test_windows_are_cut_at_the_canvas():
    canvas = Canvas(View(x_m=10, y_m=-5, gsd_m=1.0, n_px=32))
    assert canvas.window(500.0, 0.0, 20.0) is None
    window = canvas.window(10.0, -5.0, 3.0)
    assert window is not None
    assert abs(window.x_1W.mean() - 10) < 0.6
    assert abs(window.y_H1.mean() + 5) < 0.6


def test_hash_is_uniform_and_frozen():
    i, j = np.meshgrid(np.arange(-100.0, 100.0, dtype=np.float32), np.arange(-100.0, 100.0, dtype=np.float32))
    word = cell_hash(i, j, 5)
    assert len(np.unique(word)) > 0.9999 * word.size
    for draw in range(4):
        assert abs(unit(word, draw).mean() - 0.498) < 0.005
    assert cell_hash(np.float32([3]), np.float32([-4]), 7).tolist() == [1318362143]
