"""The command line: composition, interpolation, run folders, exit statuses; no weights are needed for any of it."""

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.runs import EXPERIMENTS, arguments, fit

from scaleearth_pl.cli import OWN_COMMANDS, collector_at_rest, main

STAGE2 = ("fit", "-c", str(EXPERIMENTS / "stage2.yaml"))
EIGHT = ("-c", str(EXPERIMENTS / "size" / "8b.yaml"))
TINY = ("-c", str(EXPERIMENTS / "size" / "tiny.yaml"))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What `--print_config` prints, which is what would run, before interpolation."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def built(tmp_path: Path, corpus: Path, *words: str) -> Any:
    """The CLI after a run of one step."""
    return fit("stage2", corpus, tmp_path, *words, steps=1)


def test_the_8b_recipe_prints_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(capsys, *STAGE2, *EIGHT)
    settings = config["model"]["init_args"]
    assert settings["backbone"]["source"] == "Qwen/Qwen3-VL-8B-Instruct"
    assert (settings["backbone"]["quantise"], settings["backbone"]["dtype"]) == ("nf4", "bfloat16")
    assert (settings["adapters"]["rank"], settings["adapters"]["lora_alpha"]) == (64, 32)
    assert len(settings["adapters"]["targets"]) == 7
    assert (config["size"], config["trainer"]["strategy"], config["trainer"]["precision"]) == ("8b", "ddp", "32-true")


def test_later_files_and_options_win(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(capsys, *STAGE2, *EIGHT, *TINY, "--model.init_args.lambda_gsd", "0.25", "--data.seed", "7")
    settings = config["model"]["init_args"]
    assert (config["size"], settings["backbone"]["source"], settings["backbone"]["quantise"]) == ("tiny", "tiny", "nf4")
    assert settings["lambda_gsd"] == 0.25
    assert settings["optim"]["lr_factors"] == {"thresholds": 5.0, "sse_u": 5.0}
    assert config["data"]["seed"] == 7


def test_options_reach_interpolated_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`data.tokenizer` is `${model.init_args.init_from}`: naming another start names its tokenizer, too."""
    stated = ("--model.init_args.init_from", str(tmp_path))
    assert printed(capsys, *STAGE2, *TINY)["data"]["tokenizer"] == "runs/stage1/latest/hf"
    assert printed(capsys, *STAGE2, *TINY, *stated)["data"]["tokenizer"] == str(tmp_path)
    overlay = tmp_path / "start.yaml"
    overlay.write_text("model: {init_args: {init_from: runs/another/hf}}\n")
    assert printed(capsys, *STAGE2, *TINY, "-c", str(overlay))["data"]["tokenizer"] == "runs/another/hf"
    stage1 = ("fit", "-c", str(EXPERIMENTS / "stage1.yaml"), *TINY, "--model.init_args.backbone.source", "some/folder")
    assert printed(capsys, *stage1)["data"]["tokenizer"] == "some/folder"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--data.rooot", "x"), "data.rooot"),
        (("--model.init_args.lambda_gsdd", "1"), "lambda_gsdd"),
        (("--model.init_args.adapters.gate.kindd", "open"), "kindd"),
        (("--model.init_args.adapters.rank", "many"), "many"),
    ],
)
def test_an_unknown_option_is_an_error_that_names_it(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], named: str
) -> None:
    assert main([*STAGE2, *TINY, *words]) == 2
    message = capsys.readouterr().err
    assert message.strip().startswith("ConfigError: ")
    assert named in message
    assert "Union" not in message
    assert "Remedy: " in message
    assert "Traceback" not in message


def test_an_absent_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STAGE2, "-c", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["data: {rooot: x}", "model: {init_args: {head: {hiden: 3}}}", "modle: 3"])
def test_an_unknown_yaml_key_is_an_error_that_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    assert main([*STAGE2, *TINY, "-c", str(overlay)]) == 2
    message = capsys.readouterr().err
    assert any(key in message for key in ("rooot", "hiden", "modle"))
    assert "Union" not in message
    assert len(message.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_has_a_folder_of_its_own_and_latest_points_to_it(fake_corpus: Path, tmp_path: Path) -> None:
    first = built(tmp_path, fake_corpus, "--experiment", "mine")
    latest = tmp_path / "mine" / "latest"
    assert latest.resolve() == first.run_folder.resolve()
    assert first.run_folder.parent == tmp_path / "mine"
    saved = yaml.safe_load((first.run_folder / "config.yaml").read_text())
    assert saved["data"]["root"] == str(fake_corpus)
    again = built(tmp_path, fake_corpus, "-c", str(first.run_folder / "config.yaml"), "--experiment", "again")
    assert (tmp_path / "again" / "latest").resolve() == again.run_folder.resolve()
    built(tmp_path, fake_corpus, "--experiment", "mine", "--trainer.fast_dev_run", "true")
    assert latest.resolve() == first.run_folder.resolve(), "one step to see whether it runs is no run"


def test_a_logger_of_ones_own_is_kept_beside_tensorboard(fake_corpus: Path, tmp_path: Path) -> None:
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(tmp_path))
    kinds = [type(logger).__name__ for logger in built(tmp_path, fake_corpus, *logger).trainer.loggers]
    assert kinds == ["TensorBoardLogger", "CSVLogger"]


def test_own_commands_are_reached_and_errors_leave_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "/nowhere/at/all"]) == 2
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_what_imports_leave_is_out_of_the_collectors_sight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    for _ in range(2):
        with collector_at_rest():
            assert not gc.isenabled()
        assert gc.isenabled()
    assert frozen == [1]


def test_help_names_every_command_and_loads_no_library() -> None:
    code = "import sys; from scaleearth_pl.cli import main; main(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\nFalse\n")
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("  ")} == {
        *("fit", "validate", "test", "predict"),
        *OWN_COMMANDS,
    }
    for module, _ in OWN_COMMANDS.values():
        assert importlib.util.find_spec(module), module


def test_a_command_that_is_none_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fot", "-c", "experiments/stage2.yaml"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_arguments: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("scaleearth_pl.training.command.run_lightning", broken)
    with pytest.raises(KeyError):
        main(["fit"])


@pytest.mark.slow
def test_module_and_script_are_the_same_command(fake_corpus: Path, tmp_path: Path) -> None:
    """A real process: status 2, one line, no traceback."""
    words = arguments("stage2", fake_corpus, tmp_path, "--model.init_args.adapters.rank", "2")
    done = subprocess.run([sys.executable, "-m", "scaleearth_pl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ConfigError: rank" in done.stderr
    assert "Traceback" not in done.stderr
