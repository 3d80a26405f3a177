"""`checkpointing: auto` follows the device's memory, in a real run, and changes no number."""

from pathlib import Path

import pytest
from fakes.runs import UNDRAWN, fit, tiny_model

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
