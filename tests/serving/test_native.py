"""The native format: it travels, it says what it is, and it is refused where it is not what it says."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import httpx2 as httpx
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from serving_fakes import make_run, picture

from scaleearth_pl import cli
from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.loading.folders import find_adapter, find_base
from scaleearth_pl.loading.model import load_model
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.export import main as export
from scaleearth_pl.serving.native import push, save_pretrained

QUESTIONS = ["Are there roads of 3 metres?", "Forest?"]


class FakeApi:
    """Remembers what it was asked to do."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload_folder", repo_id, sorted(p.name for p in folder_path.iterdir()), commit_message))


def told(assistant, **options):
    return [(a.text, a.scale.gsd_m, a.scale.seen_size) for a in assistant.ask(picture(1), QUESTIONS, **options)]


def test_saved_and_loaded_it_answers_alike(earth, tmp_path):
    folder = earth.save_pretrained(tmp_path / "saved")
    again = Assistant.from_pretrained(folder, max_new_tokens=6)
    for options in ({"gsd_m": 0.3}, {"policy": "predicted"}, {"spoof_gsd_m": 20.0}):
        assert told(again, **options) == told(earth, **options)
    assert again.loaded.settings == earth.loaded.settings


def test_with_its_base_it_needs_nothing_else(fake_corpus, tmp_path):
    """Saved with the base, moved away, and everything that it was made of deleted."""
    corpus = shutil.copytree(fake_corpus, tmp_path / "made" / "corpus")
    run = make_run(tmp_path / "made", corpus)
    before = Assistant.from_pretrained(run)
    expected = told(before, gsd_m=0.3)
    save_pretrained(before.loaded, tmp_path / "out", with_base=True)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "made")
    assert told(Assistant.from_pretrained(tmp_path / "elsewhere"), gsd_m=0.3) == expected


def test_a_run_moved_as_a_whole_finds_its_base(fake_corpus, tmp_path, monkeypatch):
    """The recorded path is relative, as `make` writes it; the working directory is another one."""
    corpus = shutil.copytree(fake_corpus, tmp_path / "work" / "corpus")
    run = make_run(tmp_path / "work", corpus)
    stage1 = tmp_path / "work" / "runs" / "stage1-fake"
    stage1.mkdir(parents=True)
    shutil.move(tmp_path / "work" / "shallow" / "hf", stage1 / "v0" / "hf")
    (stage1 / "latest").symlink_to("v0")
    file = run / "adapter" / "scaleearth.json"
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "base_path": "runs/stage1-fake/latest/hf"}))
    monkeypatch.chdir(tmp_path)
    assert load_model(run).base.endswith("runs/stage1-fake/latest/hf")
    # `latest` moves on to another training: the old version is found by its hash
    shutil.copytree(stage1 / "v0", stage1 / "v1")
    weights = stage1 / "v1" / "hf" / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (stage1 / "latest").unlink()
    (stage1 / "latest").symlink_to("v1")
    assert load_model(run).base.endswith("runs/stage1-fake/v0/hf")
    shutil.rmtree(stage1 / "v0")
    with pytest.raises(CheckpointError, match="other weights"):
        load_model(run)


def test_a_base_that_is_gone_is_named_with_the_option_that_helps(fake_corpus, tmp_path):
    corpus = shutil.copytree(fake_corpus, tmp_path / "work" / "corpus")
    run = make_run(tmp_path / "work", corpus)
    shutil.rmtree(tmp_path / "work" / "shallow" / "hf")
    with pytest.raises(CheckpointError, match=r"base that it was trained on is not there.*hf.*--base"):
        load_model(run)


def test_a_hub_base_is_no_folder_that_happens_to_bear_its_name(earth, tmp_path, monkeypatch):
    (tmp_path / "models" / "Base-8B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    meta = replace(earth.loaded.adapter.meta, base_path="org/Base-8B", base_hash="hub")
    assert find_base(tmp_path / "run" / "adapter", meta) == "org/Base-8B"


def test_the_card(earth, tmp_path):
    folder = earth.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and "scaleearth" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.61, "fake")
    for words in ("| all questions | 0.610 |", "always the commonest answer | 0.400", "all gates are open", "rank 12"):
        assert words in card.text


def test_the_cards_code_runs_for_a_stranger(fake_run, earth, tmp_path, monkeypatch):
    """Who reads the card has no folder: the hub's name is what its code loads."""
    pushed = []
    monkeypatch.setattr("scaleearth_pl.serving.export.push", lambda folder, repo_id, **_: pushed.append(repo_id))
    words = ["--native", "--with-base", "--out", str(tmp_path / "saved"), "--push-to", "org/adapter"]
    assert export([str(fake_run), *words]) == 0 and pushed == ["org/adapter"]
    text = ModelCard.load(tmp_path / "saved" / "README.md").text
    assert 'scaleearth_pl.load(snapshot_download("org/adapter"))' in text
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: {"org/adapter": tmp_path / "saved"}[name])
    code = text.partition("```python\n")[2].partition("```")[0].replace("tile.tif", str(tmp_path / "tile.png"))
    picture(1).save(tmp_path / "tile.png")
    exec(code, {})
    assert 'snapshot_download("ORG/NAME")' in (earth.save_pretrained(tmp_path / "bare") / "README.md").read_text()


