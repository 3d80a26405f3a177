"""4-bit weights back to ordinary ones: the base that servers and PEFT can load, once for all adapters.

Weights trained against NF4 differ from the unquantised base: each block of 64 was rounded, and the adapter learnt
around that rounding. So a server gets the *dequantised* base, the same rounded numbers in full precision, and not the
checkpoint that quantisation started from. What then still differs from training is arithmetic only (the 4-bit kernel's
own rounding), which `export-base` measures and reports apart from the fold.
"""

from typing import Any

from scaleearth_pl.model.dequantised import DequantisedLinear, keep_dequantised


def dequantise(backbone: Any) -> int:
    """Writes out every 4-bit layer, in place, and lets the model forget that it was quantised; returns how many.

    Works under adapters too (`GatedLoRALinear.base`). The weights come in the dtype that training computed in.
    """
    keep_dequantised(backbone)
    n_layers = sum(isinstance(layer, DequantisedLinear) for layer in backbone.modules())
    if n_layers:
        _forget_quantisation(backbone)
    return n_layers


def _forget_quantisation(backbone: Any) -> None:
    """What transformers noted when it quantised, which would be written into `config.json`."""
    for holder, name in ((backbone.config, "quantization_config"), (backbone, "hf_quantizer")):
        if hasattr(holder, name):
            delattr(holder, name)
    for name in ("is_quantized", "is_loaded_in_4bit"):
        setattr(backbone, name, False)
    backbone.quantization_method = None
