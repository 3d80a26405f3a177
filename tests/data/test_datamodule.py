import json
import re
import shutil
import zlib
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fakes.corpus import fake_sample, make_fake_corpus, random_image
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn, TrainerState

from scaleearth_pl.core.errors import CheckpointError, ConfigError, QuarantineLimitError, ShardError
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.prepare.write import ShardWriter

ARGS = {"global_batch_tokens": 600, "micro_token_budget": 600, "max_branches": 4, "min_pixels": 1024}


def module(root, **changes):
    return GeoScaleDataModule(root=str(root), **{**ARGS, **changes})


class Recorder(pl.LightningModule):
    """Trains one number by hand and writes down what it was fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.seen, self.asked = [], 0

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward((self.weight - batch.n_supervised).square().sum())
        optimizer.step()
        optimizer.zero_grad()
        ids = tuple(tree.image_id for micro in batch.micro for tree in micro.trees)
        self.seen.append((batch.step, batch.epoch, self.global_step, ids))

    def validation_step(self, batch, batch_idx):
        self.asked += batch.n_questions

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer_of(tmp_path, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        **{"max_epochs": 3, "num_sanity_val_steps": 0, "enable_checkpointing": False, **kwargs},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_fake_corpus(tmp_path_factory.mktemp("dm") / "c", 12, n_stage1=6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_at_any_step_equals_uninterrupted(corpus, tmp_path, num_workers):
    whole = Recorder()
    trainer_of(tmp_path).fit(whole, datamodule=module(corpus))
    steps = module(corpus).setup_for(0, 1).steps_per_epoch
    assert [seen[0] for seen in whole.seen] == list(range(3 * steps))
    assert steps > 3
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer_of(tmp_path, enable_checkpointing=True, callbacks=[saver]).fit(Recorder(), datamodule=module(corpus))
    for stop in range(1, 3 * steps) if num_workers == 0 else [2, steps]:
        again = Recorder()
        trainer_of(tmp_path).fit(
            again, datamodule=module(corpus, num_workers=num_workers), ckpt_path=tmp_path / f"step={stop}.ckpt"
        )
        assert again.seen == whole.seen[stop:]


def test_all_stages_run_and_ask_everything(corpus, tmp_path):
    for stage in ("validate", "test", "predict"):
        recorder, dm = Recorder(), module(corpus)
        getattr(trainer_of(tmp_path), stage)(recorder, datamodule=dm)
        split = "val" if stage == "validate" else "test"
        assert recorder.asked == int(dm.index.number["n_questions"][dm.index.rows((split,))].sum())


def test_no_val_split_means_no_validation(corpus, tmp_path):
    recorder = Recorder()
    trainer_of(tmp_path, max_epochs=1).fit(recorder, datamodule=module(corpus, val_splits=()))
    assert recorder.asked == 0
    assert recorder.seen


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"tier_weights": {"high": 2.0}}, "tier_weights"),
        ({"global_batch_tokens": 700}, "global_batch_tokens"),
        ({"limit_images": 6}, "limit_images"),
        ({"max_pixels": 4096}, "lengths_key"),
    ],
)
def test_a_checkpoint_of_another_plan_is_refused_by_name(corpus, change, field):
    saved = json.loads(json.dumps(module(corpus).setup_for(0, 1).state_dict()))
    module(corpus, num_workers=2, micro_token_budget=900).setup_for(0, 2).load_state_dict(saved)
    late, early = module(corpus, **change).setup_for(0, 1), module(corpus, **change)
    with pytest.raises(CheckpointError, match=field):
        late.load_state_dict(saved)
    early.load_state_dict(saved)
    with pytest.raises(CheckpointError, match=field):
        early.setup_for(0, 1)


def test_a_checkpoint_of_another_corpus_is_refused(corpus, tmp_path):
    saved = module(corpus).setup_for(0, 1).state_dict()
    other = make_fake_corpus(tmp_path / "other", 12, n_stage1=6, seed=1)
    with pytest.raises(CheckpointError, match="index_hash"):
        module(other).setup_for(0, 1).load_state_dict(saved)


def test_compared_variants_read_the_same_plan(corpus):
    plain, *told = (module(corpus, gsd_text=style).setup_for(0, 1) for style in ("none", "metres", "log"))
    for dm in told:
        assert dm.state_dict() == plain.state_dict()
        for step in range(2 * plain.steps_per_epoch):
            a, b = plain.step_batch(step), dm.step_batch(step)
            assert [m.trees for m in a.micro] == [m.trees for m in b.micro]
            assert a.n_supervised == b.n_supervised
            assert b.n_tokens > a.n_tokens
    batch = told[0].step_batch(0).micro[0]
    assert f" GSD: {batch.trees[0].gsd_m:.3g}"[:9] in told[0].processor.tokenizer.decode(batch.input_ids_T)


def test_predicted_gsds_can_be_told(corpus):
    dm = module(corpus, gsd_text="metres").setup_for(0, 1)
    dm.text_gsd_m = dict.fromkeys(dm.index.text["image_id"], 5.0)
    micro = dm.step_batch(0).micro[0]
    assert dm.processor.tokenizer.decode(micro.input_ids_T).count(" GSD: 5.00 m per pixel.") == len(micro.trees)


def test_stages_share_one_tokenizer_that_has_not_seen_test(corpus):
    first, second = module(corpus, train_splits=("stage1",)), module(corpus)
    assert first.tokenizer_dir == second.tokenizer_dir
    assert first.setup_for(0, 1).processor.token_ids == second.setup_for(0, 1).processor.token_ids
    assert first.step_batch(0).micro[0].trees[0].image_id.startswith("stage1")
    assert module(corpus, tokenizer=str(first.tokenizer_dir)).processor.token_ids == first.processor.token_ids


def test_a_tree_over_the_budget_names_image_and_remedy(corpus):
    with pytest.raises(ConfigError, match=r"\.tar#.*micro_token_budget.*lower max_branches"):
        module(corpus, micro_token_budget=110).setup_for(0, 1)
    with pytest.raises(ConfigError, match=r"\.tar#.*lower max_pixels or max_branch_tokens.*alone take"):
        module(corpus, micro_token_budget=20).setup_for(0, 1)


@pytest.fixture(scope="module")
def odd_corpus(tmp_path_factory):
    """Every third image has one question, too long; every third is four times the pixel budget; the others are plain."""
    root = tmp_path_factory.mktemp("odd") / "c"
    rng = np.random.default_rng(0)
    with ShardWriter(root, corpus="odd", samples_per_shard=4) as writer:
        for number in range(9):
            size = (128, 128) if number % 3 == 1 else (64, 64)
            sample = fake_sample(number, size=size, n_questions=1 if number % 3 == 0 else 5)
            if number % 3 == 0:
                sample = replace(sample, qas=(replace(sample.qas[0], question="very " * 60),))
            writer.write(sample, random_image(rng, *size), "png")
    return root


def test_images_left_without_questions_and_too_large_ones_are_counted_and_never_in_the_way(odd_corpus):
    dm = module(odd_corpus, max_pixels=64 * 64, val_splits=(), max_branch_tokens=24).setup_for(0, 1)
    report = dm.plan_report()
    assert (report["images"], report["dropped_images"], report["reduced_images"]) == (6, 3, 3)
    assert report["dropped_questions"] > 0
    steps = [dm.step_batch(step) for step in range(dm.steps_per_epoch)]
    trees = [tree.image_id for step in steps for micro in step.micro for tree in micro.trees]
    assert len(set(trees)) == 6
    assert sum(step.n_questions for step in steps) == report["questions"]
    assert sum(step.n_dropped_branches for step in steps) + report["dropped_images"] == report["dropped_questions"]
    assert {int(g.prod()) for step in steps for micro in step.micro for g in micro.image_grid_I3} == {16}


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_no_question_of_an_evaluation_is_left_out(odd_corpus, stage):
    """The accuracy of the rest would be called that of the split."""
    splits = dict.fromkeys(("val_splits", "test_splits", "predict_splits"), ("train",))
    with pytest.raises(
        ConfigError, match=r"19 questions of an evaluation.*max_branch_tokens.*raise it to \d+"
    ) as caught:
        module(odd_corpus, max_branch_tokens=24, **splits).setup_for(0, 1, stage)
    enough = int(re.search(r"raise it to (\d+)", str(caught.value))[1])
    dm = module(odd_corpus, max_branch_tokens=enough, **splits).setup_for(0, 1, stage)
    assert all(row["dropped_questions"] == 0 for row in dm.books().values())
    with pytest.raises(ConfigError, match=r"1 questions"):
        module(odd_corpus, max_branch_tokens=enough - 1, **splits).setup_for(0, 1, stage)


def test_a_corpus_without_any_question_is_refused_before_step_0(odd_corpus):
    with pytest.raises(ConfigError, match="no image is left"):
        module(odd_corpus, val_splits=(), max_branch_tokens=1).setup_for(0, 1)


def test_limit_images_keeps_all_tiers(corpus):
    report = module(corpus, limit_images=6).setup_for(0, 1).plan_report()
    assert report["images"] == 6
    assert set(report["by_tier"]) == {"high", "mid", "low"}
    with pytest.raises(ConfigError, match="limit_images"):
        module(corpus, limit_images=0)


def test_the_report_counts_what_is_planned_and_dropped(corpus):
    report = (
        module(corpus, max_branch_tokens=30, tier_weights={"low": 2.0}, min_pixels=96 * 96, val_splits=())
        .setup_for(0, 1)
        .plan_report()
    )
    dm = module(corpus).setup_for(0, 1)
    everything = int(dm.index.number["n_questions"][dm.index.rows(("train",))].sum())
    assert report["questions"] + report["dropped_questions"] == everything
    assert report["dropped_questions"] > 0
    assert report["enlarged_images"] == 12
    assert report["by_tier"]["low"]["readings_per_epoch"] == 2.0
    assert 0 < report["padding_share"] < 0.7
    assert json.loads(json.dumps(report)) == report
    assert dm.plan_report()["dropped_questions"] == 0


def test_the_report_counts_readings_by_tier_and_source(corpus):
    dm = module(corpus, tier_weights={"low": 2.0}, source_weights={"fake": 3.0}).setup_for(0, 1)
    by_tier = dm.plan_report()["by_tier"]
    assert {tier: row["readings_per_epoch"] for tier, row in by_tier.items()} == {"high": 3, "mid": 3, "low": 6}


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"loader_timeout_s": 0.0}, {"loader_timeout_s": float("inf")}])
def test_a_loader_that_could_wait_for_ever_is_refused(corpus, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        module(corpus, **wrong)


def test_a_cut_shard_stops_before_step_0(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path / "c")
    path = next((root / "train").rglob("*.tar"))
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match="size"):
        module(root).setup_for(0, 1)


@pytest.mark.parametrize("forged", [b"0.0", b"-.3", b"NaN", b"1e9", b"1e0"])
def test_impossible_gsds_never_reach_a_batch(corpus, tmp_path, forged):
    root = shutil.copytree(corpus, tmp_path / "c", ignore=shutil.ignore_patterns(".cache"))
    document = json.loads((root / "index.json").read_text())
    entry = next(e for e in document["shards"] if e["file"] == "train/high/00000.tar")
    data = bytearray((root / entry["file"]).read_bytes())
    start, size = entry["samples"]["json_offset"][0], entry["samples"]["json_size"][0]
    text = bytes(data[start : start + size]).replace(b'"gsd_m_native":0.3', b'"gsd_m_native":' + forged)
    data[start : start + size] = text
    entry["samples"]["json_crc32"][0] = zlib.crc32(text)
    (root / entry["file"]).write_bytes(data)
    (root / "index.json").write_text(json.dumps(document))
    with pytest.raises(QuarantineLimitError, match="1 of 12"):
        module(root).setup_for(0, 1)
    dm = module(root, max_bad_share=0.1).setup_for(0, 1)
    seen = {tree.image_id for s in range(dm.steps_per_epoch) for m in dm.step_batch(s).micro for tree in m.trees}
    assert len(seen) == 11
    assert entry["samples"]["image_id"][0] not in seen


def test_bad_json_found_while_measuring_counts_against_the_share(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path / "c", ignore=shutil.ignore_patterns(".cache"))
    dm = module(root)
    row = int(dm.index.rows(("train",))[0])
    path = root / dm.index.shards[dm.index.shard_of_row[row]].file
    data = bytearray(path.read_bytes())
    data[int(dm.index.number["json_offset"][row])] ^= 1
    path.write_bytes(data)
    with pytest.raises(QuarantineLimitError, match="1 of 12"):
        dm.setup_for(0, 1)
    report = module(root, max_bad_share=0.1).setup_for(0, 1).plan_report()
    assert report["quarantined_images"] == 1
    assert report["images"] == 11


@pytest.fixture
def rotten(corpus, tmp_path):
    """The corpus with one JSON member altered on the disk, and nothing derived from it yet."""
    root = shutil.copytree(corpus, tmp_path / "rotten", ignore=shutil.ignore_patterns("lengths-*"))
    index = ShardIndex.load(root)
    row = int(index.rows(("train",))[0])
    path = root / index.shards[index.shard_of_row[row]].file
    data = bytearray(path.read_bytes())
    data[int(index.number["json_offset"][row])] ^= 1
    path.write_bytes(data)
    return root


def test_a_resumed_run_that_could_measure_fewer_samples_is_refused(corpus, rotten):
    whole = module(corpus, max_bad_share=0.1).setup_for(0, 1)
    holed = module(rotten, max_bad_share=0.1).setup_for(0, 1)
    assert holed.index.hash == whole.index.hash
    assert [*holed.split_plan("train").plan.step_items(0)] != [*whole.split_plan("train").plan.step_items(0)]
    for saved, now in ((whole, holed), (holed, whole)):
        with pytest.raises(CheckpointError, match="rejected_samples"):
            now.load_state_dict(saved.state_dict())
    holed.load_state_dict(holed.state_dict())


class TwoRanks:
    """What a trainer of two ranks lets a datamodule see, and the other rank's word."""

    world_size, global_rank, state = 2, 0, TrainerState(fn=TrainerFn.FITTING)

    def __init__(self, first=None, others_agree=True):
        self.strategy, self.first, self.others_agree = self, first, others_agree

    def broadcast(self, facts):
        self.facts = facts
        return self.first or facts

    def reduce_boolean_decision(self, decision, all=True):
        return decision and self.others_agree


def set_up_as(trainer, root):
    dm = module(root, max_bad_share=0.1)
    dm.trainer = trainer
    dm.prepare_data()
    dm.setup("fit")
    return trainer.facts


def test_ranks_whose_copies_differ_are_refused_on_every_rank(corpus, rotten):
    facts = set_up_as(TwoRanks(), corpus)
    assert set_up_as(TwoRanks(first=facts), corpus) == facts
    with pytest.raises(ShardError, match="train"):
        set_up_as(TwoRanks(first=facts), rotten)
    with pytest.raises(ShardError, match="another rank"):
        set_up_as(TwoRanks(others_agree=False), corpus)
