"""Leaving out rows that nobody reads in the last block changes no number."""

import pytest
import torch
from tree_fakes import IDS, RAGGED, VOCAB, make_batch

from scaleearth_pl.core.errors import TargetModuleError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shared_image import TreeLayout, encode_images, hidden_states
from scaleearth_pl.model.surgery import skip_unread_rows

TOKENS = TokenIds(**IDS, vocab_size=VOCAB)


def adapted(checkpointing):
    backbone = build_backbone(BackboneConfig(checkpointing=checkpointing), token_ids=TOKENS)
    model = ScaleEarth(backbone=backbone, adapters=AdapterConfig(rank=6)).train()
    for i, adapter in enumerate(model.adapters.values()):
        torch.nn.init.normal_(adapter.lora_B.weight, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


def summed(model, batch, kept_K):
    """Sum of the states of the supervised tokens and its gradients, with or without leaving out the others."""
    rows = batch.supervised_T.nonzero()[:, 0]
    features = encode_images(model.backbone, batch.pixel_values_PD, batch.image_grid_I3)
    model.scale.set(*model.resolve(batch, None, None, predicted_share=0.0), batch.tree_of_token_T[None], kept_K)
    hidden = hidden_states(model.backbone, batch, features, TreeLayout.from_batch(batch), kept_K=kept_K)
    states = hidden if kept_K is not None else hidden[rows]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return states, torch.autograd.grad(states.square().sum(), parameters)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_and_gradients_of_kept_tokens_are_the_same(checkpointing):
    model, batch = adapted(checkpointing), make_batch(RAGGED)
    batch.log10_gsd_G.copy_(torch.tensor([-0.5, 0.6, 1.8]))
    whole, whole_grads = summed(model, batch, None)
    kept, kept_grads = summed(model, batch, batch.supervised_T.nonzero()[:, 0])
    torch.testing.assert_close(kept, whole, rtol=1e-5, atol=1e-6)
    error = sum((a - b).square().sum() for a, b in zip(kept_grads, whole_grads, strict=True))
    assert float(error / sum(g.square().sum() for g in whole_grads)) < 1e-12


def test_nothing_supervised_gives_zero_gradients_to_all():
    """A rank without work runs such a batch, and its collectives must match those of the others."""
    model = adapted(checkpointing=False)
    out = model(make_batch(RAGGED).weightless())
    out.ce_sum.backward()
    assert float(out.ce_sum.detach()) == 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not bool(parameter.grad.any())


def test_a_last_block_that_deepstack_adds_to_is_refused():
    backbone = build_backbone(BackboneConfig(), token_ids=TOKENS)
    del backbone.model.language_model.layers[2:]
    with pytest.raises(TargetModuleError, match="DeepStack"):
        skip_unread_rows(backbone)
