"""A training step waits for the device only where its text says so: found on a CPU, by the operators that would wait."""

import traceback
from pathlib import Path

import pytest
import torch
from fakes.pretended_device import PretendedDevice, Watched
from fakes.runs import UNDRAWN, fit, make_data, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense": "a number read on the host",
    "nonzero": "a size that depends on values",
    "masked_select": "a size that depends on values",
    "_unique2": "a size that depends on values",
    "bincount": "a size that depends on values",
    "equal": "a truth value read on the host",
}
"""CUDA stops the host in these; `repeat_interleave` too, unless it is told its output's size."""


class Waits(TorchDispatchMode):
    """Every operator that would stop the host, with the line of this package that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        untold = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or untold:
            frames = [f for f in traceback.extract_stack() if "/site-packages/torch/" not in f.filename]
            last = frames[-2]  # who called torch; the last is this method
            if "scaleearth_pl" in last.filename:
                self.ours.append(f"{Path(last.filename).name}:{last.name}: {name}")
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def waits(fake_corpus: Path) -> list[str]:
    model = tiny_model(fake_corpus)
    batch = make_data(fake_corpus).step_batch(0).micro[0]
    with Waits() as seen:
        out = model(batch, predicted_share=0.2)
        assert out.nll_sum is not None
        (out.ce_sum + out.nll_sum).backward()
    return seen.ours


def test_a_forward_and_backward_wait_only_for_the_layout_and_the_supervised_places(waits: list[str]) -> None:
    """The layout's vectors are made on the host where the loader left them; there its operators wait for nothing."""
    stated = [wait for wait in waits if "tree_layout.py" not in wait]
    assert stated == ["scaleearth.py:forward: nonzero"]


def test_the_watch_sees_a_wait() -> None:
    namespace: dict[str, object] = {}
    exec(compile("def ask(x):\n    return float(x)", "scaleearth_pl/fake.py", "exec"), namespace)
    with Waits() as seen:
        namespace["ask"](torch.ones(()))  # type: ignore[operator]
    assert seen.ours == ["fake.py:ask: _local_scalar_dense"]


STATED = {
    "scaleearth_pl shared_image.py encode_images: cpu": 1,
    "scaleearth_pl tree_layout.py TreeLayout.from_batch: to": 1,
    "scaleearth_pl scaleearth.py ScaleEarth.forward: nonzero": 1,
}
"""Ours, in one micro-batch: where the images begin, where the trees lie, which tokens are supervised."""


def test_nobody_waits_inside_a_block(fake_corpus: Path) -> None:
    """transformers asks where images begin and which tokens are visual, a fixed number of times, whatever the depth."""
    model, batch = tiny_model(fake_corpus), make_data(fake_corpus).step_batch(0).micro[0]
    with PretendedDevice() as device:
        model(batch, predicted_share=0.2)
    assert device.of("scaleearth_pl") == STATED
    theirs = device.of("transformers")
    assert theirs
    assert not [
        place for place in theirs if "Attention" in place or "Block" in place or "Layer" in place or "MLP" in place
    ]


def test_a_step_waits_for_its_micro_batches_and_for_nothing_else(fake_corpus: Path, tmp_path: Path) -> None:
    words = [
        "--trainer.callbacks",
        "[{class_path: fakes.pretended_device.Watched}]",
        "--data.val_splits",
        "[]",
        *UNDRAWN,
    ]
    run = fit("stage2", fake_corpus, tmp_path, *words, "--trainer.enable_checkpointing", "false", steps=2)
    watched = next(c for c in run.trainer.callbacks if isinstance(c, Watched))
    assert watched.n_micro > 2
    waits = watched.device.of("scaleearth_pl")
    waits.pop("scaleearth_pl texture.py _colours: tensor", None)  # once a process
    assert waits == {place: n * watched.n_micro for place, n in STATED.items()}


def test_a_pretended_device_tells_host_from_device() -> None:
    there = torch.arange(3)
    with PretendedDevice() as device:
        host = there.cpu()
        host.tolist()
        (host * 2 + torch.ones(3)).sum().item()
        (there * 2).sum()
        there.to(torch.float64)
        host.to(there.device, non_blocking=True)
    assert {place.rpartition(": ")[2] for place in device.waits} == {"cpu"}
    with PretendedDevice() as device:
        (there * 2).sum().item()
        there[there > 1]
        torch.tensor([1.0], device=there.device)
        host = there.cpu()
        host.to(there.device)
        host.to(there.device, non_blocking=True).tolist()
    names = [place.rpartition(": ")[2] for place in device.waits]
    assert names == ["item", "__getitem__", "tensor", "cpu", "to", "tolist"]
