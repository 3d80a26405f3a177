"""A run that crashed and went on is the run that never crashed: same weights to the bit, same samples in the same order.

Three steps make an epoch here. The crash comes before the step after `stop`, inside an epoch (2) and between two (3);
the checkpoint is the last one that Lightning wrote by itself.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes.runs import EXPERIMENTS, Interrupted, bits_of, fit, recorder_of

from scaleearth_pl.core.errors import CheckpointError

STEPS = 5


def run(stage: str, corpus: Path, runs: Path, *extra: str, stop: int | None = None) -> Any:
    """A fit of five steps with the stage's own callbacks, a checkpoint after each step and a recorder; `stop` crashes it."""
    callbacks = yaml.safe_load((EXPERIMENTS / f"{stage}.yaml").read_text())["trainer"]["callbacks"]
    (saving,) = (c for c in callbacks if c["class_path"].endswith(".Checkpoints"))
    saving["init_args"]["every_n_steps"] = 1
    callbacks.append({"class_path": "fakes.runs.Recorder", "init_args": {"stop_before": stop}})
    runs.mkdir(exist_ok=True)
    overlay = runs / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return fit(stage, corpus, runs, "-c", str(overlay), *extra, steps=STEPS)


@pytest.mark.parametrize(("stage", "stop"), [("stage1", 2), ("stage2", 2), ("stage2", 3)])
def test_resumed_equals_uninterrupted(fake_corpus: Path, tmp_path: Path, stage: str, stop: int) -> None:
    whole = run(stage, fake_corpus, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(stage, fake_corpus, tmp_path / "parts", stop=stop)
    resumed = run(stage, fake_corpus, tmp_path / "parts", "--resume", "true")
    assert resumed.trainer.global_step == STEPS
    assert recorder_of(resumed).images == recorder_of(whole).images[stop:]
    for now, then in zip(recorder_of(resumed).reports, recorder_of(whole).reports[stop:], strict=True):
        assert (now.step, now.lr, now.lambda_eff) == (then.step, then.lr, then.lambda_eff)
        assert now.loss.equal(then.loss)
    expected = bits_of(whole.model)
    assert all(bits.equal(expected[name]) for name, bits in bits_of(resumed.model).items())


def test_a_checkpoint_of_another_corpus_order_is_refused(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=1)
    with pytest.raises(CheckpointError, match=r"'seed'.*\(1, 2\).*start a new run"):
        run("stage2", fake_corpus, tmp_path, "--resume", "true", "--data.seed", "2")
    with pytest.raises(CheckpointError, match=r"trained parameters.*gsd_head.*configuration that wrote it"):
        run("stage2", fake_corpus, tmp_path, "--resume", "true", "--model.init_args.head", "null")


def test_nothing_to_resume_is_said(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume.*checkpoints.*without resume"):
        fit("stage2", fake_corpus, tmp_path, "--resume", "true")


def test_only_what_trains_is_in_a_checkpoint(fake_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run("stage2", fake_corpus, tmp_path, stop=1)
    (path,) = tmp_path.rglob("*.ckpt")
    names = set(torch.load(path, weights_only=True)["state_dict"])
    assert len([name for name in names if name.endswith(("lora_A.weight", "lora_B.weight", "thresholds"))]) == 28 * 3
    assert all("lora_" in name or "thresholds" in name or "gsd_head" in name for name in names)
