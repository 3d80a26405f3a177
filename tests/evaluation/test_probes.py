"""Probes: planted factors are found in their tier, scale is taken out, the null is 1/3, readings are A x by hand."""

import numpy as np
import pytest
import torch
from fakes.subjects import tiny_subject

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.collate import collate, encode_tree
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.engine import Asked
from scaleearth_pl.evaluation.protocols.probes import partial_r2, probe
from scaleearth_pl.evaluation.protocols.probes_figure import save_probe_figure
from scaleearth_pl.evaluation.protocols.probes_read import UnitReadings, read_units

FACTORS = ("texture/fine", "geometry/size", "semantic/water")


def planted(strength=1.0, n=200, rank=12, n_modules=3, leak=0.0, seed=0):
    """Each third of the ranks carries its own factor; all factors and units also follow the scale by `leak`."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-1, 1.5, n)
    factor = rng.standard_normal((n, 3)) + leak * s[:, None]
    unit = rng.standard_normal((n, n_modules, rank))
    for tier in range(3):
        unit[:, :, 4 * tier : 4 * tier + 4] += strength * factor[:, tier, None, None]
    return UnitReadings(
        unit_IMr=(unit + leak * s[:, None, None]).astype(np.float32),
        factor_IF=factor,
        log10_gsd_I=s,
        place_I=np.array([f"p{i // 2}" for i in range(n)]),
        modules=("a", "b", "c"),
        factors=FACTORS,
    )


def test_planted_factors_are_found_in_their_tier(tmp_path):
    result = probe(planted(), n_permutations=200)
    assert result.block_diagonality > 0.9 and result.p_value == pytest.approx(1 / 201)
    assert abs(result.null.mean() - 1 / 3) < 0.03
    assert result.matrix["object"]["texture"] == pytest.approx(0.5, abs=0.08)  # correlation 1 / sqrt(2)
    assert result.matrix["object"]["semantic"] < 0.05
    save_probe_figure(tmp_path / "p.png", result)
    assert (tmp_path / "p.png").stat().st_size > 10_000 and result.as_json()["images"] == 200


def test_nothing_planted_nothing_found():
    ps = [probe(planted(0.0, seed=seed), n_permutations=100).p_value for seed in range(4)]
    assert max(ps) > 0.05 and abs(np.mean(probe(planted(0.0)).r2_MrF)) < 0.05


def test_what_follows_the_scale_is_not_knowledge():
    shared = planted(0.0, leak=3.0)
    assert probe(shared, n_permutations=10, partial=False).r2_MrF.mean() > 0.6
    assert abs(probe(shared, n_permutations=10).r2_MrF.mean()) < 0.05


def test_one_probe_is_ordinary_cross_validated_regression():
    rng = np.random.default_rng(1)
    x, fold = rng.standard_normal((60, 1)), np.arange(60) % 5
    y = 0.7 * x + 0.3 * rng.standard_normal((60, 1))
    squared = total = 0.0
    for k in range(5):
        train, test = fold != k, fold == k
        slope, intercept = np.polyfit(x[train, 0], y[train, 0], 1)
        squared += ((y[test, 0] - slope * x[test, 0] - intercept) ** 2).sum()
        total += ((y[test, 0] - y[train, 0].mean()) ** 2).sum()
    assert partial_r2(x, y, np.ones((60, 1)), fold)[0, 0] == pytest.approx(1 - squared / total)


def test_too_little_is_said_so():
    with pytest.raises(ConfigError, match="fewer places"):
        probe(planted(n=6))
    constant = planted()
    constant.factor_IF[:] = 1.0
    with pytest.raises(ConfigError, match="no factor varies"):
        probe(constant)


@pytest.fixture(scope="module")
def subject(fake_corpus):
    return tiny_subject(fake_corpus)


@pytest.fixture(scope="module")
def images(fake_corpus, subject):
    rows = list(CorpusSplit.open(fake_corpus, "test").images(subject))
    return [_with_factors(asked, float(i)) for i, asked in enumerate(rows)]


def _with_factors(asked, value):
    fields = {f: getattr(asked.sample, f) for f in Sample.__dataclass_fields__}
    factors = {"texture": {"fine": value}, "semantic": {"water": -value}}
    return Asked(sample=Sample(**{**fields, "factors": factors}), images=asked.images, questions=asked.questions)


def test_readings_are_the_mean_of_ungated_a_x(subject, images):
    name = next(iter(subject.model.adapters))
    found = read_units(subject, iter(images), modules=[name])
    assert found.unit_IMr.shape == (4, 1, 12) and found.factors == ("semantic/water", "texture/fine")
    layer = subject.model.adapters[name]
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0][0]))
    tree = encode_tree(
        images[1].sample, images[1].images, images[1].questions[:1], subject.processor, boundaries=TierBoundaries()
    )
    batch = collate([tree])
    with torch.no_grad():
        subject.model(batch)
    handle.remove()
    image_T = batch.input_ids_T == subject.processor.image_token_id
    by_hand = (inputs[0][image_T] @ layer.lora_A.weight.T).mean(0)
    assert found.unit_IMr[1, 0] == pytest.approx(by_hand.numpy(), rel=1e-4, abs=1e-6)


def test_last_block_is_read_too_and_hooks_are_gone(subject, images):
    found = read_units(subject, iter(images), max_images=2, budget_tokens=1)
    assert found.unit_IMr.shape == (2, len(subject.model.adapters), 12) and np.isfinite(found.unit_IMr).all()
    assert (found.unit_IMr[:, -1] != 0).any() and found.modules[-1].endswith("down_proj")
    assert all(not layer.lora_A._forward_hooks for layer in subject.model.adapters.values())
    with pytest.raises(ConfigError, match="no image has factors"):
        read_units(subject, iter([]))
    with pytest.raises(ConfigError, match="no such adapted module"):
        read_units(subject, iter(images), modules=["lm_head"])
