"""Preflight: everything that would spoil a run and can be seen in seconds, seen before step 0.

Each check is a function of the module and the first real micro-batch; it returns what it found or raises
`PreflightError` with the remedy. Gradients are taken with `torch.autograd.grad`, which does not touch `.grad` nor the
hooks of DDP, so a preflight leaves no trace.

At B = 0 the gradients of A and of the thresholds are exactly zero (dL/dA contains B as a factor). So B is checked as
it is, and A and the thresholds on a B that is perturbed and then restored.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import PreflightError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.data.plan import Items
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.data.split import Kind
from scaleearth_pl.model.activations import bytes_per_token
from scaleearth_pl.model.scaleearth import ScaleEarth

PERTURBATION = 1e-2
"""Standard deviation of the temporary noise on B, relative to 1/sqrt(rank)."""


def check_tokens(model: ScaleEarth, batch: TreeBatch) -> int:
    """Image placeholders equal visual features, ids fit the vocabulary, something is supervised; returns the latter."""
    config = model.backbone.config
    placeholders = int((batch.input_ids_T == config.image_token_id).sum())
    merge = config.vision_config.spatial_merge_size**2
    features = int(batch.image_grid_I3.prod(-1).sum()) // merge
    if placeholders != features:
        raise PreflightError(
            "image tokens do not match image features",
            field="tokens, features",
            value=(placeholders, features),
            remedy="the processor's patch and merge size must be the backbone's; rebuild the lengths cache",
        )
    largest = int(batch.input_ids_T.max())
    if largest >= config.text_config.vocab_size:
        raise PreflightError(
            "token id outside the vocabulary",
            field="input_ids",
            value=largest,
            remedy="tokenizer and backbone do not belong together",
        )
    supervised = int(batch.supervised_T.sum())
    if supervised == 0:
        raise PreflightError("no supervised token in the first batch", remedy="look at the answers of the corpus")
    return supervised


def check_evaluated_scales(model: ScaleEarth, items: Items, index: ShardIndex, kind: Kind) -> None:
    """Policy "metadata" refuses an image without a GSD in evaluation: at the first validation or test, hours from now."""
    if not model.adapters or model.resolver.config.policy != "metadata":
        return
    unknown = [row for row in dict.fromkeys(items.row_N.tolist()) if index.tier_of_row(row) is Tier.UNKNOWN]
    if unknown:
        raise PreflightError(
            f"{'validation' if kind == 'val' else 'the test after training'} would stop at images without a GSD",
            file=index.where(unknown[0]),
            field="resolver.policy",
            value=f"metadata, {len(unknown)} such images",
            remedy=f"keep them out of the {kind} split, use policy predicted or fused, or set "
            + ("trainer.limit_val_batches 0" if kind == "val" else "test_after_fit false"),
        )


def in_words(books: Mapping[str, int]) -> str:
    """What is read of a split, and what is not or not as it is (`SplitPlan.books`)."""
    changes = {name: count for name, count in books.items() if count and name not in ("images", "questions")}
    words = [f"{count:,} {name.replace('_', ' ')}" for name, count in changes.items()]
    return "; ".join([f"{books['questions']:,} questions about {books['images']:,} images", *words])


def check_base_frozen(module: nn.Module, groups: Iterable[Iterable[nn.Parameter]]) -> int:
    """Nothing trains outside the optimizer's groups; returns the number of trained parameters."""
    wanted = {id(p) for group in groups for p in group}
    stray = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in wanted]
    if stray:
        raise PreflightError(
            "parameter requires a gradient but is in no group", field=stray[0], remedy="freeze it, or add it to a group"
        )
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def check_adapter_gradients(model: ScaleEarth, batch: TreeBatch) -> int:
    """Every B gets gradient as it is; every A and learnt threshold on a perturbed B. Returns the number of modules."""
    named_B = {f"{name}.lora_B": a.lora_B.weight for name, a in model.adapters.items()}
    _demand_gradient(model, batch, named_B)
    rest = {f"{name}.lora_A": a.lora_A.weight for name, a in model.adapters.items()}
    for name, adapter in model.adapters.items():
        rest |= {f"{name}.gate.{n}": p for n, p in adapter.gate.named_parameters() if p.requires_grad}
    with perturbed([a.lora_B.weight for a in model.adapters.values()]):
        _demand_gradient(model, batch, rest)
    return len(model.adapters)


