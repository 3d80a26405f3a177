"""A run that crashed and went on is the run that never crashed: same weights to the bit, same samples in the same order.

Three steps make an epoch here. The crash comes before the step after `stop`, inside an epoch (2) and between two (3);
the checkpoint is the last one that Lightning wrote by itself.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.runs import Interrupted, bits_of, fit, recorder_of

from scaleearth_pl.core.errors import CheckpointError

STEPS = 5
EXTRA = (
    "--trainer.callbacks+=fakes.runs.Recorder",
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=1",
)


def run(stage: str, corpus: Path, runs: Path, *extra: str, stop: int | None = None) -> Any:
    """A fit of five steps with a checkpoint after each; `stop` crashes it."""
    recorder, *checkpoints = EXTRA
    crash = () if stop is None else (f"--trainer.callbacks.stop_before={stop}",)
    return fit(stage, corpus, runs, recorder, *crash, *checkpoints, *extra, steps=STEPS)


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
    with pytest.raises(CheckpointError, match=r"nothing to resume.*last\.ckpt.*without resume"):
        fit("stage2", fake_corpus, tmp_path, "--resume", "true")


def test_only_what_trains_is_in_a_checkpoint(fake_corpus: Path, tmp_path: Path) -> None:
    cli = fit("stage2", fake_corpus, tmp_path, steps=1)
    checkpoint = torch.load(cli.run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert names == {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert not any(".base." in name for name in names)
