"""A configuration imports nothing of a stranger's and leaks no secret."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from scaleearth_pl.cli import main
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.training.callbacks.save_config import next_free
from scaleearth_pl.training.command import ScaleEarthCLI
from scaleearth_pl.training.security import REDACTED, check_arguments, redacted

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("**/*.yaml")), ids=lambda p: p.stem)
def test_our_own_experiments_pass(path: Path) -> None:
    check_arguments(["fit", "-c", str(path), "--data.root", "/tmp/some.folder", "--experiment", "a.b"])


ATTACKS = [
    ("--model", "evil.X"),
    ("--model={class_path: evil.X}",),
    ("--model.class_path", "os.system"),
    ("--model.help", "evil.X"),
    ("-c", "model: {class_path: evil.X}"),
    ("--conf", "model: {class_path: evil.X}"),
    ("-c", "trainer: {callbacks: [{class_path: evil.X}]}"),
    ("-c", "trainer: {callbacks: [evil.X]}"),
    ("-c", "trainer: {strategy: {init_args: {cluster_environment: evil.X}}}"),
    ("-c", "data: {class_path: evil.X}"),
    ("-c", "fit: {model: {class_path: evil.X}}"),
    ("--trainer.callbacks+=evil.X",),
    ("--trainer.callbacks+", "evil.X"),
    ("--trainer.callbacks", "[{class_path: evil.X}]"),
    ("--trainer.callbacks.class_path", "torch_evil.X"),
    ("--trainer.logger", "evil.X"),
    ("--experiment", "evil.X", "--trainer.strategy", "${experiment}"),
    ("--experiment", "evil.X", "-c", "trainer: {plugins: ['${experiment}']}"),
    ("--size", "evil", "--trainer.profiler", "${size}.X"),
    ("-c", "model: {class_path: '${oc.env:HOME}'}"),
    ("-c", "model: 'class_path: evil.X'"),
    ("-c", "trainer: {callbacks: '[{class_path: evil.X}]'}"),
    ("-c", "trainer: {callbacks: '[evil.X]'}"),
    ("-c", "trainer: {logger: \"'{class_path: evil.X}'\"}"),
    ("-c", "data: {controls: evil.X}"),
    ("--data.controls", "evil.X"),
    ("--experiment", "evil.X", "-c", "trainer: {callbacks: '[\"${experiment}\"]'}"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=" ".join)
def test_a_foreign_class_is_refused_before_anything_is_imported(attack: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"may not import this.*scaleearth_pl\."):
        check_arguments(["fit", *attack])


@pytest.mark.parametrize("name", ["sub.yaml", "sub.txt", "sub"])
def test_files_behind_files_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("class_path: evil.X")
    (tmp_path / "list").write_text("[evil.X]")
    (tmp_path / "scalar").write_text("evil.X")
    (tmp_path / "outer.yaml").write_text(f"model: ./{name}")
    (tmp_path / "whole.yaml").write_text("fit: ./fit.txt")
    (tmp_path / "fit.txt").write_text("trainer: {callbacks: [evil.X]}")
    for words in (
        ["-c", str(tmp_path / "outer.yaml")],
        ["-c", str(tmp_path / "whole.yaml")],
        [f"-c{tmp_path}/outer.yaml"],
        ["--model", f"{tmp_path}/{name}"],
        [f"--trainer.callbacks={tmp_path}/list"],
        ["--trainer.strategy", f"{tmp_path}/scalar"],
    ):
        with pytest.raises(ConfigError, match="may not import"):
            check_arguments(["fit", *words])


def test_a_file_behind_a_value_is_small_and_does_not_interpolate(tmp_path: Path) -> None:
    """The parser fills `${...}` in after our check, and would save what `${oc.env:...}` gave."""
    (tmp_path / "sub.yaml").write_text("[{init_args: {dirpath: '${experiment}'}}]")
    with pytest.raises(ConfigError, match=r"may not interpolate.*sub\.yaml.*give it with -c"):
        check_arguments(["fit", "--trainer.callbacks", f"{tmp_path}/sub.yaml"])
    (tmp_path / "sub.yaml").write_text("# " + "x" * (1 << 20))
    with pytest.raises(ConfigError, match="too large for a configuration"):
        check_arguments(["fit", "--trainer.callbacks", f"{tmp_path}/sub.yaml"])


def test_a_checkpoint_names_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI parses the `hyper_parameters` of `--ckpt_path` as a configuration, `_class_path` included."""
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"hyper_parameters": {"_class_path": "stranger.X"}}, tmp_path / "hostile.ckpt")
    recipe = ["-c", str(EXPERIMENTS / "stage1.yaml"), "-c", str(EXPERIMENTS / "size" / "tiny.yaml")]
    words = ["fit", *recipe, "--runs_dir", str(tmp_path / "runs"), "--data.root", str(tmp_path / "absent")]
    words += ["--ckpt_path", str(tmp_path / "hostile.ckpt")]
    assert main(words) == 2
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(ScaleEarthCLI, "_parse_ckpt_path", LightningCLI._parse_ckpt_path)
    assert main(words) == 2
    assert (tmp_path / "ran").exists(), "Lightning's own reading did not import the class either: the attack is none"
    sys.modules.pop("stranger")


def test_allowed_names_and_plain_values_pass() -> None:
    check_arguments(
        ["fit", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.precision", "bf16-mixed"]
    )
    check_arguments(
        ["fit", "--trainer.strategy", "ddp", "--model.init_args.optim.lr", "1.0e-4", "--trainer.max_steps=3"]
    )
    check_arguments(["fit", "--model", "Stage2", "--trainer.default_root_dir", "/tmp/a.b"])
    check_arguments(["fit", "--data.root", "world.v2", "--data.tokenizer", "some.name", "--ckpt_path", __file__])


@pytest.mark.parametrize("value", ["true", "false"])
def test_remote_code_is_refused_wherever_it_stands(value: str) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code"):
        check_arguments(["fit", "--model.init_args.backbone.trust_remote_code", value])


def test_what_is_no_configuration_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        check_arguments(["fit", "-c", str(tmp_path / "broken.yaml")])
    with pytest.raises(ConfigError, match="no such configuration file"):
        check_arguments(["fit", "-c", "absent.yaml"])


def test_secrets_are_not_saved(monkeypatch) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    arguments = ["fit", "--experiment", "${oc.env:KEY}", "-c", "data: {root: 'x/${experiment}'}"]
    config = {
        "experiment": "hunter2",
        "data": {"root": "x/hunter2", "micro_token_budget": 3, "max_branch_tokens": 4, "tokenizer": "tiny"},
        "hf_token": "abc",
        "trainer": {"logger": [{"init_args": {"api_key": "k", "password": None}}]},
    }
    assert redacted(config, arguments) == {
        "experiment": "${oc.env:KEY}",
        "data": {"root": f"x/{REDACTED}", "micro_token_budget": 3, "max_branch_tokens": 4, "tokenizer": "tiny"},
        "hf_token": REDACTED,
        "trainer": {"logger": [{"init_args": {"api_key": REDACTED, "password": None}}]},
    }


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = next_free(tmp_path)
        path.touch()
        names.append(path.name)
    assert names == ["config.yaml", "config.1.yaml", "config.2.yaml"]
