"""Tree attention equals a dense mask, exactly; packed trees equal plain sequences through the whole model."""

from dataclasses import fields, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tree_fakes import IDS, RAGGED, VOCAB, dense_tree_mask, make_batch, sharpen, single

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model import shared_image
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.shared_image import TreeLayout, encode_images, hidden_states
from scaleearth_pl.model.tree_attention import tree_attention
from scaleearth_pl.model.tree_kernels import CpuFlash, Part, Streams, VarlenCudaFlash, kernel_for

TOKENS = TokenIds(**IDS, vocab_size=VOCAB)
SHAPES = {
    "ragged": RAGGED,
    "one tree": [([(4, 4)], [3, 3, 3])],
    "no padding": [([(4, 4)], [5, 5]), ([(4, 4)], [5, 5])],
    "only prefixes": [([(4, 4)], []), ([(2, 2)], [])],
    "some without branches": [([(4, 4)], []), ([(2, 2)], [3]), ([(2, 4)], [])],
    "one branch each": [([(4, 6)], [5]), ([(2, 2)], [9])],
}


def draws(n_tokens, *, heads=6, key_heads=2, dim=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads, key_heads, key_heads, heads)
    q, k, v, grad = (torch.randn(n_tokens, h, dim, generator=generator, dtype=torch.float64) for h in sizes)
    return *(x.to(dtype).requires_grad_() for x in (q, k, v)), grad.to(dtype)


