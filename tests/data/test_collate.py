import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes.corpus import fake_sample
from PIL import Image
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from scaleearth_pl.core.batch import IGNORE
from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.data.collate import collate, encode_tree, gate_draw
from scaleearth_pl.data.processor import Processor, gsd_prompt
from scaleearth_pl.data.tokenizer import load_tokenizer, train_tiny_tokenizer


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    texts = [qa.question + qa.answer for n in range(20) for qa in fake_sample(n).qas]
    texts += [gsd_prompt(v, "metres") for v in np.geomspace(0.01, 100, 99)]
    folder = train_tiny_tokenizer(texts, tmp_path_factory.mktemp("tok") / "t")
    return Processor(load_tokenizer(folder), min_pixels=1024, max_pixels=128 * 128)


def tree_of(processor, number, *, size=(64, 96), n_images=1, n_questions=3, **kwargs):
    sample = fake_sample(number, size=size, n_questions=n_questions, **kwargs)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = [processor.image(Image.fromarray(pixels))] * n_images
    return encode_tree(sample, images, sample.qas, processor, boundaries=TierBoundaries())


@pytest.fixture(scope="module")
def rope_index(processor):
    ids = processor.token_ids
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": ids.vocab_size,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [],
        },
        image_token_id=ids.image_pad,
        vision_start_token_id=ids.vision_start,
    )
    model = Qwen3VLModel(config)

    def positions(input_ids, grids):
        types = (input_ids == ids.image_pad).int()[None]
        return model.get_rope_index(input_ids[None], mm_token_type_ids=types, image_grid_thw=grids)[0][:, 0]

    return positions


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (128, 32)])
@pytest.mark.parametrize("n_images", [1, 2])
def test_one_question_has_qwens_positions(processor, rope_index, size, n_images):
    batch = collate([tree_of(processor, 0, size=size, n_images=n_images, n_questions=1)])
    assert torch.equal(batch.position_ids_3T, rope_index(batch.input_ids_T, batch.image_grid_I3))


def test_every_branch_has_the_positions_it_has_alone(processor, rope_index):
    batch = collate([tree_of(processor, n, n_questions=2 + n) for n in range(3)])
    for b in range(len(batch.branches)):
        g = int(batch.tree_of_branch_B[b])
        prefix = torch.arange(int(batch.prefix_len_G[g])) + batch.prefix_start_G[g]
        branch = torch.arange(int(batch.branch_len_B[b])) + batch.branch_start_B[b]
        alone = torch.cat([prefix, branch])
        grids = batch.image_grid_I3[batch.tree_of_image_I == g]
        assert torch.equal(batch.position_ids_3T[:, alone], rope_index(batch.input_ids_T[alone], grids))


def test_the_stream_is_covered_once_and_in_order(processor):
    trees = [tree_of(processor, n, n_questions=1 + n) for n in range(4)]
    batch = collate(trees)
    starts = [*batch.prefix_start_G.tolist(), *batch.branch_start_B.tolist()]
    lengths = [*batch.prefix_len_G.tolist(), *batch.branch_len_B.tolist()]
    covered = sorted(t for start, length in zip(starts, lengths, strict=True) for t in range(start, start + length))
    assert covered == list(range(len(batch.input_ids_T)))
    assert torch.equal(batch.tree_of_token_T, torch.repeat_interleave(torch.tensor([t.n_tokens for t in trees])))
    assert batch.max_prefix_len == int(batch.prefix_len_G.max())
    assert batch.max_branch_len == int(batch.branch_len_B.max())
    assert [b.tree for b in batch.branches] == batch.tree_of_branch_B.tolist()
    assert len(batch.pixel_values_PD) == int(batch.image_grid_I3.prod(1).sum())
    n_image_tokens = int((batch.input_ids_T == processor.image_token_id).sum())
    assert n_image_tokens == len(batch.pixel_values_PD) // 4


