"""Sample accounting: the multiset of (epoch, image, question) that is planned, and the one that is delivered."""

from collections import Counter
from pathlib import Path
from typing import Any

from legs import EPOCH, Run

EPOCHS = 2

Read = Counter[tuple[int, str, str]]
"""How often a question of an image was read in an epoch."""


def planned(corpus: Path) -> Read:
    """What the plan says, item by item, without a loader."""
    from fakes.runs import make_data

    from scaleearth_pl.data.shards import ShardReader

    data = make_data(corpus)
    split = data.split_plan("train")
    reader, found = ShardReader(data.index), Counter()
    for step in range(EPOCHS * data.steps_per_epoch):
        for item in split.plan.step_items(step).tolist():
            sample = reader.read_sample(int(split.items.row_N[item]))
            for question in split.items.questions(item):
                found[step // data.steps_per_epoch, sample.image_id, sample.qas[question].id] += 1
    return found


def delivered(corpus: Path, world: int, *, resumed: bool, workers: int) -> Read:
    """What the loaders of `world` ranks give; `resumed`: half the ranks up to step 4, the whole world from there."""
    legs = [(max(1, world // 2), 0, 4), (world, 4, 2 * EPOCH)] if resumed else [(world, 0, 2 * EPOCH)]
    found: Read = Counter()
    for ranks, begin, end in legs:
        for rank in range(ranks):
            found += _read_by(corpus, rank, ranks, begin, end, workers)
    return found


def _read_by(corpus: Path, rank: int, world: int, begin: int, end: int, workers: int) -> Read:
    from fakes.runs import make_data

    data, found, step = make_data(corpus, rank=rank, world_size=world, num_workers=workers), Counter(), begin
    assert data.steps_per_epoch == EPOCH
    while step < end:
        data.start_step = step
        for batch in data.train_dataloader():
            if step == end:
                break
            assert batch.step == step, "another step than the position says"
            step += 1
            for micro in (m for m in batch.micro if not m.is_filler):
                found.update((batch.epoch, micro.trees[b.tree].image_id, b.qa_id) for b in micro.branches)
    return found


def delivered_by(run: Run) -> Read:
    """What a real run read, all ranks together; a step that was taken again after a kill counts once, as it trained."""
    found: Read = Counter()
    for rank in range(run.world):
        for step, micros in run.stream(rank).items():
            for tree in (t for micro in micros if not micro["filler"] for t in micro["trees"]):
                found.update((step // EPOCH, tree[0], qa) for qa in tree[1:] if step < EPOCHS * EPOCH)
    return found


def compare(expected: Read, found: Read) -> dict[str, Any]:
    """Counts of what is missing and of what is too much."""
    return {
        "delivered": found.total(),
        "lost": (expected - found).total(),
        "duplicated": (found - expected).total(),
    }