def dense_attention(q, k, v, mask, scale):
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
    scores = (q.transpose(0, 1) @ k.mT * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def results(function, q, k, v, grad):
    out = function(q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad)


@pytest.mark.parametrize("run_by_run", [False, True])
@pytest.mark.parametrize("form", ["merged", "copied"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradient_equal_a_dense_mask_in_fp64(shape, form, run_by_run, monkeypatch):
    monkeypatch.setattr(CpuFlash, "PAIRS_PER_CALL", -1e9 if run_by_run else 1e9)
    batch = make_batch(shape)
    layout, mask = TreeLayout.from_batch(batch), dense_tree_mask(batch)
    q, k, v, grad = draws(len(batch.input_ids_T))
    expected = results(lambda *x: dense_attention(*x, mask, 0.3), q, k, v, grad)
    found = results(lambda *x: tree_attention(*x, layout, scale=0.3, form=form), q, k, v, grad)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(4, 4, 8), (4, 1, 20), (3, 3, 7)])
def test_any_grouping_of_heads_and_any_width(heads, key_heads, dim):
    batch = make_batch(RAGGED)
    q, k, v, grad = draws(len(batch.input_ids_T), heads=heads, key_heads=key_heads, dim=dim)
    mask, layout = dense_tree_mask(batch), TreeLayout.from_batch(batch)
    expected = results(lambda *x: dense_attention(*x, mask, 0.3), q, k, v, grad)
    found = results(lambda *x: tree_attention(*x, layout, scale=0.3), q, k, v, grad)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


def test_large_scores_in_other_trees_do_not_overflow_the_padding():
    batch = make_batch(RAGGED)
    q, k, v, grad = draws(len(batch.input_ids_T), dtype=torch.float32)
    with torch.no_grad():
        q[:12] *= 100
        k[-40:] *= 100
    mask, layout = dense_tree_mask(batch), TreeLayout.from_batch(batch)
    expected = results(lambda *x: dense_attention(*x, mask, 0.3), q, k, v, grad)
    found = results(lambda *x: tree_attention(*x, layout, scale=0.3, form="merged"), q, k, v, grad)
    for a, b in zip(expected, found, strict=True):
        assert bool(torch.isfinite(b).all())
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_no_less_precise_than_copied(dtype):
    batch = make_batch(RAGGED)
    layout, mask = TreeLayout.from_batch(batch), dense_tree_mask(batch)
    truth = results(lambda *x: dense_attention(*x, mask, 0.3), *draws(len(batch.input_ids_T)))
    error = {}
    for form in ("merged", "copied"):
        inputs = draws(len(batch.input_ids_T), dtype=dtype)
        found = results(lambda *x, form=form: tree_attention(*x, layout, scale=0.3, form=form), *inputs)
        error[form] = [float((a - b.double()).norm() / a.norm()) for a, b in zip(truth, found, strict=True)]
    assert max(error["merged"]) < 2 * max(error["copied"])
    assert max(error["merged"]) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_run_by_run_is_chosen_only_where_padding_costs_more_than_the_calls():
    even = TreeLayout.from_batch(make_batch([([(4, 4)], [8] * 4)] * 3))
    skewed = TreeLayout.from_batch(make_batch([([(32, 32)], [20] * 40), ([(32, 32)], [20]), ([(2, 2)], [20])]))
    for layout, expected in ((even, False), (skewed, True)):
        part = Part(queries=layout.by_tree, keys=layout.prefixes, causal=False)
        assert CpuFlash()._run_by_run(part) is expected


def test_buckets_hold_every_run_once_with_less_padding():
    lengths = [16, 33, 18, 21, 16, 26, 17, 33, 16, 22] * 3
    runs = TreeLayout.from_batch(make_batch([([(4, 4)], lengths)])).branches
    assert 1 < len(runs.buckets) <= 4
    assert sorted(n for bucket in runs.buckets for n in bucket.lengths) == sorted(lengths)
    together = torch.cat([bucket.rows_R for bucket in runs.buckets])
    assert torch.equal(together.index_select(0, runs.bucket_rows_R), runs.rows_R)
    slots = sum(len(bucket.slot_rows_S) for bucket in runs.buckets)
    assert slots - sum(lengths) < (len(runs.slot_rows_S) - sum(lengths)) / 3


def test_even_runs_stay_one_rectangle():
    runs = TreeLayout.from_batch(make_batch([([(4, 4)], [8, 8, 8, 7])])).branches
    assert runs.buckets == (runs,)


def fake_cuda(runs):
    """The same runs with fake CUDA tensors; sizes on the host stay."""
    values = {f.name: getattr(runs, f.name) for f in fields(runs)}
    tensors = {k: v for k, v in values.items() if torch.is_tensor(v)}
    return replace(runs, **{k: torch.empty(v.shape, dtype=v.dtype, device="cuda") for k, v in tensors.items()})


def test_cuda_kernels_take_our_arguments():
    """Shapes and signatures only, on fake tensors; the numbers are checked below where there is a GPU."""
    layout = TreeLayout.from_batch(make_batch(RAGGED))
    n_tokens, n_prefix, n_branch = len(layout.order_T), layout.prefixes.slot_of_R, layout.branches.slot_of_R
    with FakeTensorMode(), torch.no_grad():
        q, k = (torch.empty(n_tokens, h, 32, device="cuda", dtype=torch.bfloat16) for h in (6, 2))
        kernel = kernel_for(q)
        assert isinstance(kernel, VarlenCudaFlash)
        part = Part(queries=fake_cuda(layout.by_tree), keys=fake_cuda(layout.prefixes), causal=False)
        out, lse = kernel.forward(q, k, k, part, 0.3)
        assert (out.shape, lse.shape) == ((len(n_branch), 6, 32), (len(n_branch), 6))
        streams = Streams(grad=q, q=q, k=k, v=k, out=q, lse=torch.empty(n_tokens, 6, device="cuda"))
        dq, dk, dv = kernel.backward(streams, part, 0.3)
        assert (dq.shape, dk.shape, dv.shape) == (out.shape, *[(len(n_prefix), 2, 32)] * 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradient_equal_a_dense_mask_on_cuda(shape, dtype):
    batch = make_batch(shape)
    layout, mask = TreeLayout.from_batch(batch.to("cuda")), dense_tree_mask(batch)
    truth = results(lambda *x: dense_attention(*x, mask, 0.3), *draws(len(batch.input_ids_T)))
    inputs = [x.detach().cuda().requires_grad_() for x in draws(len(batch.input_ids_T), dtype=dtype)]
    found = results(lambda *x: tree_attention(*x, layout, scale=0.3), *inputs)
    for a, b in zip(truth, found, strict=True):
        error = float((a - b.double().cpu()).norm() / a.norm().clamp(min=1e-9))
        assert error < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_merged_without_a_kernel_names_the_remedy():
    layout = TreeLayout.from_batch(make_batch(RAGGED))
    x = torch.empty(len(layout.order_T), 2, 16, device="meta")
    with pytest.raises(ConfigError, match="auto"):
        tree_attention(x, x, x, layout, scale=0.3, form="merged")


def test_mask_definition():
    mask = dense_tree_mask(make_batch([([(2, 2)], [2, 1]), ([(2, 2)], [1])]))
    prefix, first, second = slice(0, 5), slice(5, 7), slice(7, 8)
    assert mask[prefix, prefix].equal(torch.ones(5, 5).tril().bool())
    assert bool(mask[first, prefix].all())
    assert mask[first, first].tolist() == [[True, False], [True, True]]
    assert not bool(mask[second, first].any())
    assert not bool(mask[8:, :8].any())
    assert not bool(mask[:8, 8:].any())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prefix_len_G": torch.tensor([0, 10])}, "prefix_len_G"),
        ({"branch_len_B": torch.tensor([2, 0, 1])}, "branch_len_B"),
        ({"tree_of_branch_B": torch.tensor([1, 0, 0])}, "tree_of_branch_B"),
        ({"branch_len_B": torch.tensor([2, 1, 2])}, "input_ids_T"),
    ],
)
def test_layout_refuses_what_would_attend_wrongly(changes, field):
    batch = make_batch([([(2, 2)], [2, 1]), ([(2, 2)], [1])])
    with pytest.raises(ConfigError, match=field):
        TreeLayout.from_batch(replace(batch, **changes))


