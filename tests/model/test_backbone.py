"""The backbone: sizes, seeds, files, quantisation, and the two changes made in place."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, Qwen3VLForConditionalGeneration
from tree_fakes import IDS, RAGGED, VOCAB, make_batch

from scaleearth_pl.core.errors import CheckpointError, ConfigError, TargetModuleError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import (
    UNQUANTISED,
    BackboneConfig,
    _compiling_refused,
    assert_quantisation,
    build_backbone,
    freeze,
    save_backbone,
    shape_config,
    tiny_config,
)
from scaleearth_pl.model.shared_image import IMAGE_ATTENTION, TREE_ATTENTION, TreeLayout, encode_images, hidden_states

TOKENS = TokenIds(**IDS, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def model():
    return build_backbone(BackboneConfig(), token_ids=TOKENS)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    save_backbone(model, path)
    return path


def run(model, batch=None):
    batch = batch or make_batch(RAGGED)
    pixels = batch.pixel_values_PD.to(model.dtype)
    return hidden_states(model, batch, encode_images(model, pixels, batch.image_grid_I3), TreeLayout.from_batch(batch))


def test_tiny_is_a_few_million_parameters_with_every_mechanism():
    model = Qwen3VLForConditionalGeneration(tiny_config())
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 5e6
    text, vision = model.config.text_config, model.config.vision_config
    assert text.num_attention_heads > text.num_key_value_heads > 1
    assert sum(text.rope_parameters["mrope_section"]) == text.head_dim // 2
    assert len(model.model.visual.deepstack_merger_list) == 2
    assert vision.out_hidden_size == text.hidden_size


def test_ids_come_from_the_tokenizer(model):
    assert model.config.image_token_id == IDS["image_pad"]
    assert model.generation_config.eos_token_id == IDS["im_end"]
    assert model.lm_head.weight.shape[0] == VOCAB


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_backbone(BackboneConfig(seed=1), token_ids=TOKENS).lm_head.weight
    assert torch.rand(3).equal(expected)
    assert build_backbone(BackboneConfig(seed=1), token_ids=TOKENS).lm_head.weight.equal(first)
    assert not build_backbone(BackboneConfig(seed=2), token_ids=TOKENS).lm_head.weight.equal(first)


def test_trees_for_the_language_model_images_for_the_vision_tower(model):
    assert model.model.language_model.config._attn_implementation == TREE_ATTENTION
    assert model.model.visual.config._attn_implementation == IMAGE_ATTENTION


def test_patch_embedding_equals_the_convolution(model):
    proj = model.model.visual.patch_embed.proj
    patches = torch.randn(7, 3, 2, 16, 16)
    expected = nn.functional.conv3d(patches, proj.weight, proj.bias, stride=proj.stride)
    torch.testing.assert_close(proj(patches), expected, rtol=1e-4, atol=1e-5)


def test_patch_embedding_that_is_no_matrix_product_is_refused():
    from scaleearth_pl.model.surgery import replace_patch_embed_conv

    other = Qwen3VLForConditionalGeneration(tiny_config())
    other.model.visual.patch_embed.proj = nn.Conv3d(3, 8, (2, 16, 16), stride=(2, 8, 8))
    with pytest.raises(TargetModuleError, match="matrix product"):
        replace_patch_embed_conv(other)


def test_rotary_frequencies_survive_a_cast():
    model = build_backbone(BackboneConfig(), token_ids=TOKENS)
    exact = [model.model.language_model.rotary_emb.inv_freq.clone(), model.model.visual.rotary_pos_emb.inv_freq.clone()]
    model.to(torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    after = [model.model.language_model.rotary_emb.inv_freq, model.model.visual.rotary_pos_emb.inv_freq]
    assert all(a.equal(b) for a, b in zip(after, exact, strict=True))


def test_round_trip_through_a_folder(model, folder):
    again = build_backbone(BackboneConfig(source=str(folder), checkpointing=True), token_ids=TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(run(again), run(model), rtol=0, atol=0)
    assert again.is_activation_checkpointing


def test_the_folder_is_transformers_own(model, folder):
    """Same names and shapes as a model that we never touched, and it loads there without our code."""
    plain = Qwen3VLForConditionalGeneration(tiny_config(VOCAB)).state_dict()
    saved = load_file(folder / "model.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in plain.items()}
    assert TREE_ATTENTION not in (folder / "config.json").read_text()
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_gathered_weights_are_what_is_written(model, tmp_path):
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    save_backbone(model, tmp_path, state_dict=state)
    assert not bool(load_file(tmp_path / "model.safetensors")["lm_head.weight"].any())


def test_random_model_cannot_be_quantised():
    with pytest.raises(ConfigError, match="stage 1"):
        build_backbone(BackboneConfig(quantise="nf4"), token_ids=TOKENS)


def test_absent_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        build_backbone(BackboneConfig(source=str(tmp_path / "nowhere")), token_ids=TOKENS)


@pytest.mark.parametrize(("field", "value"), [("image_pad", 9), ("vision_end", 8), ("vocab_size", VOCAB + 1)])
def test_folder_of_another_tokenizer_is_refused(folder, field, value):
    with pytest.raises(CheckpointError, match="another tokenizer"):
        build_backbone(BackboneConfig(source=str(folder)), token_ids=replace(TOKENS, **{field: value}))


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_incomplete_folder_is_refused(folder, tmp_path, kind):
    weights = load_file(folder / "model.safetensors")
    if kind == "missing":
        del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    else:
        weights["model.language_model.layers.1.mlp.extra.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(CheckpointError, match=f"{kind}_keys.*layers.1.mlp"):
        build_backbone(BackboneConfig(source=str(tmp_path)), token_ids=TOKENS)


@pytest.mark.parametrize("asked", ["none", "nf4"])
def test_a_folder_in_another_4_bit_form_is_refused(folder, tmp_path, asked):
    """transformers loads it as it is: FP4 where NF4 was asked, 4-bit where full precision was."""
    fp4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", llm_int8_skip_modules=list(UNQUANTISED))
    Qwen3VLForConditionalGeneration.from_pretrained(folder, quantization_config=fp4).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"quantised already.*full precision"):
        build_backbone(BackboneConfig(source=str(tmp_path), quantise=asked), token_ids=TOKENS)


def test_a_cut_weight_file_is_named(folder, tmp_path):
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="no backbone there"):
        build_backbone(BackboneConfig(source=str(tmp_path)), token_ids=TOKENS)


def test_weights_that_the_base_hash_does_not_read_are_not_loaded(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(CheckpointError, match="safetensors"):
        build_backbone(BackboneConfig(source=str(tmp_path)), token_ids=TOKENS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_covers_the_projections_of_the_llm_and_nothing_else(model, folder, dtype):
    quantised = build_backbone(BackboneConfig(source=str(folder), quantise="nf4", dtype=dtype), token_ids=TOKENS)
    assert assert_quantisation(quantised) == 7 * 4
    layer = quantised.model.language_model.layers[0].self_attn.q_proj
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert {p.dtype for p in quantised.parameters()} == {getattr(torch, dtype)}
    hidden = run(quantised)
    embedding = quantised.model.language_model.embed_tokens.weight
    assert bool((torch.autograd.grad(hidden.float().sum(), embedding)[0] != 0).any())
    exact = run(model).detach()
    error = float((hidden.detach().float() - exact).norm() / exact.norm())
    assert 1e-4 < error < 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_dequantised_it_computes_the_very_same(folder, dtype):
    """States and gradients; and it still is a quantised model."""
    found = []
    for keep in (False, True):
        config = BackboneConfig(source=str(folder), quantise="nf4", dtype=dtype, keep_dequantized=keep)
        quantised = build_backbone(config, token_ids=TOKENS)
        assert assert_quantisation(quantised) == 7 * 4
        layer = quantised.model.language_model.layers[0].self_attn.q_proj
        assert (type(layer).__name__ == "DequantisedLinear") is keep
        assert not layer.weight.requires_grad
        assert layer.weight.dtype == getattr(torch, dtype)
        hidden = run(quantised)
        embedding = quantised.model.language_model.embed_tokens.weight
        found.append((hidden.detach(), torch.autograd.grad(hidden.float().sum(), embedding)[0]))
    assert layer.weight.numel() == layer.in_features * layer.out_features
    for packed, kept in zip(*found, strict=True):
        assert float((packed - kept).float().norm() / packed.float().norm()) < (1e-6 if dtype == "float32" else 2e-2)


def test_only_a_quantised_model_can_be_kept_dequantised():
    with pytest.raises(ConfigError, match="keep_dequantized"):
        BackboneConfig(keep_dequantized=True)


def test_quantisation_in_the_wrong_place_is_seen(folder):
    import bitsandbytes as bnb

    quantised = build_backbone(BackboneConfig(source=str(folder), quantise="nf4"), token_ids=TOKENS)
    block = quantised.model.visual.blocks[0].mlp
    good, block.linear_fc1 = block.linear_fc1, bnb.nn.Linear4bit(128, 384)
    with pytest.raises(TargetModuleError, match="visual"):
        assert_quantisation(quantised)
    block.linear_fc1 = good
    quantised.model.language_model.layers[2].mlp.up_proj = nn.Linear(192, 512, bias=False)
    with pytest.raises(TargetModuleError, match=r"layers\.2\.mlp\.up_proj"):
        assert_quantisation(quantised)


def test_a_full_precision_model_has_no_four_bit_layer(model):
    assert assert_quantisation(model) == 0


def test_freeze_leaves_nothing_to_train():
    model = build_backbone(BackboneConfig(), token_ids=TOKENS)
    assert all(p.requires_grad for p in model.parameters())
    freeze(model)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "n_linears", "linear_billions", "all_billions"),
    [("2b", 28 * 7, 1.409, 2.128), ("4b", 36 * 7, 3.633, 4.438), ("8b", 36 * 7, 6.946, 8.767)],
)
def test_public_shapes(size, n_linears, linear_billions, all_billions):
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(shape_config(size))
    linears = [m for m in model.model.language_model.layers.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == n_linears
    assert sum(m.weight.numel() for m in linears) / 1e9 == pytest.approx(linear_billions, abs=5e-4)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(all_billions, abs=5e-4)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (size != "8b")
    assert json.loads(model.config.to_json_string())["vision_config"]["out_hidden_size"] == linears[0].in_features


@pytest.mark.parametrize("source", [""])
def test_empty_source_is_refused(source):
    with pytest.raises(ConfigError, match=r"backbone\.source"):
        BackboneConfig(source=source)


def test_nothing_is_compiled_while_bitsandbytes_is_imported_and_everything_after():
    compiling = torch.compile
    with _compiling_refused(), pytest.raises(RuntimeError, match="imported"):
        torch.compile(torch.nn.Identity())
    assert torch.compile is compiling
