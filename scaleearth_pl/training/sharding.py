"""FSDP2 for stage 1: every transformer block is a shard group, `ScaleEarth` is the root.

Lightning's `ModelParallelStrategy` gives the device mesh; without it these functions do nothing. With both of its sizes
left at "auto" the mesh is [nodes, devices of a node], whatever their number; Lightning calls the axes data_parallel and
tensor_parallel, here all ranks read data of their own: parameters are sharded inside a node, where links are fast, and
replicated over nodes (hybrid sharding). Stage 2 on GPUs is DDP: an NF4 8B model needs about 7 GB, and 4-bit weights
under FSDP2 have an open corruption bug (bitsandbytes #1945).
"""

from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

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
    for method in ("answer",):
        register_fsdp_forward_method(model, method)


def transformer_blocks(model: ScaleEarth) -> list[nn.Module]:
    """The repeated blocks of vision tower and LLM: what is gathered, used and dropped one at a time."""
    inner = model.backbone.model
    return [*inner.visual.blocks, *inner.language_model.layers]


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """The whole state on the CPU of rank 0 (empty elsewhere under FSDP2): a collective, so call it on every rank."""
    distributed = dist.is_available() and dist.is_initialized()
    options = StateDictOptions(full_state_dict=True, cpu_offload=distributed)
    return dict(get_model_state_dict(module, options=options))