@pytest.fixture(scope="module")
def tree_model():
    return sharpen(build_backbone(BackboneConfig(), token_ids=TOKENS))


@pytest.fixture(scope="module")
def plain_model(tree_model):
    model = build_backbone(BackboneConfig(attention="sdpa"), token_ids=TOKENS)
    model.load_state_dict(tree_model.state_dict())
    return model


def packed(model, batch):
    features = encode_images(model, batch.pixel_values_PD, batch.image_grid_I3)
    return hidden_states(model, batch, features, TreeLayout.from_batch(batch))


def test_packed_equals_plain_sequences(tree_model, plain_model):
    """Several images in a tree and in the batch, ragged everything: positions, DeepStack order, no lost image."""
    batch = make_batch(RAGGED, seed=1)
    with torch.no_grad():
        hidden = packed(tree_model, batch)
        for branch in range(len(batch.branch_len_B)):
            start, length = int(batch.branch_start_B[branch]), int(batch.branch_len_B[branch])
            alone = plain_model.model(**single(batch, branch)).last_hidden_state[0, -length:]
            torch.testing.assert_close(hidden[start : start + length], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sizes", "calls"), [([(4, 4)] * 3, 1), ([(4, 4), (4, 6), (4, 4)], 3), ([(4, 4)], 1)])
def test_images_of_one_size_attend_in_one_call_each_over_itself(tree_model, plain_model, sizes, calls, monkeypatch):
    batch = make_batch([([size], [1]) for size in sizes], seed=3)
    blocks, seen = tree_model.model.visual.blocks, []
    sdpa = shared_image.tf.scaled_dot_product_attention
    monkeypatch.setattr(
        shared_image.tf, "scaled_dot_product_attention", lambda *a, **k: seen.append(1) or sdpa(*a, **k)
    )
    with torch.no_grad():
        found = encode_images(tree_model, batch.pixel_values_PD, batch.image_grid_I3)
        assert len(seen) == calls * len(blocks)
        expected = encode_images(plain_model, batch.pixel_values_PD, batch.image_grid_I3)
    assert [len(tokens) for tokens in found.pooler_output] == [len(tokens) for tokens in expected.pooler_output]
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-6, atol=1e-6)


