"""`make falsify FAST=1` and `make ablations FAST=1`, the commands themselves, on a tiny world: all runs, no verdict."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.inprocess import run_here
from fakes.runs import EXPERIMENTS
from safetensors.torch import load_file

from scaleearth_pl.cli import run
from scaleearth_pl.evaluation.falsify import measure, runs, takeover
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.prepare.corpus import prepare

pytestmark = pytest.mark.slow
REGISTERED, ABLATIONS = EXPERIMENTS / "falsify/hypotheses.yaml", EXPERIMENTS / "falsify/ablations.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The procedural world by its own recipe, but for the number of images and questions."""
    out = tmp_path_factory.mktemp("world") / "world"
    images = [f"images.{split}={n}" for split, n in {"stage1": 6, "train": 6, "val": 2, "test": 18}.items()]
    return prepare(EXPERIMENTS / "corpus/world.yaml", [f"out={out}", "processes=1", "questions=[5, 7]", *images])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, plans and results of both commands."""
    return tmp_path_factory.mktemp("fast")


@pytest.fixture(scope="module")
def command(world: Path, scratch: Path) -> Iterator[Callable[..., list[str]]]:
    """Runs a command on the world; returns the experiments that it trained, two steps each, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXPERIMENTS.parent)
        patch.setattr(measure, "SHIFTS_DECADES", (-1.0, 0.0, 1.0))
        # As on the world: what is measured holds places that the limited runs have not answered.
        patch.setattr(runs, "FAST", (*runs.FAST[:-1], "6"))
        started = run_here(patch, world.parent / "cache")

        def call(name: str, *words: str) -> list[str]:
            before = len(started)
            where = ["--corpus", str(world), "--runs", str(scratch / "runs"), "--plan", str(scratch / f"{name}.yaml")]
            out = ["--out", str(scratch / name), "--workers", "1"]
            assert run([name, "--fast", *where, *out, *words]) == 0
            return started[before:]

        yield call


@pytest.fixture(scope="module")
def plan(scratch: Path) -> Plan:
    """All registered hypotheses against one twin, at a fraction of the resamples, permutations and grid points."""
    document = yaml.safe_load(REGISTERED.read_text())
    document["n_resamples"] = 200
    document["hypotheses"]["H4"]["grid_m"]["per_decade"] = 1
    document["hypotheses"]["H8"]["permutations"] = 3
    document["variants"] = {name: document["variants"][name] for name in (OURS, "bucketed")}
    for row in (row for row in document["hypotheses"].values() if "twin" in row):
        row["twin"] = "bucketed"
    (scratch / "falsify.yaml").write_text(yaml.safe_dump(document))
    return Plan.load(scratch / "falsify.yaml")


@pytest.fixture(scope="module")
def falsified(command: Callable[..., list[str]], plan: Plan) -> list[str]:
    """The experiments that `falsify` trained."""
    return command("falsify")


def test_a_smoke_test_runs_everything_and_gives_no_verdict(falsified: list[str], plan: Plan, scratch: Path) -> None:
    assert len(falsified) == 1 + len(plan.variants)
    assert all(name.endswith("-fast") for name in falsified)
    document = json.loads((scratch / "falsify/verdict.json").read_text())
    assert document["fast"] is True
    assert document["plan_sha256"] == plan.digest
    assert document["seeds"] == [plan.seeds[0]]
    assert set(document["hypotheses"]) == {h.name for h in plan.hypotheses}
    for found in document["hypotheses"].values():
        assert found["verdict"] in ("undecided", "described")
        assert found["p_adjusted"] is None
    for page in ("report.md", "report.html"):
        text = (scratch / "falsify" / page).read_text()
        assert "these are no verdicts" in text
        assert "| supported |" not in text
        assert "| refuted |" not in text
        assert all(figure in text for figure in ("spoofing.png", "probes.png", "gates.png"))
    for name in ("majority", "question only", r"question \+ GSD"):  # all measured, none a dash
        assert re.search(rf"^\| floor: {name} \| \d+\.\d \|", (scratch / "falsify/report.md").read_text(), re.MULTILINE)
    assert len(list((scratch / "falsify").glob("*.png"))) >= 8


def test_every_setting_of_a_run_is_compared_or_is_known_to_change_no_result(
    falsified: list[str], plan: Plan, world: Path, scratch: Path
) -> None:
    """Defaults that no file states included: a run of other defaults is no run of the plan."""
    setting = runs.Setting(corpus=world, runs=scratch / "runs", fast=True)
    job = runs.variant_job(plan, setting, OURS, plan.seeds[0])
    config = yaml.safe_load((job.folder / "latest/config.yaml").read_text())
    compared = set(leaves(takeover.stated(job.command)))
    assert not [name for name in leaves({kind: config[kind] for kind in ("model", "data")}) if name not in compared]
    assert takeover.first_difference(takeover.UNSTATED["data"] | {"controls": 1}, config["data"], "data") is not None


def leaves(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of all settings that can change a result."""
    if name not in takeover.CHANGES_NO_RESULT:
        if isinstance(value, dict) and value:
            for key, below in value.items():
                yield from leaves(below, f"{name}.{key}".lstrip("."))
        else:
            yield name


def test_ablations_train_only_what_is_missing_and_measure_once(
    falsified: list[str], command: Callable[..., list[str]], scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1 and ours are those of `falsify`; a second call trains and measures nothing."""
    document = yaml.safe_load(ABLATIONS.read_text())
    document["variants"] = {OURS: [], "stage1_only": document["variants"]["stage1_only"]}
    document["hypotheses"] = {"A1": document["hypotheses"]["A11"]}
    (scratch / "ablations.yaml").write_text(yaml.safe_dump(document))
    tables = ("--tables", str(scratch / "tables"))
    (trained,) = command("ablations", *tables)
    assert re.sub(r"-tiny.*", "", trained) == "stage1_only"
    assert "stage 1 only" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (scratch / "tables").iterdir()}
    assert len(made) == 2
    assert command("ablations", *tables) == []
    assert made == {path: path.stat().st_mtime_ns for path in (scratch / "tables").iterdir()}
    found = json.loads((scratch / "ablations/ablations.json").read_text())
    assert found["variants"]["stage1_only"]["metadata"]
    (ours,) = (name for name in falsified if name.startswith("stage2"))
    assert largest_b(scratch / "runs" / ours) > 0
    assert largest_b(scratch / "runs" / trained) == 0  # exactly: then the adapted model is the base


def largest_b(experiment: Path) -> float:
    """Largest entry of B in the adapter that an experiment's newest run has written."""
    weights = load_file(experiment / "latest/adapter/adapter_model.safetensors")
    return max(float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name)
