"""A frozen 4-bit base that is sharded computes what it computed before, or the run does not start.

A mesh of one rank: the calls are those of many, the numbers must not change. Two ranks train in test_distributed.py.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fakes.ranks import in_group
from fakes.runs import make_data, tiny_model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from scaleearth_pl.core.errors import PreflightError
from scaleearth_pl.training import sharding
from scaleearth_pl.training.sharding import average_gradients, shard_frozen, transformer_blocks


def averaged(rank: int) -> list[Tensor]:
    """Gradients that both ranks have, one has, and none has, after they were averaged."""
    both, first, none = (
        torch.nn.Parameter(torch.ones(n, dtype=d)) for n, d in ((6, None), (4, None), (2, torch.double))
    )
    both.grad = (rank + 1) * torch.arange(6.0)
    if rank == 0:
        first.grad = torch.full((4,), 3.0)
    average_gradients([both, first, none])
    return [p.grad for p in (both, first, none)]


def test_gradients_are_averaged_and_absent_ones_take_part(tmp_path: Path) -> None:
    """First in this file: a process that is in a group of its own cannot be forked into another."""
    for gradients in in_group(averaged, tmp_path):
        expected = (1.5 * torch.arange(6.0), torch.full((4,), 1.5), torch.zeros(2, dtype=torch.double))
        assert all(a.equal(b) for a, b in zip(gradients, expected, strict=True))


def on(device: torch.device) -> Any:
    """A Trainer whose rank is there."""
    return SimpleNamespace(strategy=SimpleNamespace(root_device=device))


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """What `shard_frozen` asks of a LightningModule: a mesh of [nodes, devices] = [1, 1], and this rank's device."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    yield SimpleNamespace(device_mesh=mesh, trainer=on(torch.device("cpu")))
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


def test_all_is_on_the_device_before_ranks_talk(
    fake_corpus: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here, so a device that holds no numbers: what is broadcast, and what is computed, must be there."""
    model, batch = tiny_model(fake_corpus), make_data(fake_corpus).step_batch(0).micro[0]
    seen: list[str] = []

    class Stopped(Exception):
        pass

    def stop(_: Any, moved: Any) -> None:
        seen.extend(t.device.type for t in (moved.input_ids_T, moved.pixel_values_PD))
        raise Stopped

    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: seen.append(tensor.device.type))
    monkeypatch.setattr(type(model), "forward", stop)
    with pytest.raises(Stopped):
        shard_frozen(SimpleNamespace(device_mesh=module.device_mesh, trainer=on(torch.device("meta"))), model, batch)
    assert len(seen) > len(list(model.gsd_head.parameters())) + 2
    assert set(seen) == {"meta"}


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
