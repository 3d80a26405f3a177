"""Sizes of the backbones: a tiny one that trains in minutes on a CPU, and the public dense Qwen3-VL models.

The public figures are those of the `config.json` files of Qwen/Qwen3-VL-{2B,4B,8B}-Instruct; they are written down here
so that memory and floors can be computed on torch's meta device without a download. To *train* a public model its own
folder is loaded, with its own configuration.

The tiny model keeps every mechanism of the large ones (grouped queries, QK norm, interleaved m-rope, DeepStack, untied
head) at 4 M parameters. Its rope base is 1e4 instead of 5e6: with 16 frequencies per head most of those of 5e6 would
not turn once in its few hundred positions.
"""

from typing import Any, Literal

from transformers import Qwen3VLConfig

Size = Literal["2b", "4b", "8b"]

_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}

_TEXT: dict[Size, dict[str, int]] = {
    "2b": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32},
}


def shape_config(size: Size) -> Qwen3VLConfig:
    """Configuration of a public dense Qwen3-VL model; untied head at 8B only."""
    text: dict[str, Any] = {
        **_TEXT[size],
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rope_parameters": _rope(theta=5_000_000.0, mrope_section=[24, 20, 20]),
        "tie_word_embeddings": size != "8b",
    }
    tower = _LARGE_TOWER if size == "8b" else _SMALL_TOWER
    vision = {**tower, "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": text["hidden_size"]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size != "8b")


def tiny_config(vocab_size: int = 1024) -> Qwen3VLConfig:
    """Configuration of the tiny backbone: 4 M parameters at the default vocabulary."""
    text: dict[str, Any] = {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": vocab_size,
        "max_position_embeddings": 32768,
        "rope_parameters": _rope(theta=10_000.0, mrope_section=[6, 5, 5]),
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "num_position_embeddings": 256,
        "out_hidden_size": 192,
        "deepstack_visual_indexes": [1, 2],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def _rope(*, theta: float, mrope_section: list[int]) -> dict[str, Any]:
    """Interleaved m-rope; the section lengths (time, height, width) add up to half a head."""
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "mrope_section": mrope_section,
        "mrope_interleaved": True,
    }
