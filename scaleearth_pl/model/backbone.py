"""The Qwen3-VL backbone: built, loaded, quantised, checked, saved. transformers and bitsandbytes enter here.

Five things are done to every backbone, whatever its source:

- The language model attends over trees, the vision tower over all images of one size at once (`shared_image`).
- The patch embedding, a Conv3d whose kernel equals its stride, is computed as the matrix product that it is: on some
  builds of torch the convolution is 10 to 20 times slower. Its weight keeps the Conv3d shape, so files stay those of
  transformers.
- The last block can leave out tokens whose states nobody reads (`surgery.LastLayer`).
- Rotary frequencies stay fp32 under `.to(torch.bfloat16)`: at position 300 a rounded frequency would be half a radian
  off.
- Special token ids come from the tokenizer that the data was made with; a folder that disagrees is refused.

NF4 follows QLoRA (Dettmers et al. 2023): 4-bit normal-float blocks of 64 with double quantisation, for the projections
of the LLM blocks only. Names to skip are matched from their start, so "visual" would skip nothing and quantise the
vision tower without a word; hence `assert_quantisation` looks at the class of every layer. Quantisation happens while
loading, so it needs a folder: the tiny model must have been through stage 1.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers import logging as transformers_logging

from scaleearth_pl.core.errors import CheckpointError, ConfigError, TargetModuleError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.dequantised import DequantisedLinear, keep_dequantised
from scaleearth_pl.model.shapes import shape_config, tiny_config
from scaleearth_pl.model.shared_image import Attention, set_attention
from scaleearth_pl.model.surgery import keep_rotary_exact, replace_patch_embed_conv, skip_unread_rows

__all__ = [
    "BackboneConfig",
    "TokenIds",
    "assert_quantisation",
    "build_backbone",
    "freeze",
    "replace_patch_embed_conv",
    "save_backbone",
    "shape_config",
    "silence_loading",
    "tiny_config",
]

TINY = "tiny"
"""Source of a randomly initialised tiny backbone."""

UNQUANTISED = ("model.visual", "lm_head")
"""Prefixes of full module names that stay in full precision; naming any drops transformers' default skip of lm_head."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone, in which precision.

    Attributes:
        source: "tiny", a Hugging Face folder, or a name on the hub.
        quantise: "nf4" puts the projections of the LLM blocks in 4-bit.
        dtype: of all other weights, and of computation.
        keep_dequantized: hold the NF4 values written out in `dtype` (`dequantised.py`): faster, four times the memory.
        checkpointing: recompute activations in the backward: about 1.4 times the time for a tenth of the memory.
            "auto": the stage decides once it knows the micro-batches (`training/memory.py`); off until then.
        attention: "tree" (needs a layout), or "sdpa" for plain sequences, as other trainers run them.
        seed: of the tiny backbone's initial weights.
    """

    source: str = TINY
    quantise: Literal["none", "nf4"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    keep_dequantized: bool = False
    checkpointing: bool | Literal["auto"] = False
    attention: Attention = "tree"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("no backbone named", field="backbone.source", remedy="'tiny', a folder, or a hub name")
        if self.keep_dequantized and self.quantise != "nf4":
            raise ConfigError("nothing to dequantise", field="keep_dequantized", value=True, remedy="quantise: nf4")


def silence_loading() -> None:
    """No progress bars of transformers, no word of a kernel that bitsandbytes tries: for commands and their workers.

    Both write on standard error whatever is loaded. It changes the whole process, so no library function calls it.
    """
    transformers_logging.disable_progress_bar()
    # It looks for an optional kernel on AVX512-BF16 hosts; its own fallback is exact.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def build_backbone(
    config: BackboneConfig, *, token_ids: TokenIds, source: str | None = None, device: torch.device | None = None
) -> Any:
    """A `Qwen3VLForConditionalGeneration`, ready for `shared_image`; all its parameters require gradients if they can.

    Args:
        config: see `BackboneConfig`.
        token_ids: of the tokenizer that the data was made with.
        source: used instead of `config.source`, such as the folder that stage 1 wrote.
        device: where 4-bit weights are made; None is torch's default device, the host unless one is set. Left to
            itself transformers takes the current GPU, whatever the model is for.

    Raises:
        ConfigError: nf4 asked of the tiny random model.
        CheckpointError: a folder that is absent, incomplete, quantised already, or made for another tokenizer.
    """
    source = config.source if source is None else source
    model = _tiny(config, token_ids) if source == TINY else _loaded(config, token_ids, source, device)
    set_attention(model, config.attention)
    replace_patch_embed_conv(model)
    skip_unread_rows(model)
    keep_rotary_exact(model)
    if config.quantise == "nf4":
        assert_quantisation(model)
    if config.keep_dequantized:
        keep_dequantised(model)
    if config.checkpointing is True:
        model.activation_checkpointing_enable()
    return model


def _tiny(config: BackboneConfig, ids: TokenIds) -> Any:
    if config.quantise != "none":
        raise ConfigError(
            "a random model cannot be quantised: 4-bit weights are made while loading a folder",
            field="backbone.quantise",
            value=config.quantise,
            remedy="run stage 1 first and set init_from to the hf/ folder that it writes",
        )
    shape = tiny_config(ids.vocab_size)
    for name, value in _config_ids(ids).items():
        setattr(shape, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen3VLForConditionalGeneration(shape)
    keep_rotary_exact(model)
    _set_generation_ids(model, ids)
    return model.to(getattr(torch, config.dtype))


def _loaded(config: BackboneConfig, ids: TokenIds, source: str, device: torch.device | None) -> Any:
    offline = Path(source).is_dir() or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    dtype = getattr(torch, config.dtype)
    try:
        _refuse_quantised(Qwen3VLConfig.from_pretrained(source, local_files_only=offline), source)
        nf4 = config.quantise == "nf4"
        if nf4:
            import_bitsandbytes()
        model, report = Qwen3VLForConditionalGeneration.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=_nf4(dtype) if nf4 else None,
            device_map={"": str(device or torch.get_default_device())} if nf4 else None,
            local_files_only=offline,
            use_safetensors=True,  # those are the files that `adapter_files.base_hash` reads
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"no backbone there: {str(error).splitlines()[0]}",
            file=source,
            field="backbone.source",
            remedy="name an existing Hugging Face folder, or a model of the hub while online",
        ) from error
    _check_report(report, source)
    _check_ids(model.config, ids, source)
    _set_generation_ids(model, ids)
    return model


def import_bitsandbytes() -> None:
    """Imports bitsandbytes without torch's inductor, which takes 1.8 s of CPU beside 0.1 s for all the rest.

    It has `torch.compile` wrap functions for machines without its library, and takes them as they are where that fails.
    """
    with _compiling_refused():
        import bitsandbytes  # noqa: F401


@contextmanager
def _compiling_refused() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("nothing is compiled while a library is imported")

    compiling = torch.compile
    torch.compile = refuse
    try:
        yield
    finally:
        torch.compile = compiling


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Storage in the compute dtype, as FSDP needs it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=list(UNQUANTISED),
    )


def _config_ids(ids: TokenIds) -> dict[str, int]:
    return {
        "image_token_id": ids.image_pad,
        "video_token_id": ids.video_pad,
        "vision_start_token_id": ids.vision_start,
        "vision_end_token_id": ids.vision_end,
    }


def _set_generation_ids(model: Any, ids: TokenIds) -> None:
    model.generation_config.eos_token_id = ids.im_end
    model.generation_config.pad_token_id = ids.pad


def _refuse_quantised(shape: Qwen3VLConfig, source: str) -> None:
    """Of two forms transformers takes the folder's own, not the one that was asked for, with no more than a warning."""
    form = getattr(shape, "quantization_config", None)
    if form is not None:
        raise CheckpointError(
            "the weights are quantised already",
            file=source,
            field="quantization_config",
            value=form.get("quant_method") if isinstance(form, dict) else form,
            remedy="name the folder in full precision; NF4 is made from it while loading",
        )


