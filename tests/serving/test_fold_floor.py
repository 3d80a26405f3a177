"""`bench/fold.py` tells the fold's own rounding from float32's."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import fold as bench_fold
from scaleearth_pl.loading.model import load_model
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.fold import FoldScale
from scaleearth_pl.serving.verify import Verifier, probe


@pytest.fixture
def assistant(fake_run):
    """A model of its own: the comparison leaves it in float64."""
    return Assistant(load_model(fake_run))


def test_in_float64_only_the_rounding_of_a_is_left(assistant, monkeypatch):
    monkeypatch.setattr(bench_fold, "SCALES", [FoldScale(gsd_m=m) for m in (0.1, 2.0, 40.0)])
    found = bench_fold.measure(assistant.model, *probe(assistant))
    worst = {name: max(row.largest for row in rows) for name, rows in found.items()}
    assert set(worst) == {"attention", "float64", "fold", "fold, 64"}
    assert 0 < worst["fold, 64"] < 1e-6
    assert worst["fold, 64"] < worst["fold"] < 1e-5 and 0 < worst["float64"] < 1e-5


@torch.no_grad()
def test_folded_layers_are_the_gated_model_and_leave_it_as_it_was(assistant):
    batch, features = probe(assistant)
    scale, before = FoldScale(gsd_m=0.7), Verifier(assistant).gated(FoldScale(gsd_m=0.7))
    with bench_fold._folded(assistant.model, scale):
        folded = bench_fold._logits(assistant.model, batch, features)
    with bench_fold._folded(assistant.model, FoldScale(gsd_m=7.0)):
        other = bench_fold._logits(assistant.model, batch, features)
    torch.testing.assert_close(folded, before, atol=1e-5, rtol=1e-5)
    assert (other - before).abs().max() > 1e-3
    assert torch.equal(Verifier(assistant).gated(scale), before)


def test_the_edges_of_a_narrow_grid_cost_less(assistant):
    batch, features = probe(assistant)
    narrow, wide = (bench_fold.at_edges(assistant.model, batch, features, grid) for grid in ([1.0, 1.05], [1.0, 8.0]))
    assert 0 < max(logit for logit, _ in narrow) < max(logit for logit, _ in wide)
