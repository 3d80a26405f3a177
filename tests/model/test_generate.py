"""Packed greedy decoding equals transformers' own `generate`, question by question."""

from dataclasses import replace

import pytest
import torch
from tree_fakes import IDS, N_SUPERVISED, RAGGED, VOCAB, make_batch, sharpen, single

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gated_lora import AdapterConfig, ScaleState, attach
from scaleearth_pl.model.generate import greedy, prompts_only
from scaleearth_pl.model.shared_image import TreeLayout, encode_images, hidden_states

TOKENS = TokenIds(**IDS, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def models():
    tree = sharpen(build_backbone(BackboneConfig(), token_ids=TOKENS))
    plain = build_backbone(BackboneConfig(attention="sdpa"), token_ids=TOKENS)
    plain.load_state_dict(tree.state_dict())
    return tree.eval(), plain.eval()


def answers(model, batch, **options):
    features = encode_images(model, batch.pixel_values_PD, batch.image_grid_I3)
    return greedy(model, batch, features, **options)


def one_by_one(model, batch, *, max_new_tokens, eos):
    rows = []
    for branch in range(len(batch.branch_len_B)):
        inputs = single(batch, branch)
        row = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=IDS["pad"]
        )
        new = row[0, inputs["input_ids"].shape[1] :].tolist()
        rows.append(new[: new.index(eos)] if eos in new else new)
    return rows


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_generate_run_one_by_one(models, seed):
    tree, plain = models
    batch = make_batch(RAGGED, seed=seed, supervised=False)
    free = one_by_one(plain, batch, max_new_tokens=6, eos=IDS["im_end"])
    assert len({tuple(row) for row in free}) > 3
    assert answers(tree, batch, max_new_tokens=6) == free


def test_stops_each_branch_at_its_own_end(models):
    tree, plain = models
    batch = make_batch(RAGGED, seed=0, supervised=False)
    free = answers(tree, batch, max_new_tokens=6)
    eos = max({t for row in free for t in row}, key=lambda t: len({row.index(t) for row in free if t in row}))
    expected = one_by_one(plain, batch, max_new_tokens=6, eos=eos)
    assert len({len(row) for row in expected}) > 1
    assert answers(tree, batch, max_new_tokens=6, eos=eos) == expected


def test_one_new_token_needs_no_decoding(models):
    tree, _ = models
    batch = make_batch(RAGGED, seed=0, supervised=False)
    one = answers(tree, batch, max_new_tokens=1)
    assert one == [row[:1] for row in answers(tree, batch, max_new_tokens=6)]


def test_rows_are_announced_before_every_kind_of_forward(models):
    tree, _ = models
    batch, seen = make_batch(RAGGED, supervised=False), []
    answers(tree, batch, max_new_tokens=3, set_rows=lambda rows, kept: seen.append(rows.tolist()))
    assert seen == [[batch.tree_of_token_T.tolist()], [batch.tree_of_branch_B.tolist()]]


def test_trees_without_branches(models):
    tree, _ = models
    full = make_batch([([(4, 6)], [5, 3]), ([(2, 4)], []), ([(6, 6)], [4])], supervised=False)
    assert len(answers(tree, full, max_new_tokens=2)) == 3
    assert answers(tree, make_batch([([(2, 2)], [])]), max_new_tokens=2) == []


def test_refuses_a_missing_end_and_no_tokens(models, monkeypatch):
    tree, _ = models
    with pytest.raises(ConfigError, match="max_new_tokens"):
        answers(tree, make_batch(RAGGED), max_new_tokens=0)
    monkeypatch.setattr(tree.generation_config, "eos_token_id", None)
    with pytest.raises(ConfigError, match="eos"):
        answers(tree, make_batch(RAGGED), max_new_tokens=2)


