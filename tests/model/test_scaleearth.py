"""The whole model: neutral at B = 0, the same with checkpointing, greedy answers, public shapes, NF4 at size."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.corpus import make_fake_corpus
from fakes.runs import gradients_of, make_data, relative_difference, tiny_hf, tiny_model
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import TargetModuleError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import BackboneConfig, assert_quantisation, build_backbone, shape_config, tiny_config
from scaleearth_pl.model.gated_lora import LORA_TARGETS, AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.scaleearth import ScaleEarth


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_corpus(tmp_path_factory.mktemp("model") / "corpus", 6, n_questions=3, n_val=1, n_test=1)


@pytest.fixture(scope="module")
def batch(corpus: Path) -> TreeBatch:
    """All images of the corpus in one micro-batch."""
    return whole(corpus)


def whole(corpus: Path, **settings: Any) -> TreeBatch:
    data = make_data(corpus, **({"global_batch_tokens": 10**6, "micro_token_budget": 10**6} | settings))
    return data.step_batch(0).micro[0]


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_b_zero_is_the_base_model_to_the_bit(corpus: Path, batch: TreeBatch, quantise: str) -> None:
    with torch.no_grad():
        bare = tiny_model(corpus, quantise=quantise, adapted=False)(batch)
        neutral = tiny_model(corpus, quantise=quantise, noise=0.0)(batch)
        adapted = tiny_model(corpus, quantise=quantise)(batch)
    assert neutral.ce_sum.equal(bare.ce_sum)
    assert abs(float(adapted.ce_sum / bare.ce_sum) - 1) > 1e-3


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_checkpointing_recomputes_and_changes_no_gradient(corpus: Path, batch: TreeBatch, quantise: str) -> None:
    """Built as a run builds it: a loaded backbone is in eval mode, in which transformers would not recompute."""
    results = []
    for checkpointing, expected_calls in ((False, 1), (True, 2)):
        model = tiny_model(corpus, quantise=quantise, checkpointing=checkpointing)
        calls: list[int] = []
        block = model.backbone.model.language_model.layers[0]
        block.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        out = model(batch, predicted_share=0.5)
        (out.ce_sum + out.nll_sum).backward()
        assert len(calls) == expected_calls
        results.append((out.ce_sum.detach(), gradients_of(model)))
    assert results[0][0].equal(results[1][0])
    assert relative_difference(results[1][1], results[0][1]) < 1e-6


def test_sse_u_reads_the_image_alone(corpus: Path) -> None:
    """The same images in single-question trees: the same mu, though text and trees differ."""
    model, trees, singles = tiny_model(corpus), whole(corpus), whole(corpus, max_branches=1)
    with torch.no_grad():
        mu = [dict(zip([t.image_id for t in b.trees], model(b).mu_G.tolist(), strict=True)) for b in (trees, singles)]
    assert mu[0] == pytest.approx(mu[1], abs=1e-5)


def greedy_one_by_one(model: ScaleEarth, batch: TreeBatch, n_tokens: int) -> list[list[int]]:
    """transformers' own `generate` on trees of one question: plain prompts, plain attention, the tree's own gate."""
    backbone = model.backbone
    backbone.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    answers = []
    for b in range(len(batch.branches)):
        tree, start = int(batch.tree_of_branch_B[b]), int(batch.branch_start_B[b])
        prefix = slice(int(batch.prefix_start_G[tree]), int(batch.prefix_start_G[tree] + batch.prefix_len_G[tree]))
        targets = batch.target_ids_T[start : start + int(batch.branch_len_B[b])]
        prompt = start + int((targets != -100).nonzero()[0]) + 1
        ids = torch.cat([batch.input_ids_T[prefix], batch.input_ids_T[start:prompt]])[None]
        image = int((batch.tree_of_image_I == tree).nonzero())
        patches = batch.image_grid_I3.prod(-1)
        first = int(patches[:image].sum())
        model.scale.set(batch.log10_gsd_G[tree, None], batch.sigma_log10_G[tree, None], torch.zeros(1, 1).long())
        output = backbone.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=batch.pixel_values_PD[first : first + int(patches[image])],
            image_grid_thw=batch.image_grid_I3[image, None],
            mm_token_type_ids=(ids == backbone.config.image_token_id).int(),
            do_sample=False,
            max_new_tokens=n_tokens,
        )
        answer = output[0, ids.shape[1] :].tolist()
        end = backbone.generation_config.eos_token_id
        answers.append(answer[: answer.index(end)] if end in answer else answer)
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_packed_greedy_answers_equal_generate_one_by_one(corpus: Path, quantise: str) -> None:
    model = tiny_model(corpus, quantise=quantise, noise=0.1).eval()
    packed, single = whole(corpus), whole(corpus, max_branches=1)
    answers = by_question(packed, model.answer(packed, max_new_tokens=6))
    assert answers == by_question(single, model.answer(single, max_new_tokens=6))
    assert answers == by_question(single, greedy_one_by_one(model, single, 6))
    assert len({tuple(a) for a in answers.values()}) > 3


def by_question(batch: TreeBatch, answers: list[list[int]]) -> dict[tuple[str, str], list[int]]:
    names = [(batch.trees[branch.tree].image_id, branch.qa_id) for branch in batch.branches]
    return dict(zip(names, answers, strict=True))


def test_exact_match_is_greedy_decoding_that_says_the_answer(corpus: Path, batch: TreeBatch) -> None:
    """Briefly overfitted, so that some answers are right and some are not."""
    model = tiny_model(corpus)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    end, found = model.backbone.generation_config.eos_token_id, set()
    for _ in range(30):
        with torch.no_grad():
            exact = model.exact_match(model(batch).argmax_N, batch).tolist()
        found |= set(exact)
        if len(found) == 2 and 0 < sum(exact) < len(exact):
            break
        optimizer.zero_grad()
        model(batch).ce_sum.backward()
        optimizer.step()
    starts, lengths = batch.branch_start_B.tolist(), batch.branch_len_B.tolist()
    targets = [batch.target_ids_T[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    wanted = [t[t != -100].tolist() for t in targets]
    answers = model.answer(batch, max_new_tokens=max(map(len, wanted)))
    assert 0 < sum(exact) < len(exact)
    assert [[*answer, end] == want for answer, want in zip(answers, wanted, strict=True)] == exact


@pytest.mark.slow
@pytest.mark.parametrize(("size", "modules", "millions"), [("2b", 196, 69.7), ("4b", 252, 132.1), ("8b", 252, 174.6)])
def test_public_shapes_on_the_meta_device(size: str, modules: int, millions: float) -> None:
    with torch.device("meta"):
        backbone = Qwen3VLForConditionalGeneration(shape_config(size))
        classes = {name: type(module) for name, module in backbone.named_modules()}
        model = ScaleEarth(backbone=backbone, adapters=AdapterConfig(), head=GsdHeadConfig())
    assert len(model.adapters) == modules
    assert Counter(name.rpartition(".")[2] for name in model.adapters) == dict.fromkeys(LORA_TARGETS, modules // 7)
    lora = sum(p.numel() for p in model.adapter_parameters())
    assert round(lora / 1e6, 1) == millions
    assert sum(p.numel() for p in model.gate_parameters()) == modules * 64
    after = {name: type(module) for name, module in backbone.named_modules()}
    for untouched in ("model.visual.", "lm_head"):
        names = {name for name in classes if name.startswith(untouched)}
        assert {name: after[name] for name in after if name.startswith(untouched)} == {n: classes[n] for n in names}
        assert not any(p.requires_grad for n, p in backbone.named_parameters() if n.startswith(untouched))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("gsd_head.")}
    kinds = ("lora_A.weight", "lora_B.weight", "gate.thresholds")
    assert trained == {f"backbone.{name}.{kind}" for name in model.adapters for kind in kinds}


def hundred_million() -> Qwen3VLConfig:
    """Twelve blocks of width 768, and the tiny tower."""
    config = tiny_config(1024)
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size, text.num_attention_heads = 768, 12, 2560, 24
    config.vision_config.out_hidden_size = 768
    return config


@pytest.mark.slow
def test_nf4_at_a_hundred_million_parameters(corpus: Path, tmp_path: Path) -> None:
    ids: TokenIds = make_data(corpus).processor.token_ids
    config = hundred_million()
    for name in ("image", "video", "vision_start", "vision_end"):
        field = {"image": "image_pad", "video": "video_pad"}.get(name, name)
        setattr(config, f"{name}_token_id", getattr(ids, field))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        full = Qwen3VLForConditionalGeneration(config)
    n_parameters = sum(p.numel() for p in full.parameters())
    assert 90e6 < n_parameters < 130e6
    full.save_pretrained(tmp_path)
    quantised = build_backbone(BackboneConfig(quantise="nf4"), token_ids=ids, source=str(tmp_path))
    model = ScaleEarth(backbone=quantised, adapters=AdapterConfig(rank=12), head=GsdHeadConfig(hidden=32))
    assert assert_quantisation(quantised) == len(model.adapters) == 12 * 7
    for name, module in quantised.named_modules():
        inside = name.startswith("model.language_model.layers.") and name.endswith(".base")
        assert (type(module).__name__ == "Linear4bit") == inside, name
        if isinstance(module, nn.Linear) and not inside:
            assert type(module) is nn.Linear, name
    stored = sum(p.numel() * p.element_size() for p in quantised.model.language_model.layers.parameters())
    whole_bytes = sum(p.numel() * p.element_size() for p in full.model.language_model.layers.parameters())
    assert stored < 0.3 * whole_bytes
    small = make_data(corpus, max_branches=1, micro_token_budget=160).step_batch(0).micro[0]
    model(small).ce_sum.backward()
    gradients: list[Tensor | None] = [a.lora_B.weight.grad for a in model.adapters.values()]
    assert all(g is not None and bool((g != 0).any()) for g in gradients)


def test_a_target_that_matches_nothing_is_refused(corpus: Path) -> None:
    ids = make_data(corpus).processor.token_ids
    backbone = build_backbone(BackboneConfig(), token_ids=ids, source=str(tiny_hf(corpus)))
    with pytest.raises(TargetModuleError, match=r"'qkv_proj'.*Remedy.*q_proj"):
        ScaleEarth(backbone=backbone, adapters=AdapterConfig(targets=("q_proj", "qkv_proj")))
