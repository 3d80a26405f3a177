"""Modules whose precision is part of their meaning: `.to(torch.bfloat16)` moves them but does not round them.

A cast of the whole model, by hand or by Lightning's `bf16-true` (which the stages refuse: it rounds GSDs too), is right
for the backbone and wrong for three small things: gate thresholds (near tau = 2 a bfloat16 step is 0.016 decades, more than
most optimizer steps: they would never move), SSE-U (0.01 decades is the trust in an exact label), and LoRA weights that
were asked for in float32 as masters of a bfloat16 forward. Their dtype is what their configuration says; the price is
that such a module cannot be cast by the usual call, only by rebuilding it.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn


class KeepsDtype(nn.Module):
    """Base of modules whose floating-point tensors, children included, keep their dtype; they still change device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Hook of `nn.Module` behind `.to()`, `.cuda()`, `.half()`: the cast, and only the cast, is undone."""
        applied: nn.Module = super()._apply(partial(_move, fn), recurse)
        return applied


def _move(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
