"""`checkpointing: auto` follows the device's memory, in a real run; the prediction that it goes by is near the truth."""

from pathlib import Path

import pytest
from fakes.corpus import make_fake_corpus
from fakes.runs import UNDRAWN, fit, make_data, tiny_model

from bench.memory import peak_bytes
from scaleearth_pl.training import memory
from scaleearth_pl.training.preflight import predicted_peak_bytes


@pytest.mark.parametrize("fits", [True, False])
def test_recomputes_only_where_memory_demands_it(
    fake_corpus: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    model = tiny_model(fake_corpus, checkpointing="auto")
    assert not model.backbone.is_activation_checkpointing
    needed = predicted_peak_bytes(model, 1_000, checkpointing=False)
    total = needed / memory.USABLE_SHARE["cpu"] * (1.01 if fits else 0.99)
    monkeypatch.setattr(memory, "device_bytes", lambda: (int(total), "cpu"))
    assert memory.decide_checkpointing(model, tokens=1_000) is not fits
    assert model.backbone.is_activation_checkpointing is not fits


def test_a_run_decides_by_its_largest_micro_batch(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda: (10**6, "cpu"))
    facts: dict[str, str] = {}
    monkeypatch.setattr("scaleearth_pl.training.callbacks.preflight.print_facts", facts.update)
    quiet = ["--data.val_splits", "[]", *UNDRAWN]
    run = fit("stage2", fake_corpus, tmp_path, "--model.init_args.backbone.checkpointing", "auto", *quiet, steps=1)
    assert run.model.model.backbone.is_activation_checkpointing
    assert run.datamodule.micro_tokens == 400
    peak = predicted_peak_bytes(run.model.model, 400, checkpointing=True)
    assert facts["predicted peak memory"] == f"{peak / 1e9:.2f} GB"
    assert facts["micro-batch budget"] == "400 tokens"
    assert facts["precision"] == "float32 weights, trainer 32-true"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that, as one micro-batch, needs more than the weights do."""
    return make_fake_corpus(tmp_path_factory.mktemp("memory") / "corpus", 12, n_questions=6, n_val=1, n_test=1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_prediction_is_near_what_a_step_takes(large: Path, checkpointing: bool) -> None:
    """Weights, AdamW's moments and what forward and backward held at once, by the allocator's own records."""
    batch = make_data(large, global_batch_tokens=10**6, micro_token_budget=10**6).step_batch(0).micro[0]
    model = tiny_model(large, checkpointing=checkpointing)

    def work() -> None:
        out = model(batch)
        (out.ce_sum + out.nll_sum).backward()

    weights = sum(p.nbytes for p in model.parameters())
    moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    measured = weights + moments + peak_bytes(work)
    predicted = predicted_peak_bytes(model, len(batch.input_ids_T), checkpointing=checkpointing)
    assert 0.5 < predicted / measured < 2, (predicted, measured, weights, moments)


def test_the_prediction_is_linear_in_tokens(fake_corpus: Path) -> None:
    model = tiny_model(fake_corpus)
    for checkpointing in (False, True):
        fixed, one, two = (predicted_peak_bytes(model, n, checkpointing=checkpointing) for n in (0, 1_000, 2_000))
        assert two - one == one - fixed > 0
