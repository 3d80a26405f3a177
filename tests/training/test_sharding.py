"""A frozen 4-bit base that is sharded computes what it computed before, or the run does not start.

One process with a mesh of one rank: the calls are those of many, the numbers must not change. Two ranks: C5 of `make torture`.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fakes.runs import make_data, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from scaleearth_pl.core.errors import PreflightError
from scaleearth_pl.training import sharding
from scaleearth_pl.training.sharding import average_gradients, shard_frozen, transformer_blocks


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """What `shard_frozen` asks of a LightningModule: a mesh of [nodes, devices] = [1, 1]."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    yield SimpleNamespace(device_mesh=mesh)
    dist.destroy_process_group()


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_the_base_is_sharded_and_what_trains_is_not(fake_corpus: Path, module: Any, quantise: str) -> None:
    model, batch = tiny_model(fake_corpus, quantise=quantise), make_data(fake_corpus).step_batch(0).micro[0]
    before = model(batch).ce_sum.detach()
    shard_frozen(module, model, batch)
    assert model(batch).ce_sum.detach().equal(before)
    parameters = [p for block in transformer_blocks(model) for p in block.parameters()]
    assert {isinstance(p, DTensor) for p in parameters if not p.requires_grad} == {True}
    assert {isinstance(p, DTensor) for p in parameters if p.requires_grad} == {False}


def test_another_forward_stops_the_run(fake_corpus: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes #1945 does on GPUs: sharding changes bytes of a weight, and no error is raised."""
    model, batch = tiny_model(fake_corpus), make_data(fake_corpus).step_batch(0).micro[0]

    def alter(block: torch.nn.Module, **settings: Any) -> None:
        next(p for p in block.parameters() if p.ndim == 1 and not p.requires_grad).data.mul_(1.01)

    monkeypatch.setattr(sharding, "fully_shard", alter)
    with pytest.raises(PreflightError, match=r"sharded forward is not the unsharded one.*strategy ddp"):
        shard_frozen(module, model, batch)


def test_without_a_mesh_nothing_changes(fake_corpus: Path) -> None:
    model, batch = tiny_model(fake_corpus), make_data(fake_corpus).step_batch(0).micro[0]
    shard_frozen(SimpleNamespace(device_mesh=None), model, batch)  # type: ignore[arg-type]
    assert not any(isinstance(p, DTensor) for p in model.parameters())


def test_gradients_are_averaged_and_absent_ones_take_part(module: Any) -> None:
    present, absent = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))
    present.grad = torch.arange(6.0).view(2, 3)
    average_gradients([present, absent])
    assert present.grad.equal(torch.arange(6.0).view(2, 3))
    assert absent.grad is not None
    assert absent.grad.equal(torch.zeros(4))
