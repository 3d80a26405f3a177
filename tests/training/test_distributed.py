"""Two processes with uneven work, one of them idle for a step, train what one process trains.

Stage 1 runs under FSDP2 (the strategy of `stage1.yaml`), stage 2 in 4-bit under DDP and with its base sharded, all over
gloo on the CPU. The single process cuts its steps differently too. What is left is the order of fp32 sums, which AdamW
lifts where a gradient is small (it divides by its size), so parameters are compared in norm: after three steps the
difference is at most 1e-4 of the update. Rank 1 is given a folder of its own: whatever it writes would be seen.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from fakes.ranks import run_ranks
from fakes.runs import EXPERIMENTS, UNDRAWN, arguments, fit, make_data, shallow_hf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

UPDATE, CURVE, BF16 = 1e-4, 1e-3, 2e-2
STEPS = 3
STAGE_OF = {"stage1": "stage1", "stage2": "stage2", "sharded": "stage2"}
"""The single process's run by the name of the two processes' run."""
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/scaleearth.safetensors")
pytestmark = pytest.mark.slow
CURVES = ("train/loss_total", "train/gsd_nll", "train/grad_norm/", "train/calibration_ratio")
UNEVEN = ("--data.global_batch_tokens", "300", "--data.micro_token_budget", "280")
UNCUT = ("--data.global_batch_tokens", "300", "--data.micro_token_budget", "1000")
STRATEGY = "scaleearth_pl.training.durable_fsdp.DurableModelParallelStrategy"
AUTO = ("--trainer.strategy.data_parallel_size", "auto", "--trainer.strategy.tensor_parallel_size", "auto")
FSDP2 = ("--trainer.devices", "2", "--trainer.strategy", STRATEGY, *AUTO)
GATHERED = (*FSDP2, "--trainer.strategy.save_distributed_checkpoint", "false")
SEVERAL = {"global_batch_tokens": 900, "micro_token_budget": 280}
MIXED = ("--trainer.precision", "bf16-mixed", "--data.global_batch_tokens", str(SEVERAL["global_batch_tokens"]))
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def folder(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one/` of a single process, `rank0/` and `rank1/` of two; `start/` holds stage 2 before its first step."""
    folder = tmp_path_factory.mktemp("ranks")
    commands, every_step = [], calibrated_every_step(folder)
    for rank in range(2):
        runs = folder / f"rank{rank}"
        stage1 = arguments("stage1", fake_corpus, runs, *UNEVEN, *FSDP2, steps=STEPS)
        stage2 = arguments("stage2", fake_corpus, runs, *every_step, *UNEVEN, *DDP, steps=STEPS)
        gathered = (*every_step, *UNEVEN, *GATHERED)
        sharded = arguments("stage2", fake_corpus, runs, *gathered, steps=STEPS, experiment="sharded")
        test = ["test", *stage2[1:], "--model.init_args.adapter", str(folder / "rank0/stage2/v0/adapter")]
        test[test.index("--runs_dir") + 1] = str(folder / "rank0")
        cut = ("--data.micro_token_budget", str(SEVERAL["micro_token_budget"]))
        mixed = arguments("stage1", fake_corpus, runs, *FSDP2, *MIXED, *cut, steps=STEPS, experiment="mixed")
        commands.append([stage1, stage2, sharded, test, mixed])
    for rank, (status, output) in enumerate(run_ranks(commands, folder)):
        assert status == 0, f"rank {rank}:\n{output[-4000:]}"
    fit("stage1", fake_corpus, folder / "one", *UNCUT, steps=STEPS)
    fit("stage1", fake_corpus, folder / "mixed", *MIXED, "--data.micro_token_budget", "2000", steps=STEPS)
    fit("stage2", fake_corpus, folder / "one", *every_step, *UNCUT, "--test_after_fit", "true", steps=STEPS)
    no_step = ("--model.init_args.optim.lr", "1.0e-30")
    fit("stage2", fake_corpus, folder / "start", *UNCUT, *no_step, *UNDRAWN, steps=1)
    return folder


def calibrated_every_step(folder: Path) -> tuple[str, str]:
    """Stage 2's callbacks, with a calibration that has a point in three steps."""
    callbacks = yaml.safe_load((EXPERIMENTS / "stage2.yaml").read_text())["trainer"]["callbacks"]
    (calibration,) = (c for c in callbacks if c["class_path"].endswith(".Calibration"))
    calibration["init_args"] = {"every_n_steps": 1}
    overlay = folder / "every_step.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return "-c", str(overlay)