def test_a_card_without_figures_claims_none(fake_run, tmp_path):
    shutil.copytree(fake_run / "adapter", tmp_path / "bare")
    shutil.copy(fake_run / "config.yaml", tmp_path / "config.yaml")
    folder = save_pretrained(load_model(tmp_path / "bare"), tmp_path / "saved")
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results is None and "None: the run" in card.text and "accuracy" not in card.text


def test_push(earth, tmp_path):
    folder = save_pretrained(earth.loaded, tmp_path / "saved", base_name="org/base")
    api = FakeApi()
    assert push(folder, "org/adapter", api=api) == "https://huggingface.co/org/adapter"
    assert [call[:2] for call in api.calls] == [("create_repo", "org/adapter"), ("upload_folder", "org/adapter")]
    assert api.calls[0][2:] == (True, True)
    assert api.calls[1][2] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "scaleearth.json",
        "scaleearth.safetensors",
    ]


def test_push_refuses_what_nobody_could_use(earth, tmp_path):
    local = earth.save_pretrained(tmp_path / "local")
    named = save_pretrained(earth.loaded, tmp_path / "named", base_name="org/base")
    api = FakeApi()
    with pytest.raises(ConfigError, match="path of this machine"):
        push(local, "org/adapter", api=api)
    for name in ("adapter", "a/b/c", "/x", "", "org/na me", "org/..", "org/x.git"):
        with pytest.raises(ConfigError, match="not a repository"):
            push(named, name, api=api)
    (named / "README.md").unlink()
    with pytest.raises(CheckpointError, match="no model card"):
        push(named, "org/adapter", api=api)
    assert not api.calls


def test_a_hub_that_refuses_is_one_line_and_not_a_traceback(earth, tmp_path):
    folder = save_pretrained(earth.loaded, tmp_path / "saved", base_name="org/base")
    request = httpx.Request("POST", "https://hub")
    for fault in (
        HfHubHTTPError("401 Client Error", response=httpx.Response(401, request=request)),
        httpx.ConnectError("no route", request=request),
        OfflineModeIsEnabled("offline mode is enabled"),
    ):
        api = FakeApi()
        api.create_repo = Mock(side_effect=fault)
        with pytest.raises(ConfigError, match="upload it again"):
            push(folder, "org/adapter", api=api)


def test_a_repository_that_cannot_be_is_refused_before_anything_is_written(fake_run, tmp_path, capsys):
    for words in (["--push-to", "org/na me"], ["--public"]):
        assert cli.run(["export", str(fake_run), "--native", "--out", str(tmp_path / "out"), *words]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()


def test_cut_while_the_base_is_copied_the_old_folder_stays(fake_run, earth, tmp_path, monkeypatch):
    old = earth.save_pretrained(tmp_path / "saved")
    before = sorted(file.name for file in old.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError):
        save_pretrained(earth.loaded, old, with_base=True)
    assert sorted(file.name for file in old.iterdir()) == before and load_model(old)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_card_of_plain_lora_claims_no_gate(fake_corpus, tmp_path):
    run = make_run(tmp_path, fake_corpus, head=False, gate=GateConfig(kind="open"))
    text = ModelCard.load(save_pretrained(load_model(run), tmp_path / "saved") / "README.md").text
    assert "plain LoRA" in text and "it has no gates" in text
    assert "opens or closes" not in text and "SSE-U, a" not in text and "another model" not in text


def test_native_export_command(fake_run, tmp_path, capsys):
    assert export([str(fake_run), "--native", "--out", str(tmp_path / "native"), "--base-name", "org/base"]) == 0
    assert "native" in capsys.readouterr().out
    assert load_model(tmp_path / "native", base=load_model(fake_run).base).adapter.meta.base_path == "org/base"


def test_saving_over_oneself_is_refused(earth, fake_run):
    with pytest.raises(CheckpointError, match="over itself"):
        earth.save_pretrained(fake_run / "adapter")
    assert find_adapter(fake_run) == (fake_run / "adapter").resolve()


def test_settings_that_nobody_wrote(fake_run, tmp_path):
    """The base's own preprocessor_config.json would be a guess: it knows nothing of the GSD as text (B3)."""
    shutil.copytree(fake_run / "adapter", tmp_path / "bare")
    with pytest.raises(CheckpointError, match="which pixels"):
        load_model(tmp_path / "bare")
    for text, problem in (
        ("data: {min_pixels: many}", "not usable"),
        ("data: 7", "not a mapping"),
        ("experiment: bare", "which pixels"),
        ("", "which pixels"),
        ("- data", "does not parse"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(CheckpointError, match=problem):
            load_model(tmp_path / "bare")


def test_loaded_models_are_for_inference(earth):
    assert not any(p.requires_grad for p in earth.model.parameters())
    assert not earth.model.training and torch.is_grad_enabled()
