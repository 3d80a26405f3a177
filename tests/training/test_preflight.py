"""Preflight stops what would spoil a run, names the remedy, and leaves no trace in a run that is sound."""

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.corpus import make_fake_corpus
from fakes.runs import bits_of, fit, make_data, tiny_hf, tiny_model

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import CheckpointError, DiskSpaceError, IndexSchemaError, PreflightError
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training import preflight
from scaleearth_pl.training.callbacks.checkpoint import Checkpoints
from scaleearth_pl.training.callbacks.preflight import Preflight, bytes_to_come
from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def batch(fake_corpus: Path) -> TreeBatch:
    return make_data(fake_corpus).step_batch(0).micro[0]


@pytest.fixture
def model(fake_corpus: Path) -> ScaleEarth:
    """At its start: B = 0."""
    return tiny_model(fake_corpus, noise=0.0)


def test_a_sound_run_passes_and_nothing_is_left_behind(model: ScaleEarth, batch: TreeBatch) -> None:
    before, generator = bits_of(model), torch.get_rng_state()
    assert preflight.check_tokens(model, batch) == int(batch.supervised_T.sum())
    trained = preflight.check_base_frozen(
        model, [model.adapter_parameters(), model.gate_parameters(), model.gsd_head.parameters()]
    )
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert preflight.check_adapter_gradients(model, batch) == 28
    preflight.check_head_gradients(model, batch)
    assert all(bits.equal(before[name]) for name, bits in bits_of(model).items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.get_rng_state().equal(generator)


def test_b_is_restored_even_after_an_error(model: ScaleEarth) -> None:
    weights = [a.lora_B.weight for a in model.adapters.values()]
    with pytest.raises(RuntimeError, match="stop"), preflight.perturbed(weights):  # noqa: PT012 (what is tested is the exit by an error)
        assert all(bool((w != 0).any()) for w in weights)
        raise RuntimeError("stop")
    assert all(bool((w == 0).all()) for w in weights)


def test_token_outside_the_vocabulary(model: ScaleEarth, batch: TreeBatch) -> None:
    ids = batch.input_ids_T.clone()
    ids[-1] = 5000
    with pytest.raises(PreflightError, match=r"vocabulary.*5000.*do not belong together"):
        preflight.check_tokens(model, replace(batch, input_ids_T=ids))


def test_image_tokens_that_do_not_match_features(model: ScaleEarth, batch: TreeBatch) -> None:
    ids = batch.input_ids_T.clone()
    ids[ids == model.backbone.config.image_token_id] = 20
    with pytest.raises(PreflightError, match=r"do not match.*\(0, .*lengths cache"):
        preflight.check_tokens(model, replace(batch, input_ids_T=ids))


def test_nothing_supervised(model: ScaleEarth, batch: TreeBatch) -> None:
    with pytest.raises(PreflightError, match=r"no supervised token.*answers of the corpus"):
        preflight.check_tokens(model, batch.weightless())


def test_a_base_parameter_left_trainable(model: ScaleEarth) -> None:
    norm = model.backbone.model.language_model.norm.weight
    norm.requires_grad_(True)
    with pytest.raises(PreflightError, match=r"language_model\.norm\.weight.*freeze it"):
        preflight.check_base_frozen(
            model, [model.adapter_parameters(), model.gate_parameters(), model.gsd_head.parameters()]
        )


def test_an_adapter_that_takes_no_part(model: ScaleEarth, batch: TreeBatch) -> None:
    block = model.backbone.model.language_model.layers[2].mlp
    block.up_proj = block.up_proj.base
    with pytest.raises(PreflightError, match=r"no gradient.*layers\.2\.mlp\.up_proj\.lora_B.*targets"):
        preflight.check_adapter_gradients(model, batch)
    assert all(p.grad is None for p in model.parameters())


def test_a_gate_that_is_always_shut(model: ScaleEarth, batch: TreeBatch) -> None:
    """B gets nothing behind a closed gate; A and thresholds would not either."""
    with torch.no_grad():
        model.adapters["model.language_model.layers.1.self_attn.q_proj"].gate.thresholds.fill_(-1000.0)
    with pytest.raises(PreflightError, match=r"layers\.1\.self_attn\.q_proj\.lora_B"):
        preflight.check_adapter_gradients(model, batch)


def test_a_loss_that_is_not_finite(model: ScaleEarth, batch: TreeBatch) -> None:
    with torch.no_grad():
        model.backbone.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(PreflightError, match=r"not finite.*'loss'"):
        preflight.check_adapter_gradients(model, batch)


def test_stage_1_wants_gradient_in_tower_and_llm(fake_corpus: Path, batch: TreeBatch) -> None:
    model = tiny_model(fake_corpus, adapted=False)
    preflight.check_full_gradients(model, batch)
    assert all(p.grad is None for p in model.parameters())
    model.vision_frozen = True
    with pytest.raises(PreflightError, match=r"weights get no gradient.*'visual'"):
        preflight.check_full_gradients(model, batch)


@pytest.mark.parametrize("which", ["lora_A", "lora_B", "gate"])
def test_an_adapter_left_frozen(model: ScaleEarth, batch: TreeBatch, which: str) -> None:
    getattr(model.adapters["model.language_model.layers.3.mlp.down_proj"], which).requires_grad_(False)
    if which == "gate":
        assert preflight.check_adapter_gradients(model, batch) == 28  # a gate that does not learn is a baseline
        return
    with pytest.raises(PreflightError, match=rf"no gradient.*layers\.3\.mlp\.down_proj\.{which}"):
        preflight.check_adapter_gradients(model, batch)


@pytest.mark.parametrize("fault", ["frozen", "not finite"])
def test_sse_u_without_gradient(model: ScaleEarth, batch: TreeBatch, fault: str) -> None:
    with torch.no_grad():
        if fault == "frozen":
            model.gsd_head.requires_grad_(False)
        else:
            model.gsd_head.last.bias.fill_(float("inf"))
    with pytest.raises(PreflightError, match=r"SSE-U.*gsd_head\."):
        preflight.check_head_gradients(model, batch)


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scaleearth_pl.training.callbacks import preflight as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**6))
    with pytest.raises(DiskSpaceError, match=r"not enough room.*0\.00 GB free.*free 0\.2 GB or set runs_dir"):
        Preflight()._check_disk(tmp_path / "run")
    with pytest.raises(DiskSpaceError, match=r"free 300\.0 GB"):
        Preflight()._check_disk(tmp_path / "run", 3 * 10**11)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**12, 0, 3 * 10**11))
    Preflight()._check_disk(tmp_path / "run", 3 * 10**11)


