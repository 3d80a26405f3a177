"""Every YAML in `experiments/` is found, explains itself, parses on its base, and runs (on a fake corpus).

`corpus/` and `falsify/` are left out: `scaleearth prepare` and `scaleearth falsify` read those, and their tests run them.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.runs import EXPERIMENTS, UNDRAWN, fit

from scaleearth_pl.cli import main

FILES = sorted(p for p in EXPERIMENTS.rglob("*.yaml") if p.parent.name not in ("corpus", "falsify"))
BASES = [EXPERIMENTS / "stage1.yaml", EXPERIMENTS / "stage2.yaml"]
OVERLAYS = [path for path in FILES if path not in BASES]
VARIANTS = [path for path in OVERLAYS if path.parent.name in ("baseline", "ablation")]
DRAWN = ("bucketed", "plain_lora", "no_sse_u", "shared_thresholds")
"""Variants with other gates or no head, at which a figure may fail; the figures of the rest are ours."""


def name_of(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


def header(path: Path) -> list[str]:
    """The comment lines at the head of a file, without their sign."""
    lines = path.read_text().splitlines()
    return [
        line.removeprefix("# ") for line in lines[: next(i for i, row in enumerate(lines) if not row.startswith("#"))]
    ]


def command(path: Path) -> list[str]:
    """Words after `Command   scaleearth` of the header."""
    line = next(line for line in header(path) if line.startswith("Command"))
    words = shlex.split(line.removeprefix("Command"))
    assert words[0] == "scaleearth", line
    return words[1:]


def n_keys(node: Any) -> int:
    """Leaves of a nested mapping."""
    return sum(n_keys(value) for value in node.values()) if isinstance(node, dict) and node else 1


def test_the_readme_lists_each_file_once() -> None:
    listed, folder = [], ""
    for row in (EXPERIMENTS / "README.md").read_text().splitlines():
        files = row.split("|")[1] if row.startswith("|") else ""
        if section := re.search(r"\*\*`(\w+/)`", files):
            folder = section[1]
        listed += [folder + name for name in re.findall(r"`(\w+\.yaml)`", files)]
    assert sorted(listed) == sorted(name_of(path) for path in EXPERIMENTS.rglob("*.yaml"))


def test_the_discovery_finds_them() -> None:
    assert {"stage1.yaml", "stage2.yaml", "size/tiny.yaml", "size/8b.yaml"} < {name_of(path) for path in FILES}
    assert len(VARIANTS) >= 7
    assert {*DRAWN} < {path.stem for path in VARIANTS}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_header_names_purpose_cost_expectation_and_command(path: Path) -> None:
    text = " ".join(header(path))
    assert len(header(path)) >= 2
    for word in ("Cost", "Expected", "Command"):
        assert word in text, f"{path} says nothing of {word}"
    assert any(word in text for word in ("Purpose", "Question", "?")), f"{path} has neither a purpose nor a question"
    assert path in BASES or name_of(path) in " ".join(command(path))


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_an_overlay_is_short(path: Path) -> None:
    """One idea: at most ten lines; a baseline or ablation at most three values besides its name."""
    body = path.read_text().splitlines()[len(header(path)) :]
    assert len([line for line in body if line.strip()]) <= 10
    if path in VARIANTS:
        keys = yaml.safe_load(path.read_text())
        assert keys.pop("experiment") == path.stem
        assert n_keys(keys) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_command_of_the_header_parses(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXPERIMENTS.parent)
    with pytest.raises(SystemExit) as stop:
        main([*command(path), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for key, value in leaves(yaml.safe_load(path.read_text())):
        if "${" not in str(value) and path in OVERLAYS:
            assert get(printed, key) == value, key


def leaves(node: Any, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in leaves(value, (*prefix, key))]
    return [(prefix, node)]


def get(config: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        config = config[part]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("path", VARIANTS, ids=name_of)
def test_a_variant_trains_and_is_tested(path: Path, fake_corpus: Path, tmp_path: Path) -> None:
    """Two steps and the test split: what `make compare` does, small."""
    words = ["-c", str(path), "--test_after_fit", "true", *(() if path.stem in DRAWN else UNDRAWN)]
    words += ["--data.global_batch_tokens", "300"]
    cli = fit("stage2", fake_corpus, tmp_path, *words, steps=2)
    assert (cli.run_folder / "predictions.jsonl").exists()
    assert (cli.run_folder / "adapter" / "scaleearth.json").exists()
