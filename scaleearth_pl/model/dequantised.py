"""NF4 values without NF4's work: each 4-bit projection replaced by the matrix that it stands for.

A `Linear4bit` writes out its whole weight in the compute dtype in every forward and again in every backward. Where
memory allows, `backbone.keep_dequantized` does it once: 13.9 GB instead of 3.9 at 8B in bfloat16, and the very same
numbers, because what is multiplied is the same matrix (on a CPU without bitsandbytes' optional kernels, and on CUDA for
more than one row). The model stays a quantised one: adapters are trained against NF4 values and say so.
"""

from typing import Any

import torch
from torch import Tensor, nn

from scaleearth_pl.core.errors import TargetModuleError


class DequantisedLinear(nn.Linear):
    """A projection that holds NF4 values in full width, frozen."""

    @classmethod
    def of(cls, layer: Any) -> "DequantisedLinear":
        """The same product as `layer`, a bitsandbytes `Linear4bit`.

        Raises:
            TargetModuleError: `layer` has not been quantised yet, which happens on its way to the device.
        """
        from bitsandbytes.functional import dequantize_4bit

        if getattr(layer.weight, "quant_state", None) is None:
            raise TargetModuleError(
                "a 4-bit layer without values", field="keep_dequantized", value=type(layer).__name__
            )
        weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight = nn.Parameter(weight.to(layer.compute_dtype or weight.dtype), requires_grad=False)
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return made


@torch.no_grad()
def keep_dequantised(model: nn.Module) -> int:
    """Replaces every 4-bit layer in place; how many there were."""
    found = [(name, layer) for name, layer in model.named_modules() if type(layer).__name__ == "Linear4bit"]
    for name, layer in found:
        model.set_submodule(name, DequantisedLinear.of(layer))
    return len(found)