def test_room_is_asked_for_what_will_be_written(fake_corpus: Path, tmp_path: Path) -> None:
    """Three checkpoints while the third is written (two are kept), and the result; fewer where some are there already."""
    trainer: Any = SimpleNamespace(callbacks=[Checkpoints(every_n_steps=10)], default_root_dir=str(tmp_path))
    module: Any = SimpleNamespace(model=tiny_model(fake_corpus), total_steps=100)
    trained = sum(p.numel() * p.element_size() for p in module.model.parameters() if p.requires_grad)
    assert bytes_to_come(trainer, module) == trained * 10
    module.total_steps = 9
    assert bytes_to_come(trainer, module) == trained * 4
    module.total_steps = 100
    DurableCheckpointIO().save_checkpoint({"global_step": 10}, tmp_path / "checkpoints" / "step=00000010.ckpt")
    assert bytes_to_come(trainer, module) == trained * 7


def test_a_vocabulary_that_does_not_fit_the_backbone(fake_corpus: Path) -> None:
    """A tokenizer with more ids than the folder has rows is refused before any batch is made."""
    ids = make_data(fake_corpus, tiny_vocab_size=1024).processor.token_ids
    with pytest.raises(CheckpointError, match="another tokenizer"):
        build_backbone(BackboneConfig(), token_ids=replace(ids, vocab_size=5000), source=str(tiny_hf(fake_corpus)))


