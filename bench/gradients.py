"""Is it the same gradient? Asked before any clock is started; a faster trainer of something else is worth nothing.

Two references, both plain: every question alone, transformers' own forward with ordinary attention, losses added up.

- *gated*: our packed trees against the same gated adapters read question by question; all trained numbers, thresholds
  included. It proves the packing.
- *open*: the gate held open is plain LoRA, which is what the peers train. Their adapters get our weights, their own
  training step makes the gradient. It proves that all contenders do the same work.

The error is ||g - g_ref|| / ||g_ref|| over all trained numbers at once, float32. B is drawn, not zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.ours import LoraShape, build, forward_backward, gradients, randomise_b
from bench.peers import Peer
from bench.shapes import Bank
from scaleearth_pl.model.scaleearth import ScaleEarth


def relative_error(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of the reference, all tensors as one vector.

    Raises:
        ValueError: the two do not hold the same names.
    """
    if found.keys() != reference.keys():
        raise ValueError(f"gradients of different parameters: {sorted(found.keys() ^ reference.keys())[:4]}")
    difference = sum(float((found[n].double() - g.double()).square().sum()) for n, g in reference.items())
    return (difference / sum(float(g.double().square().sum()) for g in reference.values())) ** 0.5


def reference_gradients(model: ScaleEarth, bank: Bank, numbers: range) -> dict[str, Tensor]:
    """Gradients of the mean loss over supervised tokens, one plain sequence at a time.

    Args:
        model: built with attention "sdpa".
        bank: the questions.
        numbers: which of them.
    """
    n_supervised = sum(int(bank.trees([n], k=1).supervised_T.sum()) for n in numbers)
    model.zero_grad()
    for number in numbers:
        batch, inputs = bank.trees([number], k=1), bank.sequences([number])
        labels_BL = inputs.pop("labels")
        model.scale.set(*model.resolve(batch, None, None, predicted_share=0.0), batch.tree_of_token_T[None])
        logits = model.backbone(**inputs, use_cache=False).logits
        loss = cross_entropy(logits[0, :-1].float(), labels_BL[0, 1:], reduction="sum")
        (loss / n_supervised).backward()
    found = gradients(model)
    model.zero_grad()
    return found


def ours_error(bank: Bank, lora: LoraShape, numbers: range, *, k: int) -> float:
    """Error of gated packed trees of `k` against the gated plain reference."""
    packed, plain = build(bank.processor, lora), build(bank.processor, lora, attention="sdpa")
    for model in (packed, plain):
        randomise_b(model)
    reference = reference_gradients(plain, bank, numbers)
    forward_backward(packed, [bank.trees(numbers, k=k)])
    return relative_error(gradients(packed), reference)


def peer_error(peer: Peer, lora: LoraShape, numbers: range) -> float:
    """Error of a peer's own training step against the open plain reference, on one batch of its size."""
    plain = build(peer.bank.processor, lora, gate="open", attention="sdpa")
    randomise_b(plain)
    weights = {n: p.detach().clone() for n, p in plain.named_parameters() if p.requires_grad}
    reference = reference_gradients(plain, peer.bank, numbers)
    names = {_our_name(n): p for n, p in peer.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in names.items()}
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(weights[name])
    peer.model.zero_grad()
    peer.forward_backward([peer.bank.sequences(numbers)])
    found = {n: p.grad.detach().clone() for n, p in names.items() if p.grad is not None}
    peer.model.zero_grad()
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(before[name])
    return relative_error(found, reference)


def _our_name(peft_name: str) -> str:
    """`base_model.model.X.lora_A.default.weight` is our `backbone.X.lora_A.weight`."""
    return peft_name.replace("base_model.model.", "backbone.", 1).replace(".default.", ".")