def test_a_branch_is_blind_to_siblings_and_other_trees_but_sees_its_image(tree_model):
    batch = make_batch(RAGGED, seed=1)
    ids, pixels = batch.input_ids_T.clone(), batch.pixel_values_PD.clone()
    second = slice(int(batch.branch_start_B[1]), int(batch.branch_start_B[2]))
    ids[second] = 11
    with torch.no_grad():
        before = packed(tree_model, batch)
        changed = (packed(tree_model, replace(batch, input_ids_T=ids)) - before).abs().amax(-1) > 1e-5
        assert changed.nonzero()[:, 0].tolist() == list(range(second.start, second.stop))
        pixels[:24] += 1.0
        changed = (packed(tree_model, replace(batch, pixel_values_PD=pixels)) - before).abs().amax(-1) > 1e-5
    assert bool(changed[batch.branch_start_B[:3]].all())
    assert not bool(changed[batch.tree_of_token_T > 0].any())


def gradients(model, loss):
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [model.get_parameter(n) for n in names], allow_unused=True)
    return {n: g for n, g in zip(names, grads, strict=True) if g is not None}


def supervised_loss(model, batch):
    rows = batch.supervised_T
    logits = model.lm_head(packed(model, batch)[rows])
    return torch.nn.functional.cross_entropy(logits, batch.target_ids_T[rows], reduction="sum")


def plain_loss(model, batch):
    loss = 0.0
    for branch in range(len(batch.branch_len_B)):
        start, length = int(batch.branch_start_B[branch]), int(batch.branch_len_B[branch])
        logits = model(**single(batch, branch)).logits[0, -length:]
        loss = loss + torch.nn.functional.cross_entropy(
            logits, batch.target_ids_T[start : start + length], reduction="sum"
        )
    return loss


def relative_error(found, expected):
    difference = sum(float((found[n] - g).square().sum()) for n, g in expected.items())
    return (difference / sum(float(g.square().sum()) for g in expected.values())) ** 0.5


def test_gradients_of_all_weights_equal_those_of_plain_sequences():
    tree = build_backbone(BackboneConfig(), token_ids=TOKENS)
    plain = build_backbone(BackboneConfig(attention="sdpa"), token_ids=TOKENS)
    batch = make_batch(RAGGED, seed=2)
    expected = gradients(plain, plain_loss(plain, batch))
    found = gradients(tree, supervised_loss(tree, batch))
    assert expected.keys() == found.keys()
    assert relative_error(found, expected) < 1e-5


def test_activation_checkpointing_changes_nothing():
    batch = make_batch(RAGGED, seed=3)
    found = []
    for checkpointing in (False, True):
        model = build_backbone(BackboneConfig(checkpointing=checkpointing), token_ids=TOKENS).train()
        assert model.is_activation_checkpointing is checkpointing
        found.append(gradients(model, supervised_loss(model, batch)))
    assert relative_error(found[1], found[0]) < 1e-6


def test_autocast_costs_trees_no_more_than_plain_sequences():
    """What bfloat16 does to a gradient is a few per cent here; packing may not make it worse."""
    tree = build_backbone(BackboneConfig(), token_ids=TOKENS)
    plain = build_backbone(BackboneConfig(attention="sdpa"), token_ids=TOKENS)
    batch, errors = make_batch(RAGGED, seed=3), []
    exact = plain_loss(plain, batch)
    expected = gradients(plain, exact)
    for model, loss_of in ((tree, supervised_loss), (plain, plain_loss)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=2e-2)
        errors.append(relative_error(gradients(model, loss), expected))
    assert 1e-4 < errors[0] <= 1.5 * errors[1] < 0.15, errors


def test_without_a_layout_it_refuses(tree_model):
    with pytest.raises(ConfigError, match="sdpa"):
        tree_model(input_ids=torch.tensor([[10, 11, 12]]))


def test_text_only_batch_has_no_features(tree_model):
    batch = make_batch([([], [3, 4])])
    assert encode_images(tree_model, batch.pixel_values_PD, batch.image_grid_I3) is None
    assert packed(tree_model, batch).shape == (len(batch.input_ids_T), 192)
