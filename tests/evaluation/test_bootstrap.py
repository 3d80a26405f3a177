"""Paired bootstrap over places."""

import numpy as np
import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.bootstrap import Places, place_bootstrap, place_means


def overall(value, places, **kwargs):
    return place_bootstrap(value, places, {"overall": np.ones(len(value), dtype=bool)}, **kwargs)["overall"]


def test_one_question_per_place_is_the_ordinary_interval():
    value = np.random.default_rng(0).integers(0, 2, 400).astype(float)
    interval = overall(value, [str(i) for i in range(400)], n_resamples=4000)
    half = 1.96 * value.std() / 20
    assert interval.estimate == value.mean()
    assert interval.high - interval.estimate == pytest.approx(half, rel=0.08)
    assert interval.estimate - interval.low == pytest.approx(half, rel=0.08)


def test_repeating_every_question_does_not_make_one_surer():
    rng = np.random.default_rng(1)
    value, places = rng.integers(-1, 2, 60).astype(float), [f"p{i // 3}" for i in range(60)]
    once = overall(value, places)
    often = overall(np.repeat(value, 10), list(np.repeat(places, 10)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert once.n_places == often.n_places == 20


def test_order_of_questions_does_not_matter_and_the_seed_decides():
    rng = np.random.default_rng(2)
    value, places = rng.standard_normal(90), np.array([f"p{i // 5}" for i in range(90)])
    shuffled = rng.permutation(90)
    first, second = overall(value, list(places)), overall(value[shuffled], list(places[shuffled]))
    assert (second.low, second.high) == pytest.approx((first.low, first.high))
    assert overall(value, list(places), seed=1).low != overall(value, list(places), seed=2).low


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, held = np.random.default_rng(3), 0
    places = list(np.repeat(np.arange(60).astype(str), 5))
    for _ in range(150):
        value = np.repeat(rng.standard_normal(60), 5) + rng.standard_normal(300)
        interval = overall(value, places, n_resamples=300)
        held += interval.low <= 0 <= interval.high
    assert 0.88 <= held / 150 <= 0.99


def test_groups_share_resamples_and_empty_ones_are_left_out():
    value = np.random.default_rng(4).standard_normal(40)
    places, everything = [f"p{i // 2}" for i in range(40)], np.ones(40, dtype=bool)
    rare = np.zeros(40, dtype=bool)
    rare[0] = True
    result = place_bootstrap(value, places, {"a": everything, "b": everything, "rare": rare, "none": ~everything})
    assert result["a"] == result["b"]
    assert "none" not in result
    # One place alone: every resample that hits it has the same mean.
    assert result["rare"].low == result["rare"].estimate == result["rare"].high == value[0]


@pytest.mark.parametrize(
    ("n_values", "n_places", "n_resamples"), [(3, 2, 1000), (0, 0, 1000), (3, 3, 20)], ids=["lengths", "empty", "few"]
)
def test_nonsense_is_refused(n_values, n_places, n_resamples):
    with pytest.raises(ConfigError):
        overall(np.zeros(n_values), ["p"] * n_places, n_resamples=n_resamples)


def example():
    """300 questions about 40 places, three seeds of -1, 0 and 1, and a group that few questions belong to."""
    rng = np.random.default_rng(7)
    places = [f"p{k}" for k in rng.integers(0, 40, 300)]
    return rng.integers(-1, 2, (3, 300)).astype(float), places, rng.random(300) < 0.1


def test_the_numbers_are_those_of_three_functions_before():
    """Computed when places were resampled in three functions of their own: one stream of resamples, also in chunks."""
    value_SN, places, few_N = example()
    made = place_bootstrap(value_SN.mean(0), places, {"all": few_N | True, "few": few_N}, n_resamples=700, seed=5)
    numbers = {name: (found.estimate, found.low, found.high, found.n_places) for name, found in made.items()}
    assert numbers["all"] == pytest.approx((0.008888888888888887, -0.04141572713001285, 0.05838368951117659, 40))
    assert numbers["few"] == pytest.approx((-0.13333333333333333, -0.24072413793103448, -0.025961538461538473, 22))
    means_V, resampled_RV = place_means(value_SN > 0, np.array(places), n_resamples=700, seed=5)
    assert means_V == pytest.approx([0.35333333333333333, 0.38, 0.31])
    assert resampled_RV[[249, 250]] == pytest.approx(
        np.array(
            [
                [0.32131147540983607, 0.3836065573770492, 0.29508196721311475],
                [0.3413793103448276, 0.35517241379310344, 0.33793103448275863],
            ]
        )
    )
    drawn = Places([*places, "elsewhere"], n_resamples=700, seed=5)
    some = [place for place, kept in zip(places, few_N, strict=True) if kept]
    mean_R = drawn.means(value_SN.mean(0)[None, few_N], some)[:, 0]
    assert mean_R[[0, 249, 250, 699]] == pytest.approx(
        [-0.14492753623188406, -0.07407407407407407, -0.14166666666666666, -0.08771929824561403]
    )


def test_places_share_their_resamples_and_refuse_too_few():
    value_SN, places, _ = example()
    drawn = Places(places, n_resamples=600)
    assert (np.concatenate(list(drawn.chunks())) == drawn.count_RP).all() and (drawn.count_RP.sum(1) == 40).all()
    weighed = drawn.apply(lambda weight_N: float(np.average(value_SN[0], weights=weight_N)), places)
    assert weighed == pytest.approx(drawn.means(value_SN, places)[:, 0])
    with pytest.raises(ConfigError, match="need 2 places"):
        Places(["a", "a"], at_least=2)
