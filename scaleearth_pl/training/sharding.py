"""FSDP2 for stage 1: every transformer block is a shard group, `ScaleEarth` is the root.

Lightning's `ModelParallelStrategy` gives the device mesh; without it these functions do nothing. With both of its sizes
left at "auto" the mesh is [nodes, devices of a node], whatever their number; Lightning calls the axes data_parallel and
tensor_parallel, here all ranks read data of their own: parameters are sharded inside a node, where links are fast, and
replicated over nodes (hybrid sharding).

Stage 2 on GPUs is DDP: an NF4 8B model needs about 7 GB, and 4-bit weights under FSDP2 have an open corruption bug
(bitsandbytes #1945). Where it is sharded all the same, only the frozen base is; what trains is replicated, as in DDP, so
that observers and checkpoints see whole tensors, and its gradients are averaged in one all-reduce a step. Start-up
asserts that the sharded forward is the unsharded one to the bit.
"""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import PreflightError
from scaleearth_pl.model.scaleearth import ScaleEarth


def shard_model(module: pl.LightningModule, model: ScaleEarth) -> None:
    """Shards blocks and root in place over the last axis of the strategy's mesh; no mesh, no change."""
    if module.device_mesh is None:
        return
    nodes, devices = module.device_mesh["data_parallel"], module.device_mesh["tensor_parallel"]
    mesh = devices if nodes.size() == 1 else module.device_mesh
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # What callers use besides `forward`. `logits` and `generate` run inside these two, where all is gathered already.
    register_fsdp_forward_method(model, "answer")


def shard_frozen(module: pl.LightningModule, model: ScaleEarth, batch: TreeBatch) -> None:
    """Shards what is frozen, replicates what trains; no mesh, no change.

    Raises:
        PreflightError: the loss of `batch` is not the same before and after.
    """
    if module.device_mesh is None:
        return
    nodes, devices = module.device_mesh["data_parallel"], module.device_mesh["tensor_parallel"]
    mesh = devices if nodes.size() == 1 else module.device_mesh
    in_order = [p for p in model.parameters() if p.requires_grad]  # a set has another order on every rank
    trained = set(in_order)
    for parameter in in_order:
        dist.broadcast(parameter.data, src=0)
    before = model(batch).ce_sum.detach()
    for block in transformer_blocks(model):
        # Each block is a root of its own, and what a root gathers stays gathered unless asked otherwise.
        ignored = {p for p in block.parameters() if p in trained}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    after = model(batch).ce_sum.detach()
    if not torch.equal(before, after):
        raise PreflightError(
            "the sharded forward is not the unsharded one",
            field="trainer.strategy",
            value=(float(before), float(after)),
            remedy="use strategy ddp: 4-bit weights are not safe under FSDP2 here",
        )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of replicated parameters over ranks, one all-reduce for each dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:  # the same collective on every rank
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def transformer_blocks(model: ScaleEarth) -> list[nn.Module]:
    """The repeated blocks of vision tower and LLM: what is gathered, used and dropped one at a time."""
    inner = model.backbone.model
    return [*inner.visual.blocks, *inner.language_model.layers]


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """The whole state on the CPU of rank 0 (empty elsewhere under FSDP2): a collective, so call it on every rank."""
    distributed = dist.is_available() and dist.is_initialized()
    options = StateDictOptions(full_state_dict=True, cpu_offload=distributed)
    return dict(get_model_state_dict(module, options=options))
