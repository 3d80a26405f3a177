"""Which K should be the default? Held-out loss at equal questions and at equal time.

A large K answers more questions a second, but a step then sees fewer images. Stage 2 starts from one stage-1 folder and
runs on the project's world with the same tokens a step, adapters and optimizer; only `max_branches` differs. Each K
trains twice: to the same number of questions, and for the seconds that the slowest K took for them, by its own rate.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from bench.ours import LoraShape, quiet_trainer
from bench.timing import now
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.model.backbone import BackboneConfig
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.training.optim import OptimConfig
from scaleearth_pl.training.stage2 import Stage2

TOKENS_PER_STEP = 2_048


def held_out(
    corpus: Path,
    stage1: Path,
    folder: Path,
    lora: LoraShape,
    *,
    ks: tuple[int, ...] = (8, 16, 32, 100),
    n_questions: int = 12_000,
    val_images: int = 100,
    seed: int = 1,
) -> dict[str, Any]:
    """Losses per supervised token of split val, nats, for each K that differs from the one before.

    Args:
        corpus: shards of the world.
        stage1: `hf/` folder of stage 1.
        folder: scratch.
        lora: rank and alpha.
        ks: values of `max_branches`; those above the most questions of an image are one.
        n_questions: trained on in the first of the two runs.
        val_images: images of the held-out split.
        seed: of plan and weights.
    """
    how = {"corpus": corpus, "stage1": stage1, "folder": folder, "lora": lora, "val_images": val_images, "seed": seed}
    distinct = _distinct(corpus, stage1, ks)
    equal = {k: _run(k=k, n_questions=n_questions, **how) for k in distinct}
    slowest = max(point["seconds"] for point in equal.values())
    questions = {k: round(n_questions * slowest / point["seconds"]) for k, point in equal.items()}
    timed = {k: equal[k] if n == n_questions else _run(k=k, n_questions=n, **how) for k, n in questions.items()}
    return {
        "questions": n_questions,
        "seconds": slowest,
        "points": [
            {
                "k": k,
                "mean_k": equal[k]["mean_k"],
                "loss_at_equal_questions": equal[k]["loss"],
                "loss_at_equal_time": timed[k]["loss"],
                "questions_at_equal_time": questions[k],
                "steps": equal[k]["steps"],
            }
            for k in distinct
        ],
    }


def _data(corpus: Path, stage1: Path, k: int, **more: Any) -> GeoScaleDataModule:
    return GeoScaleDataModule(
        root=str(corpus),
        tokenizer=str(stage1),
        global_batch_tokens=TOKENS_PER_STEP,
        max_branches=k,
        min_pixels=1024,
        max_pixels=16384,
        **more,
    )


def _distinct(corpus: Path, stage1: Path, ks: tuple[int, ...]) -> list[int]:
    data = _data(corpus, stage1, max(ks))
    items = data.split_plan("train").items
    most = int((items.last_N - items.first_N).max())
    return [k for i, k in enumerate(ks) if i == 0 or ks[i - 1] < most]


def _run(
    *,
    k: int,
    n_questions: int,
    corpus: Path,
    stage1: Path,
    folder: Path,
    lora: LoraShape,
    val_images: int,
    seed: int,
) -> dict[str, float]:
    data = _data(corpus, stage1, k, seed=seed)
    plan = data.plan_report()
    n_steps = max(1, round(n_questions * plan["steps_per_epoch"] / plan["questions"]))
    pl.seed_everything(seed, verbose=False)
    system = Stage2(
        init_from=str(stage1),
        backbone=BackboneConfig(),
        adapters=AdapterConfig(rank=lora.rank, lora_alpha=lora.lora_alpha),
        head=None,
        resolver=ResolverConfig(),
        optim=OptimConfig(lr=1e-3, final_lr_share=0.05),
    )
    start = now()
    quiet_trainer(folder, n_steps).fit(system, datamodule=data)
    seconds = now() - start
    loss = _loss(system, _data(corpus, stage1, 100, limit_images=val_images).setup_for(0, 1, "validate"))
    mean_k = plan["questions"] / plan["trees"]
    return {"loss": loss, "seconds": seconds, "steps": n_steps, "mean_k": mean_k}


@torch.no_grad()
def _loss(system: Stage2, data: GeoScaleDataModule) -> float:
    total, n = 0.0, 0
    system.model.eval()
    for step in data.val_dataloader():
        for batch in step.micro:
            total += float(system.model(batch).ce_sum)
            n += int(batch.supervised_T.sum())
    return total / n
