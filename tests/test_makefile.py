"""What `make` would run: RESUME=1 and FAST=1 compose over both stages; nothing is started."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A working folder in which environment and corpus are there already."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml", ".venv/.installed", "data_shards/world/index.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def left(clone: Path, experiment: str, file: str) -> None:
    """A run that left `file` in its folder."""
    path = clone / "runs" / experiment / "v0" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    (clone / "runs" / experiment / "latest").unlink(missing_ok=True)
    (clone / "runs" / experiment / "latest").symlink_to("v0")


def planned(clone: Path, *words: str, path: Path | None = None) -> list[str]:
    """All commands, in order, each as one line; they do not inherit the variables of a `make test FAST=1` around them.

    `path` is a folder that is looked in first for programs.
    """
    env = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    done = subprocess.run(["make", "-n", *words], cwd=clone, env=env, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ").splitlines()


def fits(clone: Path, *words: str, path: Path | None = None) -> list[str]:
    """The training commands."""
    return [line for line in planned(clone, *words, path=path) if "scaleearth fit" in line]


CHECKPOINT, RESULT = "checkpoints/step=00000500.ckpt", "hf/config.json"


def test_resume_goes_on_where_there_is_something_to_go_on_with(clone: Path) -> None:
    left(clone, "stage1-tiny-world", CHECKPOINT)
    first, second = fits(clone, "stage2", "RESUME=1")
    assert "experiments/stage1.yaml" in first
    assert "--resume true" in first
    assert "experiments/stage2.yaml" in second
    assert "--resume" not in second  # stage 2 never began
    left(clone, "stage1-tiny-world", RESULT)
    left(clone, "stage2-tiny-world", CHECKPOINT)
    (only,) = fits(clone, "stage2", "RESUME=1")
    assert "--resume true" in only
    assert "--resume" not in fits(clone, "stage2")[0]


def test_twins_are_resumed_one_by_one(clone: Path) -> None:
    left(clone, "stage1-tiny-world", RESULT)
    left(clone, "bucketed-tiny-world", CHECKPOINT)
    assert "--resume true" in fits(clone, "twin-bucketed", "RESUME=1")[0]
    assert "--resume" not in fits(clone, "twin-plain_lora", "RESUME=1")[0]


def test_a_fast_run_is_never_taken_for_a_full_one(clone: Path) -> None:
    left(clone, "stage1-tiny-world-fast", RESULT)
    first, second = fits(clone, "stage2")
    assert "--experiment stage1-tiny-world " in first
    assert "--model.init_args.init_from runs/stage1-tiny-world/latest/hf" in second
    (only,) = fits(clone, "stage2", "FAST=1")
    assert "--experiment stage2-tiny-world-fast" in only
    assert "init_from runs/stage1-tiny-world-fast/latest/hf" in only


def test_a_tiny_stage_alone_takes_two_ranks_and_twins_side_by_side_one_each(clone: Path) -> None:
    """`getconf` of a machine of many cores, then of one."""
    left(clone, "stage1-tiny-world", RESULT)
    left(clone, "stage2-tiny-world", "summary.json")
    fake = clone / "bin" / "getconf"
    fake.parent.mkdir()
    for cores, ranks in ((64, 2), (1, 1)):
        fake.write_text(f"#!/bin/sh\necho {cores}\n")
        fake.chmod(0o755)
        for words in (["stage1"], ["stage2"], ["twin-no_tiers"], ["stage2", "FAST=1"]):
            assert f"--trainer.devices {ranks} " in fits(clone, *words, path=fake.parent)[-1]
        assert all("--trainer.devices 1 " in line for line in fits(clone, "compare", path=fake.parent))
    assert "--trainer.devices 4 " in fits(clone, "stage2", "DEVICES=4")[0]
    assert "--trainer.devices" not in fits(clone, "stage2", "SIZE=8b", "INIT_FROM=/models/x")[0]


def test_the_twins_of_a_comparison_are_tested_and_not_validated(clone: Path) -> None:
    left(clone, "stage1-tiny-world", RESULT)
    left(clone, "stage2-tiny-world", "summary.json")
    lines = fits(clone, "compare", "ARGS2=--model.init_args.lambda_gsd 0.2")
    assert len(lines) == 3
    assert all("limit_val_batches 0 --model.init_args.lambda_gsd 0.2" in line for line in lines)
    assert all("--test_after_fit true" in line for line in lines)


def test_a_twin_is_any_baseline_or_ablation(clone: Path) -> None:
    left(clone, "stage1-tiny-world", RESULT)
    (only,) = fits(clone, "twin-no_tiers")
    assert "-c experiments/ablation/no_tiers.yaml" in only
    assert "--experiment no_tiers-tiny-world " in only
    assert "-c experiments/baseline/shuffled_gsd.yaml" in fits(clone, "twin-shuffled_gsd")[0]


def test_stage_2_alone_starts_from_the_folder_that_it_is_given(clone: Path) -> None:
    (only,) = fits(clone, "stage2", "SIZE=8b", "INIT_FROM=/models/stage1")
    assert "-c experiments/stage2.yaml -c experiments/size/8b.yaml" in only
    assert "--model.init_args.init_from /models/stage1 " in only


def test_stage_1_reads_split_stage1_where_the_corpus_has_one(clone: Path) -> None:
    for corpus in ("mine", "geoscale_vqa"):
        (clone / "data_shards" / corpus).mkdir()
        (clone / "data_shards" / corpus / "index.json").touch()
    assert "--data.train_splits '[train]'" in fits(clone, "stage1", "CORPUS=mine")[0]
    (command,) = fits(clone, "stage1", "CORPUS=geoscale_vqa")
    assert "-c experiments/data/geoscale_vqa_stage1.yaml" in command
    assert "train_splits" not in command


def test_archives_of_any_corpus_have_two_names(clone: Path) -> None:
    for word in ("ARCHIVES=/raw", "RSVQA_ROOT=/raw"):
        assert any("--set root=/raw" in line for line in planned(clone, "shards", "CORPUS=rsvqa", word))


def test_archives_that_are_named_are_looked_at(clone: Path) -> None:
    """`prepare` says whether they still are what the corpus was made of."""
    (clone / "data_shards/mine").mkdir()
    (clone / "data_shards/mine/index.json").touch()
    assert not any("scaleearth prepare" in line for line in planned(clone, "shards", "CORPUS=mine"))
    assert any("scaleearth prepare" in line for line in planned(clone, "shards", "CORPUS=mine", "ARCHIVES=/raw"))


def test_fast_leaves_out_the_slow_tests_and_nothing_else_does(clone: Path) -> None:
    assert any('-m "not slow"' in line for line in planned(clone, "test", "FAST=1"))
    assert not any("not slow" in line for line in planned(clone, "test"))
