"""Two changes made to every Qwen3-VL in place, neither visible in its parameters, names or files.

Both only change the class of an existing module, so weights, hooks and quantisation stay as they are.
"""

from typing import Any

import torch.nn.functional as tf
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from scaleearth_pl.core.errors import TargetModuleError
from scaleearth_pl.model.keep_dtype import KeepsDtype


class PatchConv3d(nn.Conv3d):
    """A Conv3d whose kernel equals its stride and its input: one matrix product, same weight, same file."""

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [P, channels, time, height, width] to [P, out, 1, 1, 1]."""
        out_PD = tf.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return out_PD[:, :, None, None, None]


def replace_patch_embed_conv(model: Any) -> None:
    """Replaces the vision tower's patch convolution by `PatchConv3d` on the same parameters, in place.

    Raises:
        TargetModuleError: the convolution is not the one that we know to be a matrix product.
    """
    embed = model.model.visual.patch_embed
    conv: nn.Conv3d = embed.proj
    if isinstance(conv, PatchConv3d):
        return
    if conv.kernel_size != conv.stride or any(map(bool, conv.padding)) or conv.groups != 1:
        value = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
        raise TargetModuleError("patch embedding is not a matrix product", field="patch_embed.proj", value=value)
    conv.__class__ = PatchConv3d


class _ExactTextRotary(KeepsDtype, qwen.Qwen3VLTextRotaryEmbedding):  # type: ignore[misc]
    """The LLM's m-rope, deaf to casts."""


class _ExactVisionRotary(KeepsDtype, qwen.Qwen3VLVisionRotaryEmbedding):  # type: ignore[misc]
    """The vision tower's rope, deaf to casts."""


def keep_rotary_exact(model: Any) -> None:
    """Frequencies of both rotary embeddings keep their fp32 through any cast of the model, in place."""
    model.model.language_model.rotary_emb.__class__ = _ExactTextRotary
    model.model.visual.rotary_pos_emb.__class__ = _ExactVisionRotary
