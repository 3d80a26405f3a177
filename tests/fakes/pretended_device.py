"""A device that is pretended: every tensor counts as on it but those that came to the host, or were made there.

What would make the host wait on a GPU is then found on a CPU, in anybody's code, transformers' included: a device tensor
that is read, an operator whose result's size depends on values, a copy that is not queued. Only calls are seen, not
what runs inside a backward.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

READS = (
    "tolist",
    "item",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "numpy",
    "equal",
    "allclose",
)
SIZES = ("nonzero", "masked_select", "unique", "unique_consecutive", "bincount", "argwhere")
MADE = ("tensor", "as_tensor", "arange", "zeros", "ones", "full", "empty", "linspace", "eye")
"""Makers of tensors from numbers: on the host unless a device is named."""


class PretendedDevice(TorchFunctionMode):
    """Counts waits by place: file, function and call."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._host: Any = WeakIdKeyDictionary()

    def of(self, *packages: str) -> dict[str, int]:
        """Waits in files of these packages; the CPU's own attention kernel is left out, which no GPU runs."""
        return {place: n for place, n in self.waits.items() if place.startswith(packages) and "buckets" not in place}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, tensors = getattr(func, "__name__", ""), list(tensors_of((args, kwargs)))
        on_host = all(tensor in self._host for tensor in tensors)
        to_host = name == "cpu" or (name == "to" and ("cpu" in args or kwargs.get("device") == "cpu"))
        if not name.startswith("__get__") and self._waits(name, args, kwargs, on_host=on_host, to_host=to_host):
            self.waits[f"{place()}: {name}"] += 1
        out = func(*args, **kwargs)
        goes = name == "to" and not to_host and any(isinstance(x, torch.device) for x in (*args, *kwargs.values()))
        if (to_host and not on_host) or (goes and on_host):
            out = out.clone()  # on a CPU it may be the very tensor that counts as on the other side
        made_there = name in MADE and kwargs.get("device") is not None
        if to_host or (on_host and not goes and not made_there and (tensors or name in MADE)):
            for tensor in tensors_of(out):
                self._host[tensor] = True
        return out

    def _waits(self, name: str, args: Any, kwargs: Any, *, on_host: bool, to_host: bool) -> bool:
        if on_host:
            copied = name in ("tensor", "as_tensor") and kwargs.get("device") is not None
            goes = name == "to" and any(isinstance(x, torch.device) for x in args) and args[0].numel() > 0
            return copied or (goes and not kwargs.get("non_blocking"))
        untold = name == "repeat_interleave" and kwargs.get("output_size") is None
        masked = name in ("__getitem__", "__setitem__") and any(x.dtype is torch.bool for x in tensors_of(args[1]))
        return untold or masked or to_host or name in (*READS, *SIZES, "new_tensor") or name in MADE


class Watched(pl.Callback):
    """Watches the training steps, and nothing else of a run."""

    def __init__(self) -> None:
        self.device = PretendedDevice()
        self.n_micro = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.n_micro += len(batch.micro)
        self.device.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.device.__exit__(None, None, None)


def tensors_of(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))


def place() -> str:
    """Package, file and function of the innermost frame that is neither torch's nor ours here."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or "/site-packages/torch/" in frame.f_code.co_filename:
        assert frame.f_back is not None
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    package = next((p for p in ("scaleearth_pl", "transformers", "lightning") if p in path.parts), "")
    return f"{package} {path.name} {frame.f_code.co_qualname}"
