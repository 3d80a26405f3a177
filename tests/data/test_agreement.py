"""Two ranks whose copies of a corpus differ: both stop, before either waits for the other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.corpus import make_fake_corpus
from fakes.ranks import in_group
from fakes.runs import DATA, make_data
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from scaleearth_pl.core.errors import ScaleEarthError, ShardError
from scaleearth_pl.data import agreement
from scaleearth_pl.data.agreement import raise_together, refuse_different_plans
from scaleearth_pl.data.datamodule import GeoScaleDataModule


def trainer_of(rank: int) -> Any:
    """What is asked of a Trainer of two ranks, with Lightning's own strategy."""
    environment = LightningEnvironment()
    environment.set_world_size(2)
    environment.set_global_rank(rank)
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2, cluster_environment=environment)
    return SimpleNamespace(world_size=2, strategy=strategy, node_rank=0, is_global_zero=rank == 0)


@pytest.fixture(scope="module")
def copies(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same corpus, but for its samples."""
    return fake_corpus, make_fake_corpus(tmp_path_factory.mktemp("other") / "corpus", seed=1)


@pytest.mark.parametrize("same", [True, False])
def test_both_ranks_refuse_plans_that_differ(copies: tuple[Path, Path], tmp_path: Path, same: bool) -> None:
    facts = [make_data(copy).split_plan("train").lengths.facts for copy in copies]

    def told(rank: int) -> str:
        mine = {"train": facts[0 if same else rank], "val": facts[0]}
        try:
            refuse_different_plans(trainer_of(rank), mine)
        except ShardError as error:
            return str(error)
        return ""

    messages = in_group(told, tmp_path)
    if same:
        assert messages == ["", ""]
        return
    assert all("ranks would read different plans" in message for message in messages)
    assert "differs on another rank" in messages[0]
    assert all(words in messages[1] for words in ("'train'", facts[0]["lengths_key"], facts[1]["lengths_key"]))


def test_what_one_rank_cannot_plan_stops_both(copies: tuple[Path, Path], tmp_path: Path) -> None:
    """The other would wait in the next collective, before any watch of peers has begun."""

    def told(rank: int) -> str:
        root = (copies[0], tmp_path / "not copied to this node")[rank]
        data = GeoScaleDataModule(root=str(root), cache_dir=str(tmp_path / f"cache{rank}"), **DATA)
        data.trainer = trainer_of(rank)
        data.trainer.state, data.trainer.global_rank = SimpleNamespace(fn=None), rank
        data.prepare_data()
        try:
            data.setup("fit")
        except ScaleEarthError as error:
            return str(error)
        return ""

    well, missing = in_group(told, tmp_path)
    assert "another rank cannot plan" in well
    assert "not copied to this node" in missing


@pytest.mark.parametrize(("second", "node_rank", "said"), [("cut", 0, True), ("cut", 1, False), ("torn", 0, False)])
def test_one_screen_is_told_once(tmp_path: Path, second: str, node_rank: int, said: bool) -> None:
    def told(rank: int) -> bool:
        trainer = trainer_of(rank)
        trainer.node_rank = node_rank * rank
        try:
            raise_together(trainer, ShardError(("cut", second)[rank]), elsewhere="")
        except ShardError as error:
            return error.said
        return False

    assert in_group(told, tmp_path) == [False, said]


def test_the_budget_is_that_of_the_rank_with_the_least_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def agreed(rank: int) -> int:
        monkeypatch.setattr(agreement, "auto_token_budget", lambda device: (9000, 4000)[rank])
        return agreement.agreed_budget(trainer_of(rank), "auto")

    assert in_group(agreed, tmp_path) == [4000, 4000]


@pytest.mark.parametrize("problem", [None, ShardError("cut")])
def test_alone_nobody_is_asked(problem: ShardError | None) -> None:
    if problem is None:
        raise_together(None, None, elsewhere="")
    else:
        with pytest.raises(ShardError, match="cut"):
            raise_together(None, problem, elsewhere="")