def test_a_run_is_checked_before_its_first_step(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback runs every check on the real module; the first failure stops the run with nothing trained."""
    seen: list[str] = []
    for name in ("check_tokens", "check_base_frozen", "check_adapter_gradients", "check_head_gradients"):
        original = getattr(preflight, name)
        monkeypatch.setattr(preflight, name, lambda *a, f=original, n=name: seen.append(n) or f(*a))
    monkeypatch.setattr(preflight, "check_head_gradients", refuse)
    with pytest.raises(PreflightError, match="as asked"):
        fit("stage2", fake_corpus, tmp_path, steps=1)
    assert seen == ["check_tokens", "check_base_frozen", "check_adapter_gradients"]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_checked_is_computed_as_in_training(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Under the trainer's autocast, where it has one; backward without, as in a training step."""
    seen: dict[str, set[bool]] = {"forward": set(), "backward": set()}

    def watched(name: str, original: Any) -> Any:
        return lambda *a, **k: seen[name].add(torch.is_autocast_enabled("cpu")) or original(*a, **k)

    monkeypatch.setattr(ScaleEarth, "encode", watched("forward", ScaleEarth.encode))
    monkeypatch.setattr(torch.autograd, "grad", watched("backward", torch.autograd.grad))
    monkeypatch.setattr(preflight, "check_head_gradients", refuse)  # after those of the adapters
    with pytest.raises(PreflightError, match="as asked"):
        fit("stage2", fake_corpus, tmp_path, "--trainer.precision", precision, steps=1)
    assert seen == {"forward": {precision == "bf16-mixed"}, "backward": {False}}


def refuse(*_: Any) -> None:
    raise PreflightError("as asked")


def test_images_without_a_gsd_stop_a_run_before_its_first_validation_does(tmp_path: Path) -> None:
    """They may be trained on; policy "metadata" refuses to evaluate them."""
    corpus = make_fake_corpus(tmp_path / "corpus", 12, n_val=7, with_unknown=True)
    with pytest.raises(PreflightError, match=r"val/unknown.*1 such images.*limit_val_batches"):
        fit("stage2", corpus, tmp_path / "runs", steps=1)
    data, model = make_data(corpus), tiny_model(corpus)
    rows = data.split_plan("val").items, data.index
    for policy in (ResolverConfig(policy="predicted"), ResolverConfig(policy="spoof", spoof_gsd_m=1.0)):
        model.resolver = Resolver(policy)
        preflight.check_evaluated_scales(model, *rows, "val")
    preflight.check_evaluated_scales(tiny_model(corpus, adapted=False), *rows, "val")


def test_a_fit_that_ends_in_a_test_looks_at_the_test_split_first(tmp_path: Path) -> None:
    """An image without a GSD, or a split that is not there, is not found only after training."""
    corpus = make_fake_corpus(tmp_path / "corpus", 12, n_val=7, with_unknown=True)
    splits = "--data.val_splits", "[]", "--data.test_splits"
    untested = fit("stage2", corpus, tmp_path / "runs", *splits, "[val]", steps=1)
    assert untested.trainer.global_step == 1
    with pytest.raises(PreflightError, match=r"test after training.*val/unknown.*test_after_fit false"):
        fit("stage2", corpus, tmp_path / "runs", *splits, "[val]", "--test_after_fit", "true", steps=1)
    with pytest.raises(IndexSchemaError, match=r"no such split.*'nowhere'"):
        fit("stage2", corpus, tmp_path / "runs", *splits, "[nowhere]", "--test_after_fit", "true", steps=1)


def test_what_is_left_out_is_said_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, str] = {}
    monkeypatch.setattr("scaleearth_pl.training.callbacks.preflight.print_facts", facts.update)
    corpus = make_fake_corpus(tmp_path / "corpus", 12, n_val=7)
    longest = max(make_data(corpus).split_plan("train").lengths.branch_Q.tolist())
    short = ("--data.max_branch_tokens", str(longest - 1), "--data.val_splits", "[]")
    fit("stage2", corpus, tmp_path / "runs", *short, steps=1)
    books = json.loads(next((tmp_path / "runs").rglob("run.json")).read_text())["data"]["train"]
    assert books["dropped_questions"] > 0
    read = f"{books['questions']:,} questions about {books['images']:,} images"
    assert facts["train data"] == f"{read}; {books['dropped_questions']} dropped questions"


def test_a_foreign_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="only the stages of this package"):
        Preflight().on_train_start(SimpleNamespace(default_root_dir=tmp_path), torch.nn.Module())  # type: ignore[arg-type]
