"""What must not change anything: how questions are grouped into trees, and how a step is cut into micro-batches."""

from pathlib import Path

import pytest
from fakes.corpus import make_fake_corpus
from fakes.runs import losses_and_gradients, make_data, relative_difference, tiny_model

from scaleearth_pl.core.batch import StepBatch
from scaleearth_pl.model.scaleearth import ScaleEarth

LOSS, GRADIENT = 1e-6, 1e-5
"""Relative tolerances, fp32."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of 1 to 12 questions, one of them without a GSD."""
    root = tmp_path_factory.mktemp("equivalence") / "corpus"
    return make_fake_corpus(root, 7, n_questions=6, n_val=1, n_test=1, with_unknown=True)


def whole(corpus: Path, *, max_branches: int = 64, budget: int = 1_000_000) -> StepBatch:
    """The whole corpus as one optimizer step."""
    data = make_data(corpus, global_batch_tokens=1_000_000, max_branches=max_branches, micro_token_budget=budget)
    return data.step_batch(0)


@pytest.fixture(scope="module")
def model(corpus: Path) -> ScaleEarth:
    return tiny_model(corpus)


@pytest.fixture(scope="module")
def reference(corpus: Path, model: ScaleEarth):
    return losses_and_gradients(model, whole(corpus), predicted_share=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("max_branches", "budget"), [(1, 1_000_000), (3, 1_000_000), (64, 600), (64, 340), (2, 160)])
def test_trees_equal_single_questions_however_the_step_is_cut(
    corpus: Path, model: ScaleEarth, reference, max_branches: int, budget: int
) -> None:
    step = whole(corpus, max_branches=max_branches, budget=budget)
    assert budget == 1_000_000 or len(step.micro) > 2
    if max_branches == 1:
        assert sum(len(m.trees) for m in step.micro) == step.n_questions
    losses, gradients = losses_and_gradients(model, step, predicted_share=0.5)
    assert losses == pytest.approx(reference[0], rel=LOSS)
    assert relative_difference(gradients, reference[1]) < GRADIENT
    assert all(bool((g != 0).any()) for g in gradients.values())
