"""Blocks that two ranks hold together: both go on until the last answer of either has ended, and no answer changes.

Without that the rank that is through would leave the other waiting for its part of the next block, for ever.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes.ranks import in_group
from torch.distributed.device_mesh import init_device_mesh
from tree_fakes import IDS, RAGGED, VOCAB, make_batch, sharpen

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.generate import prompts_only, with_a_branch
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.sharding import shard_frozen, shard_model

TOKENS = TokenIds(**IDS, vocab_size=VOCAB)
NEW = 6
ONE, SILENT = [([(4, 4)], [5])], [([(2, 2)], [])]
ASKED = ((RAGGED, SILENT), (ONE, RAGGED))
"""What the two ranks are asked together, first and second."""


def batch_of(turn: int, rank: int) -> TreeBatch:
    return make_batch(ASKED[turn][rank], seed=turn + rank, supervised=False)


def model_of(stage: str, eos: int | None = None) -> ScaleEarth:
    backbone = sharpen(build_backbone(BackboneConfig(), token_ids=TOKENS))
    if eos is not None:
        backbone.generation_config.eos_token_id = eos
    return ScaleEarth(backbone=backbone, adapters=AdapterConfig(rank=6) if stage == "stage2" else None).eval()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_ranks_whose_answers_end_at_different_times(stage: str, tmp_path: Path) -> None:
    places = [(turn, rank) for turn in range(2) for rank in range(2)]
    free = [row for place in places for row in model_of(stage).answer(batch_of(*place), max_new_tokens=NEW)]
    eos = max({t for row in free for t in row}, key=lambda t: len({row.index(t) for row in free if t in row}))
    alone = model_of(stage, eos)
    expected = {place: alone.answer(batch_of(*place), max_new_tokens=NEW) for place in places}
    assert expected[0, 1] == []
    assert max(map(len, expected[1, 0])) != max(map(len, expected[1, 1]))

    def answers(rank: int) -> list[list[list[int]]]:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module = SimpleNamespace(device_mesh=mesh, trainer=SimpleNamespace(strategy=strategy))
        model = model_of(stage, eos)
        if stage == "stage1":
            shard_model(module, model)  # type: ignore[arg-type]
        else:
            shard_frozen(module, model, make_batch(RAGGED))  # type: ignore[arg-type]
        return [model.answer(batch_of(turn, rank), max_new_tokens=NEW) for turn in range(2)]

    found = in_group(answers, tmp_path)
    assert {(turn, rank): found[rank][turn] for turn, rank in places} == expected


def test_a_branch_that_nobody_asked_stands_after_the_last_tree() -> None:
    silent = prompts_only(make_batch([*SILENT, ([(4, 6)], [])]))
    stood_in = with_a_branch(silent)
    assert with_a_branch(stood_in) is stood_in
    assert stood_in.branch_start_B.tolist() == [len(silent.input_ids_T)]
    assert stood_in.tree_of_token_T.tolist() == [*silent.tree_of_token_T.tolist(), 1]
    assert stood_in.position_ids_3T[:, -1].equal(silent.position_ids_3T[:, -1] + 1)
    assert stood_in.input_ids_T[:-1].equal(silent.input_ids_T)