def _check_report(report: Mapping[str, Any], source: str) -> None:
    """Weights that were not in the file would be random, and nobody would say so."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report.get(kind) or ())):
            remedy = "the folder is incomplete or of another model; write it again"
            raise CheckpointError(f"backbone has {kind}", file=source, field=kind, value=found[:3], remedy=remedy)


def _check_ids(shape: Qwen3VLConfig, ids: TokenIds, source: str) -> None:
    remedy = "use the tokenizer that lies beside the weights"
    for name, value in _config_ids(ids).items():
        if getattr(shape, name) != value:
            problem = f"made for another tokenizer, whose {name} is {value}"
            raise CheckpointError(problem, file=source, field=name, value=getattr(shape, name), remedy=remedy)
    if shape.text_config.vocab_size < ids.vocab_size:
        problem = f"made for another tokenizer: it has {ids.vocab_size} tokens"
        value = shape.text_config.vocab_size
        raise CheckpointError(problem, file=source, field="vocab_size", value=value, remedy=remedy)


def assert_quantisation(model: Any) -> int:
    """Number of 4-bit layers: all projections of the LLM blocks and nothing else; 0 in a model that is not quantised.

    Those that `keep_dequantized` wrote out hold 4-bit values, and count.
    LoRA layers added since (`lora_A`, `lora_B`) are no projections of the backbone.

    Raises:
        TargetModuleError: a projection left in full precision, or a layer of vision tower, merger or head in 4-bit.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n}
    four_bit = {n for n, m in linears.items() if type(m).__name__ == "Linear4bit" or isinstance(m, DequantisedLinear)}
    quantised = getattr(model.config, "quantization_config", None) is not None
    wanted = {n for n in linears if n.startswith("model.language_model.layers.")} if quantised else set()
    if four_bit != wanted:
        raise TargetModuleError(
            "4-bit layers are not exactly the projections of the LLM blocks",
            field="quantise",
            value=sorted(four_bit ^ wanted)[:3],
            remedy=f"quantise through build_backbone, which skips {UNQUANTISED} by full name",
        )
    return len(four_bit)


def freeze(model: nn.Module) -> None:
    """No parameter of the backbone requires a gradient any more (4-bit ones never did)."""
    model.requires_grad_(False)


def save_backbone(model: Any, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Writes a Hugging Face folder that any tool of that ecosystem loads; the attention's name is not recorded.

    Args:
        model: from `build_backbone`, not quantised.
        folder: made if absent.
        state_dict: whole weights gathered from several ranks; None takes the model's own.
    """
    model.save_pretrained(folder, state_dict=None if state_dict is None else dict(state_dict))
