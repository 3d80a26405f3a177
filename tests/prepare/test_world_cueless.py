"""Scenes without a scale cue: a classifier of image statistics tells 0.06 m from 50 m no better than a coin.

The same classifier on scenes with cues is the control: it must be able to tell, or the test could not fail.
"""

from itertools import pairwise

import numpy as np
import pytest

from scaleearth_pl.prepare.world.archetypes import ARCHETYPES
from scaleearth_pl.prepare.world.compose import compose
from scaleearth_pl.prepare.world.plan import Place, aim, draw_focus
from scaleearth_pl.prepare.world.render import expose, render
from scaleearth_pl.prepare.world.selfsimilar import BASES, compose_self_similar

GSDS_M = (0.06, 50.0)
N_PX = 128


def statistics_of(levels: np.ndarray) -> list[float]:
    """Colours, quantiles, slopes, and energy by wavelength of brightness and of colour differences."""
    x = levels.astype(np.float64)
    grey, chroma = x.mean(axis=2), x[..., 0] - x[..., 2]
    k = np.hypot(np.fft.fftfreq(N_PX)[:, None], np.fft.fftfreq(N_PX)[None]) * N_PX
    edges = [1, 2, 4, 8, 16, 32, 64]
    found = [*x.mean(axis=(0, 1)), *x.std(axis=(0, 1)), *np.quantile(grey, [0.01, 0.1, 0.5, 0.9, 0.99])]
    for field in (grey, chroma):
        power = np.abs(np.fft.fft2(field - field.mean())) ** 2
        found += [np.log(power[(k >= a) & (k < b)].mean() + 1) for a, b in pairwise(edges)]
    slope = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
    return [*found, *np.quantile(slope, [0.5, 0.9, 0.99])]


def images(labels: tuple[str, ...], seed: int, n_places: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics [images, S] and whether the GSD is the large one, two images a place."""
    rows = []
    for index in range(n_places):
        rng = np.random.default_rng([seed, index])
        label = labels[index % len(labels)]
        scene = (
            compose_self_similar(rng, label) if label in BASES else compose(rng, label, draw_focus(rng, label, GSDS_M))
        )
        place = Place(split="train", index=index, first_image=0, gsds_m=GSDS_M, scene=scene, lon=0.0, lat=0.0)
        for number in range(2):
            day = np.random.default_rng([seed, index, number])
            rows.append(statistics_of(expose(render(scene, aim(day, place, number, N_PX)), day, noise_levels=2.0)))
    return np.array(rows), np.tile([0.0, 1.0], n_places)


def accuracy(features: np.ndarray, large: np.ndarray, *, ridge: float = 20.0, folds: int = 6) -> float:
    """Cross-validated accuracy of ridge regression on features and their squares; folds do not split places."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-9)
    x = np.concatenate([x, x**2 - (x**2).mean(0)], axis=1)
    fold = np.arange(len(x)) // 2 % folds
    right = []
    for held_out in range(folds):
        a, b = x[fold != held_out], large[fold != held_out] - 0.5
        weights = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ b)
        right.append((x[fold == held_out] @ weights > 0) == (large[fold == held_out] > 0.5))
    return float(np.mean(np.concatenate(right)))


@pytest.mark.slow
def test_without_cues_no_better_than_chance():
    """200 images: chance is 50 %, its standard deviation 3.5 %; the bound is two of them above."""
    assert accuracy(*images(tuple(BASES), seed=11, n_places=100)) < 0.57


def test_control_with_cues_the_same_classifier_can_tell():
    assert accuracy(*images(tuple(ARCHETYPES), seed=11, n_places=40)) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("label", list(BASES))
def test_objects_seen_are_as_many_at_every_gsd(label):
    """Mean number of subjects of 3 to 110 px around the centre, over places: equal within a quarter across decades."""
    counts = dict.fromkeys((0.06, 1.0, 50.0), 0)
    for seed in range(100):
        scene = compose_self_similar(np.random.default_rng([seed, 5]), label)
        for gsd_m in counts:
            counts[gsd_m] += sum(3 <= s.size_m / gsd_m <= 110 for s in scene.subjects)
    assert max(counts.values()) < 1.25 * min(counts.values())
    assert min(counts.values()) > 66
