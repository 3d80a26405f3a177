"""Controls on the training data: what they change, and that they change nothing else."""

from collections import Counter
from pathlib import Path

import pytest
from fakes.corpus import make_fake_corpus

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.data.controls import Controls, scale_donors
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.shards import ShardIndex

ARGS = {"global_batch_tokens": 1200, "micro_token_budget": 700, "max_branches": 4, "min_pixels": 1024, "seed": 3}
SHUFFLED = Controls(shuffle_gsd=True)
UNCONDITIONED = Controls(without_families=("scale_specific", "discriminative"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("controls") / "c"
    return make_fake_corpus(root, 30, n_val=7, n_stage1=9, with_unknown=True, ragged=False)


def module(root: Path, controls: Controls | None = None, **changes) -> GeoScaleDataModule:
    return GeoScaleDataModule(root=str(root), controls=controls, **{**ARGS, **changes}).setup_for(0, 1)


def known(sigma) -> float | None:
    """None for the NaN of an unknown GSD, which would not equal itself."""
    return None if sigma.isnan() else float(sigma)


def epoch(dm: GeoScaleDataModule, kind="train") -> list:
    """(image, GSD, sigma, trust, questions) of every tree that a pass over the split reads, in order."""
    dataset = dm.dataset(kind)
    return [
        (tree.image_id, tree.gsd_m, known(micro.sigma_log10_G[g]), float(micro.nll_weight_G[g]),
         tuple((b.qa_id, b.family) for b in micro.branches if b.tree == g))
        for step in range(len(dataset))
        for micro in dataset[step].micro
        if not micro.is_filler
        for g, tree in enumerate(micro.trees)
    ]  # fmt: skip


def told(dm: GeoScaleDataModule, kind="train") -> dict[str, tuple]:
    """What each image is told: GSD, sigma, trust."""
    return {image: tuple(scale) for image, *scale, _ in epoch(dm, kind)}


def test_a_shuffle_moves_every_known_gsd_and_keeps_their_multiset(corpus: Path) -> None:
    true, shuffled = told(module(corpus)), told(module(corpus, SHUFFLED))
    assert true.keys() == shuffled.keys()
    assert Counter(true.values()) == Counter(shuffled.values())
    unknown = {image for image, (gsd_m, *_) in true.items() if gsd_m is None}
    assert unknown
    assert unknown == {image for image, (gsd_m, *_) in shuffled.items() if gsd_m is None}
    moved = [image for image in true if true[image][0] != shuffled[image][0]]
    assert len(moved) >= len(true) / 3  # a third of the images may be given an equal GSD: there are three of them


def test_a_shuffle_changes_only_what_is_told(corpus: Path) -> None:
    """Same images, same questions, same order."""
    keys = [[(image, asked) for image, *_, asked in epoch(module(corpus, c))] for c in (None, SHUFFLED)]
    assert keys[0] == keys[1]


def test_a_shuffle_touches_no_other_split(corpus: Path) -> None:
    for kind in ("val", "test"):
        assert told(module(corpus), kind) == told(module(corpus, SHUFFLED), kind)


def test_a_shuffle_is_a_function_of_the_seed(corpus: Path) -> None:
    once, again, other = (told(module(corpus, SHUFFLED, seed=seed)) for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_donors_are_one_cycle_inside_each_split(corpus: Path) -> None:
    index = ShardIndex.load(corpus)
    rows = index.rows(("train", "stage1"))
    donors = scale_donors(index, rows, seed=1)
    known = [row for row in rows.tolist() if index.tier_of_row(row) is not Tier.UNKNOWN]
    assert sorted(donors) == sorted(donors.values()) == sorted(known)
    for row, donor in donors.items():
        assert row != donor
        assert index.shards[index.shard_of_row[row]].split == index.shards[index.shard_of_row[donor]].split
    first = row = next(iter(donors))
    steps = 1
    while (row := donors[row]) != first:
        steps += 1
    split = index.shards[index.shard_of_row[first]].split
    assert steps == sum(index.shards[index.shard_of_row[r]].split == split for r in known)


def test_a_limited_shuffle_stays_among_the_images_that_are_read(corpus: Path) -> None:
    true, shuffled = (told(module(corpus, c, limit_images=11)) for c in (None, SHUFFLED))
    assert Counter(true.values()) == Counter(shuffled.values())


def test_one_image_cannot_be_shuffled(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="second image"):
        module(corpus, SHUFFLED, limit_images=1)


def test_families_left_out_are_never_asked_and_all_others_are(corpus: Path) -> None:
    everything, rest = (
        [(i, q) for i, *_, asked in epoch(module(corpus, c)) for q in asked] for c in (None, UNCONDITIONED)
    )
    assert Counter(rest) == Counter((i, q) for i, q in everything if q[1] == "identification")
    assert 0 < len(rest) < len(everything)


def test_the_plan_counts_what_is_asked(corpus: Path) -> None:
    dm = module(corpus, UNCONDITIONED)
    report = dm.plan_report()
    asked = [q for *_, questions in epoch(dm) for q in questions]
    assert report["questions"] == len(asked)
    assert report["dropped_questions"] == 0
    lengths_Q = sorted(dm.split_plan("train").lengths.branch_Q.tolist())
    tight = module(corpus, UNCONDITIONED, max_branch_tokens=lengths_Q[len(lengths_Q) // 2], val_splits=())
    assert 0 < tight.plan_report()["dropped_questions"] < len(asked)
    assert tight.plan_report()["questions"] + tight.plan_report()["dropped_questions"] == len(asked)


def test_left_out_families_are_still_asked_in_tests(corpus: Path) -> None:
    for kind in ("val", "test"):
        assert epoch(module(corpus), kind) == epoch(module(corpus, UNCONDITIONED), kind)
        asked = {family for *_, questions in epoch(module(corpus, UNCONDITIONED), kind) for _, family in questions}
        assert asked == {"identification", "scale_specific", "discriminative"}


def test_no_control_is_the_default(corpus: Path) -> None:
    assert told(module(corpus)) == told(module(corpus, Controls()))
    assert module(corpus).state_dict() == module(corpus, Controls()).state_dict()


@pytest.mark.parametrize("controls", [SHUFFLED, UNCONDITIONED])
def test_a_checkpoint_of_another_control_is_refused(corpus: Path, controls: Controls) -> None:
    plain, controlled = module(corpus), module(corpus, controls)
    controlled.load_state_dict(module(corpus, controls).state_dict())
    for saved, now in ((plain, controlled), (controlled, plain)):
        with pytest.raises(CheckpointError, match="controls"):
            now.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (("scale-specific",), "unknown family"),
        (("identification", "scale_specific", "discriminative", "other"), "no question"),
    ],
)
def test_a_wrong_family_is_refused(families: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Controls(without_families=families)


def test_a_control_that_changes_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        module(corpus, Controls(without_families=("other",)))
