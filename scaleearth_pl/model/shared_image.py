"""One image, many questions: how a tree batch passes through Qwen3-VL, whose source we do not touch.

Four public seams of transformers carry it:

- `AttentionInterface.register` makes `scaleearth_tree` an attention implementation of the language model, and
  `scaleearth_images` one of the vision tower: images of one size attend in one call of "sdpa" instead of one call each.
- `AttentionMaskInterface.register` under the same name returns no mask. Without it transformers would guess packed
  documents from position ids that restart, and branches would lose the image without a word.
- Keyword arguments of `forward` that nobody consumes reach the attention function of every layer, also when activation
  checkpointing runs a layer again. So the layout travels as `tree_layout`, not as global state.
- `mm_encoder_outputs` takes ready vision features: one vision pass per image feeds both SSE-U and the LLM, DeepStack
  levels included. Features are in the order of the images, which must be the order of their placeholders in the stream.

`lm_head` is not called here: the caller applies it at supervised positions only (0.55 GB instead of 4 GB of logits
at 8B and 8k tokens).

Legend: T tokens, K kept tokens, P patches, D numbers per patch, I images, H query heads, J key heads, W hidden width,
E head dimension of the vision tower.
"""

from typing import Any, Literal, Protocol

import torch.nn.functional as tf
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.vision_utils import get_vision_cu_seqlens

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.tree_attention import tree_attention
from scaleearth_pl.model.tree_layout import TreeLayout

__all__ = [
    "IMAGE_ATTENTION",
    "TREE_ATTENTION",
    "Attention",
    "LayerCache",
    "TreeLayout",
    "encode_images",
    "hidden_states",
    "set_attention",
]

TREE_ATTENTION = "scaleearth_tree"
IMAGE_ATTENTION = "scaleearth_images"
"""Names of the attention implementations in transformers' registry."""

Attention = Literal["tree", "sdpa"]
"""Ours, which needs a layout; or that of plain sequences, as other trainers run them."""


class LayerCache(Protocol):
    """What may stand between a layer and its attention: packed generation keeps keys and values there."""

    def attend(
        self, layer: int, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: TreeLayout, scale: float
    ) -> Tensor:
        """Attention output [T, H, D] of one layer."""
        ...


def set_attention(model: Any, kind: Attention) -> None:
    """Lets a `Qwen3VLForConditionalGeneration` attend over trees and images, or as it would on its own; in place."""
    ours = {"text_config": TREE_ATTENTION, "vision_config": IMAGE_ATTENTION}
    model.set_attn_implementation(ours if kind == "tree" else "sdpa")


def encode_images(model: Any, pixel_values_PD: Float[Tensor, "P D"], grid_I3: Int[Tensor, "I 3"]) -> Any:
    """One pass of the vision tower.

    Where the images begin is told as a host tensor, one copy: without a flash implementation each block of the tower
    makes a list of it, three times, and would wait for the device each time. Where all images have as many patches the
    tower is told of one sequence, and `_attend_images` cuts it: 11 images of 64 patches, 3 % of a tiny step on two
    threads, 1 % on one.

    Args:
        model: a `Qwen3VLForConditionalGeneration`.
        pixel_values_PD: patches of all images, one image after the other.
        grid_I3: patches per image in time, height, width.

    Returns:
        transformers' vision output: `last_hidden_state` [P, tower width], `pooler_output` (a tensor [tokens, W] per
        image) and `deepstack_features` (such a list per level). None if there is no image.
    """
    if grid_I3.shape[0] == 0:
        return None
    bounds, together = get_vision_cu_seqlens(grid_I3.cpu()), {}
    if model.config.vision_config._attn_implementation == IMAGE_ATTENTION and len({*bounds.diff().tolist()}) == 1:
        bounds, together = bounds[[0, -1]], {"together": len(bounds) - 1}
    return model.model.get_image_features(
        pixel_values_PD, grid_I3, return_dict=True, image_cu_seqlens=bounds, **together
    )


def hidden_states(
    model: Any,
    batch: TreeBatch,
    features: Any,
    layout: TreeLayout,
    *,
    cache: LayerCache | None = None,
    kept_K: Int[Tensor, " K"] | None = None,
) -> Float[Tensor, "K W"]:
    """Final hidden states of the kept tokens (default all T), each seeing only what its tree allows.

    Args:
        model: a `Qwen3VLForConditionalGeneration` with attention `scaleearth_tree`.
        batch: the trees.
        features: what `encode_images` returned for the images of this batch.
        layout: `TreeLayout.from_batch(batch)`.
        cache: keeps keys and values for generation; None in training.
        kept_K: places of the tokens whose states are wanted; the last block's MLP leaves out the others.
    """
    output = model.model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_3T[:, None],
        attention_mask=None,
        use_cache=False,
        mm_encoder_outputs=None if features is None else {"image": features},
        tree_layout=layout,
        tree_cache=cache,
        kept_K=kept_K,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    tree_layout: TreeLayout | None = None,
    tree_cache: LayerCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The registered function; transformers' signature, hence the open keywords (position ids and the like)."""
    if tree_layout is None or attention_mask is not None or dropout:
        raise ConfigError(
            "tree attention needs a layout, no mask and no dropout",
            field="tree_layout, attention_mask, dropout",
            value=(tree_layout is not None, attention_mask is not None, dropout),
            remedy="call hidden_states or greedy; for plain sequences model.set_attn_implementation('sdpa')",
        )
    q_THD, k_TJD, v_TJD = (x[0].transpose(0, 1) for x in (query, key, value))
    if tree_cache is None:
        out_THD = tree_attention(q_THD, k_TJD, v_TJD, tree_layout, scale=scaling)
    else:
        out_THD = tree_cache.attend(module.layer_idx, q_THD, k_TJD, v_TJD, tree_layout, scaling)
    return out_THD[None], None


def _attend_images(
    module: Any,  # noqa: ARG001
    query: Float[Tensor, "1 H P E"],
    key: Float[Tensor, "1 H P E"],
    value: Float[Tensor, "1 H P E"],
    attention_mask: None,  # noqa: ARG001
    *,
    scaling: float,
    together: int = 1,
    **_: Any,
) -> tuple[Float[Tensor, "1 P H E"], None]:
    """The registered function of the vision tower: `together` images of equal size, each over itself, in one call.

    Heads stand where a batch would, images where heads would: a view, nothing is copied.
    """
    q_HIPE, k_HIPE, v_HIPE = (x[0].unflatten(1, (together, -1)) for x in (query, key, value))
    out_HIPE = tf.scaled_dot_product_attention(q_HIPE, k_HIPE, v_HIPE, scale=scaling)
    return out_HIPE.flatten(1, 2).transpose(0, 1)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Tree attention knows from its layout what each token sees."""


AttentionInterface.register(TREE_ATTENTION, _attention)
AttentionInterface.register(IMAGE_ATTENTION, _attend_images)
AttentionMaskInterface.register(TREE_ATTENTION, _no_mask)
