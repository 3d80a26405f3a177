"""Two processes with uneven work, one of them idle for a step, train what one process trains.

Stage 1 runs under FSDP2 (the strategy of `stage1.yaml`), stage 2 in 4-bit under DDP, both over gloo on the CPU.
The single process cuts its steps differently too. What is left is the order of fp32 sums, which AdamW lifts where a
gradient is small (it divides by its size), so parameters are compared in norm: after three steps the difference is at
most 1e-4 of the update. Rank 1 is given a folder of its own: whatever it writes would be seen.
"""

import json
from pathlib import Path

import pytest
import torch
from fakes.ranks import run_ranks
from fakes.runs import arguments, fit, make_data, tiny_hf
from safetensors.torch import load_file
from torch import Tensor

UPDATE = 1e-4
STEPS = 3
UNEVEN = ("--data.global_batch_tokens", "300", "--data.micro_token_budget", "280")
UNCUT = ("--data.global_batch_tokens", "300", "--data.micro_token_budget", "1000")
STRATEGY = "scaleearth_pl.training.durable_fsdp.DurableModelParallelStrategy"
AUTO = ("--trainer.strategy.data_parallel_size", "auto", "--trainer.strategy.tensor_parallel_size", "auto")
FSDP2 = ("--trainer.devices", "2", "--trainer.strategy", STRATEGY, *AUTO)
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def folder(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one/` of a single process, `rank0/` and `rank1/` of two."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = []
    for rank in range(2):
        runs = folder / f"rank{rank}"
        stage1 = arguments("stage1", fake_corpus, runs, *UNEVEN, *FSDP2, steps=STEPS)
        stage2 = arguments("stage2", fake_corpus, runs, *UNEVEN, *DDP, steps=STEPS)
        test = ["test", *stage2[1:], "--model.init_args.adapter", str(folder / "rank0/stage2/v0/adapter")]
        test[test.index("--runs_dir") + 1] = str(folder / "rank0")
        commands.append([stage1, stage2, test])
    for rank, (status, output) in enumerate(run_ranks(commands, folder)):
        assert status == 0, f"rank {rank}:\n{output[-4000:]}"
    fit("stage1", fake_corpus, folder / "one", *UNCUT, steps=STEPS)
    fit("stage2", fake_corpus, folder / "one", *UNCUT, "--test_after_fit", "true", steps=STEPS)
    return folder


def both(folder: Path, stage: str, file: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(folder / "rank0" / stage / "v0" / file), load_file(folder / "one" / stage / "latest" / file)


def norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors.values()]).norm())


def minus(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    assert a.keys() == b.keys()
    return {name: a[name] - b[name] for name in a}


def test_the_work_is_uneven_and_once_one_rank_has_none(fake_corpus: Path) -> None:
    cut = {"global_batch_tokens": 300, "micro_token_budget": 280}
    ranks = [make_data(fake_corpus, rank=rank, world_size=2, **cut) for rank in (0, 1)]
    counts = [tuple(data.step_batch(step).n_supervised for data in ranks) for step in range(STEPS)]
    assert all(a != b for a, b in counts)
    assert any(0 in pair for pair in counts)


def test_stage_1_under_fsdp2(folder: Path, fake_corpus: Path) -> None:
    two, one = both(folder, "stage1", "hf/model.safetensors")
    update = minus(one, load_file(tiny_hf(fake_corpus) / "model.safetensors"))
    assert norm(minus(two, one)) < UPDATE * norm(update)


def test_stage_2_under_ddp(folder: Path) -> None:
    two, one = both(folder, "stage2", "adapter/adapter_model.safetensors")
    update = {name: value for name, value in one.items() if "lora_B" in name}
    assert norm(update) > 0.01
    assert norm(minus(two, one)) < UPDATE * norm(update)
    two, one = both(folder, "stage2", "adapter/scaleearth.safetensors")
    assert norm(minus(two, one)) < UPDATE * norm(one)


def test_folders_are_written_once_by_rank_zero_and_whole(folder: Path) -> None:
    assert [path for path in (folder / "rank1").rglob("*") if path.is_file()] == []
    for stage, product in (("stage1", "hf"), ("stage2", "adapter")):
        two, one = folder / "rank0" / stage / "v0", folder / "one" / stage / "latest"
        assert json.loads((two / "run.json").read_text())["world_size"] == 2
        assert {path.name for path in (two / product).iterdir()} == {path.name for path in (one / product).iterdir()}
        texts = [p.name for p in (one / product).iterdir() if p.suffix == ".json" and p.name != "scaleearth.json"]
        assert texts
        for name in texts:
            assert (two / product / name).read_text() == (one / product / name).read_text()


def test_two_processes_answer_every_question_once(folder: Path) -> None:
    two, one = folder / "rank0/stage2/v0", folder / "one/stage2/latest"
    answers = [[json.loads(line) for line in (f / "predictions.jsonl").open()] for f in (two, one)]
    keys = [[(row["image_id"], row["qa_id"]) for row in rows] for rows in answers]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(keys[0]) > 10
    images = [[json.loads(line) for line in (f / "sse_u.jsonl").open()] for f in (two, one)]
    for a, b in zip(*images, strict=True):
        assert (a["image_id"], a["provenance_weight"]) == (b["image_id"], b["provenance_weight"])
        assert (a["mu"], a["sigma"]) == pytest.approx((b["mu"], b["sigma"]), rel=1e-3)