def test_targets_are_the_answers_at_the_predicting_positions(processor):
    batch = collate([tree_of(processor, n) for n in range(2)])
    for b, info in enumerate(batch.branches):
        span = slice(int(batch.branch_start_B[b]), int(batch.branch_start_B[b] + batch.branch_len_B[b]))
        ids, targets = batch.input_ids_T[span], batch.target_ids_T[span]
        supervised = (targets != IGNORE).nonzero()[:, 0]
        assert torch.equal(targets[supervised], ids[supervised + 1])
        text = processor.tokenizer.decode(targets[supervised])
        assert text == info.answer + "<|im_end|>"
        assert supervised[-1] == len(ids) - 2
    prefixes = torch.ones(len(batch.input_ids_T), dtype=torch.bool)
    for start, length in zip(batch.branch_start_B.tolist(), batch.branch_len_B.tolist(), strict=True):
        prefixes[start : start + length] = False
    assert not batch.supervised_T[prefixes].any()


def test_gsd_is_that_of_the_seen_pixels(processor):
    batch = collate([tree_of(processor, 0, size=(256, 256), gsd_m=0.7), tree_of(processor, 1, size=(64, 96))])
    assert batch.log10_gsd_G.tolist() == pytest.approx([math.log10(1.4), math.log10(0.3)], abs=1e-6)
    assert [t.effective_tier for t in batch.trees] == ["mid", "high"]
    assert batch.trees[0].gsd_m == pytest.approx(1.4)


def test_trust_follows_provenance_and_parts(processor):
    known = tree_of(processor, 0)
    nominal = tree_of(processor, 1, provenance=Provenance.NOMINAL)
    unknown = tree_of(processor, 2, gsd_m=None)
    batch = collate([known, nominal, unknown])
    assert batch.nll_weight_G.tolist() == [1.0, 0.5, 0.0]
    assert batch.sigma_log10_G[:2].tolist() == pytest.approx([0.01, 0.05])
    assert torch.isnan(batch.sigma_log10_G[2])
    assert torch.isnan(batch.log10_gsd_G[2])
    assert batch.trees[2].effective_tier == "unknown"
    sample = fake_sample(0, n_questions=4)
    parts = [
        encode_tree(sample, known.images, sample.qas[i : i + 2], processor, boundaries=TierBoundaries(), n_parts=2)
        for i in (0, 2)
    ]
    assert collate(parts).nll_weight_G.sum() == 1.0


def test_two_gsds_in_one_tree_are_refused(processor):
    small, large = (processor.image(Image.new("RGB", size)) for size in [(64, 64), (128, 128)])
    with pytest.raises(SampleError, match="differ in GSD"):
        encode_tree(fake_sample(0), [small, large], fake_sample(0).qas, processor, boundaries=TierBoundaries())


def test_the_told_gsd_can_be_replaced(processor):
    told = Processor(processor.tokenizer, min_pixels=1024, max_pixels=128 * 128, gsd_text="metres")
    sample = fake_sample(0)
    image = told.image(Image.new("RGB", (64, 64)))
    tree = encode_tree(sample, [image], sample.qas, told, boundaries=TierBoundaries(), text_gsd_m=7.0)
    assert " GSD: 7.00 m per pixel." in told.tokenizer.decode(tree.prefix)
    assert tree.info.gsd_m == pytest.approx(0.3)


def test_gate_draws_are_uniform_and_repeatable():
    draws = np.array([gate_draw(f"image-{n}", epoch) for n in range(2000) for epoch in range(2)])
    assert gate_draw("a", 0) == gate_draw("a", 0) != gate_draw("a", 1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs((draws < 0.2).mean() - 0.2) < 0.02


def test_a_place_falls_back_to_the_image(processor):
    sample = replace(fake_sample(0), place_id=None)
    image = processor.image(Image.new("RGB", (64, 64)))
    tree = encode_tree(sample, [image], sample.qas, processor, boundaries=TierBoundaries())
    assert tree.info.place_id == sample.image_id