def of_two(folder: Path, experiment: str) -> Path:
    return folder / "rank0" / experiment / "v0"


def of_one(folder: Path, experiment: str) -> Path:
    return folder / "one" / STAGE_OF[experiment] / "latest"


def curves(run: Path) -> dict[str, list[float]]:
    """Losses and gradient norms of every step, as the board has them."""
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(CURVES)]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


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
    start = load_file(shallow_hf(fake_corpus) / "model.safetensors")
    two, one = (load_file(run(folder, "stage1") / "hf/model.safetensors") for run in (of_two, of_one))
    assert norm(minus(two, one)) < UPDATE * norm(minus(one, start))


def test_stage_1_under_fsdp2_in_bf16_mixed_has_the_gradients_of_all_its_micro_batches(
    folder: Path, fake_corpus: Path
) -> None:
    """A cache of autocast's copies would leave out all but the first (two thirds of the gradient; Lightning has none)."""
    assert len(make_data(fake_corpus, rank=0, world_size=2, **SEVERAL).step_batch(0).micro) > 1
    two, one = curves(folder / "rank0/mixed/v0"), curves(folder / "mixed/stage1/latest")
    for tag in ("train/loss_total", "train/grad_norm/model"):
        assert len(one[tag]) == STEPS
        assert two[tag] == pytest.approx(one[tag], rel=BF16), tag


@pytest.mark.parametrize("experiment", ["stage2", "sharded"])
@pytest.mark.parametrize("file", ADAPTER)
def test_stage_2_under_ddp_and_fsdp2(folder: Path, experiment: str, file: str) -> None:
    start = load_file(folder / "start/stage2/latest" / file)
    two, one = (load_file(run(folder, experiment) / file) for run in (of_two, of_one))
    assert norm(minus(one, start)) > 0.01
    assert norm(minus(two, one)) < UPDATE * norm(minus(one, start))


@pytest.mark.parametrize("experiment", STAGE_OF)
def test_losses_and_gradients_are_those_of_one_process(folder: Path, experiment: str) -> None:
    """Of the gradients their size, too: what AdamW makes of them does not depend on it."""
    two, one = curves(of_two(folder, experiment)), curves(of_one(folder, experiment))
    groups = {"model"} if experiment == "stage1" else {"adapters", "thresholds", "sse_u"}
    assert {"train/loss_total", *(f"train/grad_norm/{group}" for group in groups)} <= two.keys() == one.keys()
    assert ("train/calibration_ratio" in one) == (experiment != "stage1")
    for tag, values in one.items():
        assert len(values) == STEPS
        assert two[tag] == pytest.approx(values, rel=CURVE), tag


def test_folders_are_written_once_by_rank_zero_and_whole(folder: Path) -> None:
    assert [path for path in (folder / "rank1").rglob("*") if path.is_file()] == []
    for stage, product in (("stage1", "hf"), ("stage2", "adapter")):
        two, one = of_two(folder, stage), of_one(folder, stage)
        assert json.loads((two / "run.json").read_text())["world_size"] == 2
        assert {path.name for path in (two / product).iterdir()} == {path.name for path in (one / product).iterdir()}
        texts = [p.name for p in (one / product).iterdir() if p.suffix == ".json" and p.name != "scaleearth.json"]
        assert texts
        for name in texts:
            assert (two / product / name).read_text() == (one / product / name).read_text()


def test_two_processes_answer_every_question_once(folder: Path) -> None:
    two, one = of_two(folder, "stage2"), of_one(folder, "stage2")
    answers = [[json.loads(line) for line in (f / "predictions.jsonl").open()] for f in (two, one)]
    keys = [[(row["image_id"], row["qa_id"]) for row in rows] for rows in answers]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(keys[0]) > 10
    assert [row["correct"] for row in answers[0]] == [row["correct"] for row in answers[1]]
    images = [[json.loads(line) for line in (f / "sse_u.jsonl").open()] for f in (two, one)]
    for a, b in zip(*images, strict=True):
        assert (a["image_id"], a["provenance_weight"]) == (b["image_id"], b["provenance_weight"])
        assert (a["mu"], a["sigma"]) == pytest.approx((b["mu"], b["sigma"]), rel=1e-3)