def test_prompts_only_cuts_the_answers():
    batch = make_batch(RAGGED, seed=4)
    prompts = prompts_only(batch)
    assert not bool(prompts.supervised_T.any())
    for branch, length in enumerate(batch.branch_len_B.tolist()):
        start = int(batch.branch_start_B[branch])
        n_answer = min(N_SUPERVISED, length) - 1
        kept = batch.input_ids_T[start : start + length - n_answer]
        new = int(prompts.branch_start_B[branch])
        assert prompts.input_ids_T[new : new + int(prompts.branch_len_B[branch])].equal(kept)
    for tree, length in enumerate(batch.prefix_len_G.tolist()):
        old, new = int(batch.prefix_start_G[tree]), int(prompts.prefix_start_G[tree])
        assert prompts.position_ids_3T[:, new : new + length].equal(batch.position_ids_3T[:, old : old + length])


def test_generating_from_prompts_ignores_the_answers(models):
    tree, _ = models
    batch = make_batch(RAGGED, seed=5)
    changed = batch.input_ids_T.clone()
    for start, length in zip(batch.branch_start_B.tolist(), batch.branch_len_B.tolist(), strict=True):
        changed[start + length - min(N_SUPERVISED, length) + 1 : start + length] = 12
    other = replace(batch, input_ids_T=changed)
    assert not changed.equal(batch.input_ids_T)
    found = answers(tree, prompts_only(batch), max_new_tokens=4)
    assert found == answers(tree, prompts_only(other), max_new_tokens=4)


def test_first_token_is_the_teacher_forced_one(models):
    """What validation relies on: the argmax at the first supervised position is greedy's first token."""
    tree, _ = models
    batch = make_batch(RAGGED, seed=6)
    prompts = prompts_only(batch)
    first = [row[0] if row else IDS["im_end"] for row in answers(tree, prompts, max_new_tokens=1)]
    with torch.no_grad():
        features = encode_images(tree, batch.pixel_values_PD, batch.image_grid_I3)
        hidden = hidden_states(tree, batch, features, TreeLayout.from_batch(batch))
        position = batch.branch_start_B + prompts.branch_len_B - 1
        assert tree.lm_head(hidden[position]).argmax(-1).tolist() == first


def test_gated_adapters_follow_their_tree(models):
    """With adapters whose gates differ by tree, each tree answers as it does alone."""
    model = sharpen(build_backbone(BackboneConfig(), token_ids=TOKENS))
    scale, log10_gsd_G = ScaleState(), torch.tensor([-1.0, 0.5, 1.8])
    for i, adapter in enumerate(attach(model, AdapterConfig(rank=6), scale).values()):
        torch.nn.init.normal_(adapter.lora_B.weight, std=0.3, generator=torch.Generator().manual_seed(i))

    def gated(shape_batch, log10_gsd_G):
        scale.set(log10_gsd_G, torch.zeros_like(log10_gsd_G), shape_batch.tree_of_token_T[None])
        return answers(model, shape_batch, max_new_tokens=4, set_rows=scale.set_rows)

    shape = [([(4, 4)], [5, 3])] * 3
    batch = make_batch(shape, supervised=False)
    together = gated(batch, log10_gsd_G)
    assert together != gated(batch, log10_gsd_G.flip(0))
    for tree in range(3):
        assert together[2 * tree : 2 * tree + 2] == gated(_only(batch, tree), log10_gsd_G[tree : tree + 1])


def _only(batch, tree):
    """One tree of a batch whose trees are all of the same shape."""
    n_tokens, n_patches = (len(x) // 3 for x in (batch.input_ids_T, batch.pixel_values_PD))
    rows = slice(tree * n_tokens, (tree + 1) * n_tokens)
    alone = make_batch([([(4, 4)], [5, 3])], supervised=False)
    return replace(
        alone,
        input_ids_T=batch.input_ids_T[rows],
        pixel_values_PD=batch.pixel_values_PD[tree * n_patches : (tree + 1) * n_patches],
    )
