"""`checkpointing: auto` follows the device's memory, in a real run; the prediction that it goes by is near the truth."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fakes.corpus import make_fake_corpus
from fakes.runs import UNDRAWN, fit, make_data, tiny_model
from torch import Tensor

from bench.memory import peak_bytes
from scaleearth_pl.data import packing
from scaleearth_pl.model.activations import bytes_per_token
from scaleearth_pl.model.shapes import shape_config
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
    monkeypatch.setattr(memory, "device_bytes", lambda _: (int(total), "cpu"))
    assert memory.decide_checkpointing(model, tokens=1_000, device=torch.device("cpu")) is not fits
    assert model.backbone.is_activation_checkpointing is not fits


def test_a_run_decides_by_its_largest_micro_batch(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda _: (10**6, "cpu"))
    facts: dict[str, str] = {}
    monkeypatch.setattr("scaleearth_pl.training.callbacks.preflight.print_facts", facts.update)
    quiet = ["--data.val_splits", "[]", *UNDRAWN]
    run = fit("stage2", fake_corpus, tmp_path, "--model.init_args.backbone.checkpointing", "auto", *quiet, steps=1)
    assert run.model.model.backbone.is_activation_checkpointing
    assert run.datamodule.micro_tokens == 400
    peak = predicted_peak_bytes(run.model.model, 400, checkpointing=True)
    assert facts["predicted peak memory"] == f"{peak / 1e9:.2f} GB"
    assert facts["largest micro-batch"] == "at most 400 tokens"
    assert facts["precision"] == "float32 weights, trainer 32-true"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose first micro-batch needs more than the weights do."""
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


def test_the_budget_counts_as_the_decision_does() -> None:
    largest = bytes_per_token(shape_config("8b").text_config, element=2, rank=64)
    assert pytest.approx(largest, rel=1e-3) == packing.BYTES_PER_TOKEN


@pytest.mark.parametrize("gigabytes", [40, 80, 141])
@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_an_automatic_budget_needs_no_recomputing(
    monkeypatch: pytest.MonkeyPatch, size: Literal["2b", "4b", "8b"], gigabytes: int
) -> None:
    """The whole budget in one micro-batch, beside 10 GB: a 4-bit 8B model and its adapters with their moments."""
    total = gigabytes * 10**9
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (total, total))
    budget = packing.auto_token_budget(torch.device("cuda"))
    per_token = bytes_per_token(shape_config(size).text_config, element=2, rank=64)
    assert 10**10 + budget * per_token < memory.USABLE_SHARE["cuda"] * total
    if size == "8b":
        assert budget * per_token > 0.45 * total


@pytest.mark.parametrize("how", [{}, {"adapted": False}, {"quantise": "nf4"}], ids=["stage2", "stage1", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_keeps_what_is_counted(fake_corpus: Path, how: dict[str, Any], dtype: torch.dtype) -> None:
    """Bytes of what autograd saves of the tokens in one block, each storage once."""
    batch, model = make_data(fake_corpus).step_batch(0).micro[0], tiny_model(fake_corpus, **how)
    if dtype == torch.bfloat16:
        if how.get("quantise"):
            pytest.skip("4-bit layers compute in the dtype that they were loaded in")
        model.to(dtype)
    n_tokens, kept = len(batch.input_ids_T), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if n_tokens in tensor.shape:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    block = model.backbone.model.language_model.layers[1]
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    block.register_forward_pre_hook(lambda *_: hooks.__enter__())
    block.register_forward_hook(lambda *_: hooks.__exit__())
    out = model(batch)  # its graph holds what was saved, so that no memory is used twice
    text = model.backbone.config.text_config
    element = torch.finfo(dtype).bits // 8
    counted = bytes_per_token(text, element=element, rank=model.rank, trained=not model.adapters)
    measured = sum(kept.values()) / n_tokens
    assert out.ce_sum.requires_grad
    assert measured == pytest.approx(counted / text.num_hidden_layers, rel=0.03)
