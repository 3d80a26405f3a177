"""A run that crashed and went on is the run that never crashed: same weights to the bit, same samples in the same order.

Three steps make an epoch here. The crash comes before the step after `stop`, inside an epoch (2) and between two (3);
the checkpoint is the last one that Lightning wrote by itself.
"""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes.gates import bell
from fakes.runs import EXPERIMENTS, UNDRAWN, Interrupted, bits_of, fit, recorder_of, shallow_hf
from safetensors.torch import load_file, save_file

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.training.optim import warmup_cosine

STEPS = 5


def run(
    stage: str,
    corpus: Path,
    runs: Path,
    *extra: str,
    stop: int | None = None,
    enough: int | None = None,
    every: int = 1,
    steps: int = STEPS,
) -> Any:
    """A fit with the stage's own callbacks, checkpoints and a recorder; `stop` crashes it, `enough` ends it early."""
    callbacks = yaml.safe_load((EXPERIMENTS / f"{stage}.yaml").read_text())["trainer"]["callbacks"]
    (saving,) = (c for c in callbacks if c["class_path"].endswith(".Checkpoints"))
    saving["init_args"]["every_n_steps"] = every
    callbacks.append({"class_path": "fakes.runs.Recorder", "init_args": {"stop_before": stop, "enough_after": enough}})
    runs.mkdir(exist_ok=True)
    overlay = runs / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return fit(stage, corpus, runs, "-c", str(overlay), *UNDRAWN, *extra, steps=steps)


@pytest.fixture(scope="module")
def uninterrupted(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The run of a stage that nothing stopped, made once."""
    return cache(lambda stage: run(stage, fake_corpus, tmp_path_factory.mktemp(stage)))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "stop"), [("stage1", 2), ("stage2", 2), ("stage2", 3)])
def test_resumed_equals_uninterrupted(
    fake_corpus: Path, tmp_path: Path, uninterrupted: Callable[[str], Any], stage: str, stop: int
) -> None:
    whole = uninterrupted(stage)
    with pytest.raises(Interrupted):
        run(stage, fake_corpus, tmp_path, stop=stop)
    resumed = run(stage, fake_corpus, tmp_path, "--resume", "true")
    assert resumed.trainer.global_step == STEPS
    assert recorder_of(resumed).images == recorder_of(whole).images[stop:]
    for now, then in zip(recorder_of(resumed).reports, recorder_of(whole).reports[stop:], strict=True):
        assert (now.step, now.lr, now.lambda_eff) == (then.step, then.lr, then.lambda_eff)
        assert now.loss.equal(then.loss)
    expected = bits_of(whole.model)
    assert all(bits.equal(expected[name]) for name, bits in bits_of(resumed.model).items())


@pytest.mark.slow
def test_a_run_that_a_time_limit_ended_inside_an_epoch_goes_on_inside_it(fake_corpus: Path, tmp_path: Path) -> None:
    """Two epochs of three steps, ended after the second step: four are left, and their images."""
    settings = {"every": 100, "steps": -1}
    epochs = ("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
    whole = run("stage1", fake_corpus, tmp_path / "whole", *epochs, **settings)
    assert whole.trainer.global_step == 6
    ended = run("stage1", fake_corpus, tmp_path / "ended", *epochs, enough=2, **settings)
    assert ended.trainer.global_step == 2
    resumed = run("stage1", fake_corpus, tmp_path / "ended", *epochs, "--resume", "true", **settings)
    assert resumed.trainer.global_step == 6
    assert recorder_of(resumed).images == recorder_of(whole).images[2:]


@pytest.mark.slow
def test_a_checkpoint_of_another_corpus_order_is_refused(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=1)
    with pytest.raises(CheckpointError, match=r"'seed'.*\(1, 2\).*start a new run"):
        run("stage2", fake_corpus, tmp_path, "--resume", "true", "--data.seed", "2")
    with pytest.raises(CheckpointError, match=r"trained parameters.*gsd_head.*configuration that wrote it"):
        run("stage2", fake_corpus, tmp_path, "--resume", "true", "--model.init_args.head", "null")


@pytest.mark.slow
def test_a_checkpoint_of_another_gate_is_refused(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's bell, put in while a run waits to be resumed: names and shapes fit, the thresholds mean nothing."""
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=1)
    monkeypatch.setattr("scaleearth_pl.model.gate.openness", bell)
    with pytest.raises(
        CheckpointError,
        match=r"the checkpoint was trained under another gate.*gate_values.*code that wrote it and its gate settings",
    ):
        run("stage2", fake_corpus, tmp_path, "--resume", "true")


@pytest.mark.slow
def test_a_resumed_run_obeys_its_own_settings_and_refuses_another_base(fake_corpus: Path, tmp_path: Path) -> None:
    """The remedy after a NaN is a lower learning rate: it must take effect, although the optimizer's state holds the old."""
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=2)
    go_on = ("stage2", fake_corpus, tmp_path, "--resume", "true")
    with pytest.raises(ConfigError, match=r"step 2.*trainer\.max_steps.*more steps"):
        fit(*go_on, steps=2)
    other = shutil.copytree(shallow_hf(fake_corpus), tmp_path / "moved_on" / "hf")
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another base.*init_from.*moved_on"):
        run(*go_on, "--model.init_args.init_from", str(other))
    same = tmp_path / "latest"
    same.symlink_to(shutil.copytree(shallow_hf(fake_corpus), tmp_path / "copied" / "hf"))
    changed = ("--model.init_args.optim.lr", "5.0e-4", "--model.init_args.optim.weight_decay", "0.1")
    resumed = run(*go_on, *changed, "--model.init_args.init_from", str(same))
    expected = [
        warmup_cosine(step, total_steps=STEPS, warmup_share=0.03, final_lr_share=0.05) for step in range(2, STEPS)
    ]
    rates = [report.lr for report in recorder_of(resumed).reports]
    assert [rate["adapters"] for rate in rates] == pytest.approx([5e-4 * factor for factor in expected])
    assert [rate["sse_u"] for rate in rates] == pytest.approx([25e-4 * factor for factor in expected])
    (optimizer,) = resumed.trainer.optimizers
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    same.unlink()
    same.symlink_to(other)  # the next stage 1 has moved `latest` on before this stage 2 ends
    assert resumed.model.adapter_meta().base_hash == base_hash(shallow_hf(fake_corpus))


def test_nothing_to_resume_is_said(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume.*checkpoints.*without resume"):
        fit("stage2", fake_corpus, tmp_path, "--resume", "true")


def test_only_what_trains_is_in_a_checkpoint(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=1)
    (path,) = tmp_path.rglob("*.ckpt")
    names = set(torch.load(path, weights_only=True)["state_dict"])
    assert len([name for name in names if name.endswith(("lora_A.weight", "lora_B.weight", "thresholds"))]) == 14 * 3
    assert all("lora_" in name or "thresholds" in name or "gsd_head" in name for name in names)
