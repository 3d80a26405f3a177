"""`make falsify FAST=1`, the command itself, on a tiny world: everything runs, nothing is concluded."""

import json
from pathlib import Path

import pytest
import yaml
from fakes.inprocess import run_here
from fakes.runs import EXPERIMENTS

from scaleearth_pl.cli import run
from scaleearth_pl.evaluation.falsify import measure, runs
from scaleearth_pl.evaluation.falsify.plan import Plan
from scaleearth_pl.prepare.corpus import prepare

REGISTERED = EXPERIMENTS / "falsify/hypotheses.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The procedural world by its own recipe, but for the number of images and questions."""
    out = tmp_path_factory.mktemp("world") / "world"
    images = [f"images.{split}={n}" for split, n in {"stage1": 6, "train": 6, "val": 2, "test": 18}.items()]
    return prepare(EXPERIMENTS / "corpus/world.yaml", [f"out={out}", "processes=1", "questions=[5, 7]", *images])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """All registered hypotheses against one twin, at a fraction of the resamples, permutations and grid points."""
    document = yaml.safe_load(REGISTERED.read_text())
    document["n_resamples"] = 200
    document["hypotheses"]["H4"]["grid_m"]["per_decade"] = 1
    document["hypotheses"]["H8"]["permutations"] = 3
    document["variants"] = {name: document["variants"][name] for name in ("ours", "bucketed")}
    for row in (row for row in document["hypotheses"].values() if "twin" in row):
        row["twin"] = "bucketed"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "plan.yaml"


@pytest.fixture
def smoke(world: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """Runs the command; returns the experiments that it trained, and its folder of results."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    monkeypatch.setattr(measure, "SHIFTS_DECADES", (-1.0, 0.0, 1.0))
    # As on the world: what is measured holds places that the limited runs have not answered.
    monkeypatch.setattr(runs, "FAST", (*runs.FAST[:-1], "6"))
    started = run_here(monkeypatch, world.parent / "cache")
    words = ["falsify", "--fast", "--plan", str(plan), "--corpus", str(world), "--runs", str(tmp_path / "runs")]
    assert run([*words, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    return started, tmp_path / "out"


def test_a_smoke_test_runs_everything_and_gives_no_verdict(smoke: tuple[list[str], Path], plan: Path) -> None:
    (started, out), registered = smoke, Plan.load(plan)
    assert len(started) == 1 + len(registered.variants)
    assert all(name.endswith("-fast") for name in started)
    document = json.loads((out / "verdict.json").read_text())
    assert document["fast"] is True
    assert document["plan_sha256"] == registered.digest
    assert document["seeds"] == [registered.seeds[0]]
    assert set(document["hypotheses"]) == {h.name for h in registered.hypotheses}
    for found in document["hypotheses"].values():
        assert found["verdict"] in ("undecided", "described")
        assert found["p_adjusted"] is None
    for page in ("report.md", "report.html"):
        text = (out / page).read_text()
        assert "these are no verdicts" in text
        assert "| supported |" not in text
        assert "| refuted |" not in text
        assert all(figure in text for figure in ("spoofing.png", "probes.png", "gates.png"))
    assert len(list(out.glob("*.png"))) >= 8