def check_head_gradients(model: ScaleEarth, batch: TreeBatch) -> None:
    """SSE-U gets gradient wherever the first batch holds a GSD that may teach it."""
    if model.gsd_head is not None and bool((batch.nll_weight_G > 0).any()):
        gradients = _gradients(model(batch).nll_sum, dict(model.gsd_head.named_parameters()))
        silent = [name for name, g in gradients.items() if not _learns(g)]
        if silent:
            raise PreflightError(
                "SSE-U gets no gradient, or one that is not finite",
                field=f"gsd_head.{silent[0]}",
                remedy="leave SSE-U trainable; look at the GSDs of the corpus",
            )


def check_full_gradients(model: ScaleEarth, batch: TreeBatch) -> None:
    """Stage 1: vision tower and LLM both get finite gradient."""
    inner = model.backbone.model
    named = {"visual": inner.visual.blocks[0], "language_model": inner.language_model.layers[0]}
    _demand_gradient(model, batch, {k: next(p for p in m.parameters() if p.ndim > 1) for k, m in named.items()})


def _demand_gradient(model: ScaleEarth, batch: TreeBatch, named: Mapping[str, nn.Parameter]) -> None:
    loss = model(batch).ce_sum
    if not bool(torch.isfinite(loss.detach())):
        raise PreflightError("loss is not finite before step 0", field="loss", value=float(loss.detach()))
    for name, gradient in _gradients(loss, named).items():
        if not _learns(gradient):
            raise PreflightError(
                "adapter gets no gradient" if model.adapters else "weights get no gradient",
                field=name,
                value=None if gradient is None else float(gradient.abs().max()),
                remedy="every adapted layer must take part in the forward pass; check targets and checkpointing",
            )


def _gradients(loss: Tensor, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """Gradients by name; None for a parameter that is frozen or that the loss does not depend on."""
    wanted = {name: p for name, p in named.items() if p.requires_grad and loss.requires_grad}
    with torch.autocast(loss.device.type, enabled=False):  # as the training step's backward
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if wanted else ()
    return dict.fromkeys(named) | dict(zip(wanted, found, strict=True))


def _learns(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())


@contextmanager
def perturbed(parameters: list[nn.Parameter], seed: int = 0) -> Iterator[None]:
    """Adds small seeded noise to the parameters, and restores their exact bits at the end."""
    saved = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for p in parameters:
                noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
                p.add_(noise, alpha=PERTURBATION / math.sqrt(p.shape[-1]))
        yield
    finally:
        with torch.no_grad():
            for p, original in zip(parameters, saved, strict=True):
                p.copy_(original)


def predicted_peak_bytes(model: ScaleEarth, tokens: int, *, checkpointing: bool) -> int:
    """Weights, AdamW's two moments and gradients of what trains (of this rank's shards), activations of one micro-batch.

    What a token's activations take, and what is left out of them: `model/activations.py`.
    """
    weights = sum(_bytes_here(p) for p in model.parameters())
    training = sum(_bytes_here(p) * 3 for p in model.parameters() if p.requires_grad)
    per_token = bytes_per_token(
        model.backbone.config.text_config,
        element=torch.finfo(model.backbone.lm_head.weight.dtype).bits // 8,
        rank=model.rank,
        trained=not model.adapters,
        checkpointing=checkpointing,
    )
    return weights + training + tokens * per_token


def bytes_on_disk(model: ScaleEarth, *, n_checkpoints: int) -> int:
    """What a run writes at most: checkpoints (what trains, with AdamW's two moments) and its result, all ranks together."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (3 * n_checkpoints + 1)


def _bytes_here(parameter: nn.Parameter) -> int:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel() * local.element_size()
