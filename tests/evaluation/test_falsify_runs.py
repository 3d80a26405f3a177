"""In which order `falsify` trains, and what it trains again; no process is started."""

import json
import threading
from pathlib import Path

import pytest
import yaml

from scaleearth_pl.evaluation.falsify import runs, takeover
from scaleearth_pl.evaluation.falsify.plan import Plan

REGISTERED = Path(__file__).parents[2] / "experiments/falsify/hypotheses.yaml"
PATIENCE_S = 10.0


def job(name: str, tmp_path: Path, *then: runs.Job) -> runs.Job:
    return runs.Job(name=name, command=(), folder=tmp_path / name, then=then)


@pytest.fixture
def setting(tmp_path: Path) -> runs.Setting:
    """A corpus of content "abc", and a finished stage 1 of seeds 1 and 2 with one variant grown from it."""
    setting = runs.Setting(corpus=tmp_path / "world", runs=tmp_path)
    setting.corpus.mkdir()
    (setting.corpus / "index.json").write_text(json.dumps({"content_hash": "abc"}))
    for seed in (1, 2):
        latest = setting.stage1(seed) / "latest"
        (latest / "hf").mkdir(parents=True)
        (latest / "run.json").write_text(json.dumps({"corpus_hash": "abc"}))
        (latest / "config.yaml").write_text(yaml.safe_dump(takeover.stated(runs.stage1_job(setting, seed).command)))
        ours = setting.run("ours", seed) / "latest"
        ours.mkdir(parents=True)
        (ours / "predictions.jsonl").touch()
        (ours / "run.json").write_text(json.dumps({"corpus_hash": "abc", "stage1": str(latest / "hf")}))
        config = takeover.stated(runs.variant_job(Plan.load(REGISTERED), setting, "ours", seed).command)
        (ours / "config.yaml").write_text(yaml.safe_dump(config))
    return setting


def test_a_variant_waits_for_the_stage_1_of_its_own_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers: the second stage 1 goes on until a variant of the first seed has been trained."""
    ended: list[str] = []
    trained = threading.Event()

    def train(job: runs.Job, _: int) -> None:
        if job.name == "second":
            assert trained.wait(PATIENCE_S), "the first seed's variant has not been trained meanwhile"
        ended.append(job.name)
        if job.name == "variant":
            trained.set()

    monkeypatch.setattr(runs, "run_one", train)
    chains = [job("first", tmp_path, job("variant", tmp_path)), job("second", tmp_path, job("last", tmp_path))]
    runs.run_all(chains, 2, title="test")
    assert ended == ["first", "variant", "second", "last"]


def test_only_what_a_seed_lacks_is_trained(setting: runs.Setting) -> None:
    plan = Plan.load(REGISTERED)
    lacking = runs.missing(plan, setting, 1)
    assert [job.name for job in lacking] == [setting.run(name, 1).name for name in plan.variants if name != "ours"]
    assert all(job.then == () for job in lacking)


def test_a_new_stage_1_trains_every_variant_again(setting: runs.Setting) -> None:
    """The run of ours that is there grew from the stage 1 that is about to be replaced."""
    plan = Plan.load(REGISTERED)
    (setting.stage1(2) / "latest/run.json").write_text(json.dumps({"corpus_hash": "of an older corpus"}))
    (first,) = runs.missing(plan, setting, 2)
    assert first.name == setting.stage1(2).name
    assert [job.name for job in first.then] == [setting.run(name, 2).name for name in plan.variants]


@pytest.mark.parametrize(
    ("experiment", "name", "value"),
    [
        ("stage1", "trainer.max_steps", 50),
        ("stage1", "data.train_splits", ["train", "stage1"]),
        ("ours", "trainer.max_steps", 50),
        ("ours", "seed_everything", 2),
        ("ours", "model.init_args.optim.lr", 2e-3),
        ("ours", "model.init_args.adapters.gate.kind", "open"),
        ("ours", "model.init_args.head", None),
        ("ours", "data.limit_images", 64),
        ("ours", "data.gsd_text", "metres"),
        ("ours", "data.train_splits", ["train", "val", "test"]),
        ("ours", "data.controls", {"shuffle_gsd": True}),
        ("ours", "model.init_args.adapters.gate.tiers", False),
        ("ours", "model.init_args.adapters.targets", ["q_proj"]),
        ("ours", "model.init_args.resolver.marginal", False),
        ("ours", "model.init_args.optim.weight_decay", 0.5),
        ("ours", "trainer.limit_test_batches", 20),
    ],
)
def test_what_another_command_made_is_trained_again_and_the_setting_named(
    setting: runs.Setting, capsys: pytest.CaptureFixture[str], experiment: str, name: str, value: object
) -> None:
    """As `make stage2 ARGS=...` leaves it; stage 1 is taken over whole or not at all."""
    plan = Plan.load(REGISTERED)
    path = (setting.stage1(1) if experiment == "stage1" else setting.run("ours", 1)) / "latest/config.yaml"
    config = yaml.safe_load(path.read_text())
    *above, last = name.split(".")
    place = config
    for key in above:
        place = place[key]
    assert place[last] != value
    place[last] = value
    path.write_text(yaml.safe_dump(config))
    lacking = [job.name for job in runs.missing(plan, setting, 1)]
    assert (setting.stage1(1).name if experiment == "stage1" else setting.run("ours", 1).name) in lacking
    assert f"{name} is" in capsys.readouterr().err


def test_runs_of_other_code_are_kept_and_named(setting: runs.Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """An edited gate is no setting: only the reader knows whether it matters."""
    folder = setting.run("ours", 1)
    runs.say_what_is_kept([folder])
    assert "1 finished runs are kept, some trained at None" in (said := capsys.readouterr().err)
    assert "--runs" in said
    (folder / "latest/run.json").write_text(json.dumps({"commit": runs.current_commit()}))
    runs.say_what_is_kept([folder])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["data.num_workers", "trainer.devices", "model.init_args.backbone.source"])
def test_what_changes_no_result_is_not_compared(setting: runs.Setting, name: str) -> None:
    assert name in takeover.CHANGES_NO_RESULT
    assert takeover.first_difference({"a": {"b": 1}, "c": "1e-3"}, {"a": {"b": 1.0, "x": 2}, "c": 1e-3}) is None
    *above, last = name.split(".")
    wanted, found = {last: 1}, {last: 2}
    for key in reversed(above):
        wanted, found = {key: wanted}, {key: found}
    assert takeover.first_difference(wanted, found) is None
