"""What a user gets wrong at the command line of a run: status 2, one typed line with value and remedy, no traceback.

Shards, images and GSDs are the business of the tests of `data` and `core`; unknown keys of `test_cli.py`.
"""

import json
import shutil
from pathlib import Path

import pytest
from fakes.runs import arguments, fit, make_data, shallow_hf
from safetensors.torch import load_file, save_file

from scaleearth_pl.cli import main
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone, save_backbone


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line that must be refused; returns what it says."""

    def run(words: list[str]) -> str:
        monkeypatch.delenv("SCALEEARTH_VERSION", raising=False)
        monkeypatch.setenv("SCALEEARTH_VERSION", "v0")
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert "Remedy: " in message
        return message.splitlines()[-1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("model.init_args.adapters.rank", "2", ("ConfigError", "rank tiers (3)", "2", "64")),
        ("model.init_args.adapters.targets", "[q_proj, qkv_proj]", ("TargetModuleError", "'qkv_proj'", "o_proj")),
        ("model.init_args.init_from", "/no/such/hf", ("CheckpointError", "/no/such/hf", "make stage1")),
        ("model.init_args.adapter", "/no/such/adapter", ("CheckpointError", "/no/such/adapter")),
        ("model.init_args.resolver.policy", "spoof", ("ConfigError", "spoof_gsd_m", "set both or neither")),
        ("model.init_args.optim.lr_factors", "{sse_you: 2.0}", ("ConfigError", "'sse_you'", "sse_u")),
        ("model.init_args.optim.lr", "-1", ("ConfigError", "optim.lr", "-1")),
        ("data.root", "/no/such/corpus", ("IndexSchemaError", "/no/such/corpus", "scaleearth prepare")),
        ("data.tokenizer", "/no/such/tokenizer", ("ConfigError", "/no/such/tokenizer", "tokenizer.json")),
        ("data.micro_token_budget", "50", ("ConfigError", "micro_token_budget", "50", "max_branch")),
        ("trainer.max_steps", "-1", ("ConfigError", "trainer.max_steps", "set max_steps")),
        ("trainer.limit_train_batches", "10", ("ConfigError", "limit_train_batches", "10", "data.limit_images")),
        ("trainer.limit_val_batches", "0.25", ("ConfigError", "limit_val_batches", "0.25", "data.limit_images")),
        ("trainer.limit_test_batches", "3", ("ConfigError", "limit_test_batches", "3", "one tier")),
        ("trainer.overfit_batches", "0.5", ("ConfigError", "overfit_batches", "0.5", "max_steps")),
        ("trainer.precision", "bf16-true", ("ConfigError", "trainer.precision", "bf16-true", "backbone.dtype")),
    ],
)
def test_a_setting_that_cannot_be_meant(
    fake_corpus: Path, tmp_path: Path, refused, option: str, value: str, says: tuple[str, ...]
) -> None:
    message = refused([*arguments("stage2", fake_corpus, tmp_path, steps=1), f"--{option}", value])
    assert all(part in message for part in says), message


def test_a_prompt_tells_the_gsd_of_the_metadata_and_no_other(fake_corpus: Path, tmp_path: Path, refused) -> None:
    """Under another policy baseline B3 would be told the metadata's GSD all the same."""
    told = ("--data.gsd_text", "metres", "--model.init_args.resolver.policy", "predicted")
    message = refused(arguments("stage2", fake_corpus, tmp_path, *told, steps=1))
    assert all(part in message for part in ("resolver.policy", "'predicted'", "scaleearth evaluate")), message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "scaleearth-adapter/9"}, ("another schema", "scaleearth-adapter/9", "scaleearth-adapter/1")),
        ({"surprise": 1}, ("surprise",)),
    ],
)
def test_an_adapter_of_another_schema(
    trained: Path, fake_corpus: Path, tmp_path: Path, refused, change: dict[str, object], says: tuple[str, ...]
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", folder)
    written = json.loads((folder / "scaleearth.json").read_text())
    (folder / "scaleearth.json").write_text(json.dumps(written | change))
    message = refused(evaluating(fake_corpus, tmp_path, folder))
    assert all(part in message for part in ("CheckpointError", str(folder), *says)), message


def test_an_adapter_for_other_settings(trained: Path, fake_corpus: Path, tmp_path: Path, refused) -> None:
    words = [*evaluating(fake_corpus, tmp_path, trained / "adapter"), "--model.init_args.adapters.rank", "32"]
    assert "CheckpointError" in refused(words)


def test_an_adapter_on_another_base(trained: Path, fake_corpus: Path, tmp_path: Path, refused) -> None:
    """`latest` of stage 1 may have moved on: the accuracies would be plausible, and wrong."""
    base = shutil.copytree(shallow_hf(fake_corpus), tmp_path / "hf")
    save_file(
        {k: v + 1 for k, v in load_file(base / "model.safetensors").items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    words = [*evaluating(fake_corpus, tmp_path, trained / "adapter"), "--model.init_args.init_from", str(base)]
    message = refused(words)
    assert all(part in message for part in ("CheckpointError", "other weights", str(base), "init_from")), message


@pytest.fixture(scope="module")
def trained(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one step of stage 2."""
    return fit("stage2", fake_corpus, tmp_path_factory.mktemp("trained"), steps=1).run_folder


def evaluating(corpus: Path, runs: Path, adapter: Path) -> list[str]:
    """`scaleearth test` of an adapter."""
    return ["test", *arguments("stage2", corpus, runs)[1:], "--model.init_args.adapter", str(adapter)]


def test_a_folder_made_with_a_smaller_tokenizer(fake_corpus: Path, tmp_path: Path, refused) -> None:
    ids = make_data(fake_corpus, tiny_vocab_size=270, micro_token_budget=2000).processor.token_ids
    save_backbone(build_backbone(BackboneConfig(), token_ids=ids), tmp_path / "hf")
    words = arguments("stage2", fake_corpus, tmp_path, "--data.tokenizer", "tiny")
    message = refused([*words, "--model.init_args.init_from", str(tmp_path / "hf")])
    assert all(part in message for part in ("CheckpointError", "another tokenizer", "vocab_size", "270")), message


def test_4_bit_of_a_random_model(fake_corpus: Path, tmp_path: Path, refused) -> None:
    words = arguments("stage1", fake_corpus, tmp_path, "--model.init_args.backbone.quantise", "nf4")
    message = refused(words)
    assert "ConfigError" in message
    assert "run stage 1 first" in message


def test_a_refused_run_leaves_no_weights(fake_corpus: Path, tmp_path: Path, refused) -> None:
    refused(arguments("stage2", fake_corpus, tmp_path, "--model.init_args.adapters.targets", "[nothing]"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".ckpt", ".safetensors")]
