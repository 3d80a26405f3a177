"""Which models a plain LoRA can stand for, and at which scales: a fold must be the model that was evaluated.

    model                                                    may be folded at            the fold then answers
    gate told every image's GSD                              any GSD, any sigma          images of about that GSD
    the same, told no sigma (`marginal: false`)              any GSD, sigma 0            images of about that GSD
    gate trained at one GSD (resolver policy "spoof")        that GSD, sigma 0           every image
    GSD written into the prompt (baseline gsd_text)          none: a folder of matrices holds no prompt

`verify.py` cannot tell: it compares a folder with the gated model at the *same* scale, also one at which nobody trained
or evaluated it. Here is decided what `Query.choice` decides for `ask` and `serve`.
"""

import math
from collections.abc import Sequence

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.loading.model import LoadedModel
from scaleearth_pl.serving.fold import FoldScale


def pinned_gsd_m(loaded: LoadedModel) -> float | None:
    """The one GSD at which the gate was trained, per pixel seen; None where it was told each image's own."""
    return loaded.model.resolver.config.spoof_gsd_m


def hears_sigma(loaded: LoadedModel) -> bool:
    """Whether the gate is ever told how sure a GSD is."""
    return loaded.model.resolver.config.marginal and pinned_gsd_m(loaded) is None


def check_foldable(loaded: LoadedModel, scales: Sequence[FoldScale]) -> None:
    """Raises `ConfigError` unless a fold at each of the scales is a model that was evaluated."""
    if (style := loaded.processor.gsd_text) != "none":
        raise ConfigError(
            "this model reads the GSD in its prompt, which a folded adapter cannot hold",
            file=loaded.adapter.path,
            field="gsd_text",
            value=style,
            remedy="answer with `scaleearth serve`, which writes it; or --native",
        )
    pinned_m = pinned_gsd_m(loaded)
    wrong = [scale.gsd_m for scale in scales if pinned_m is not None and not math.isclose(scale.gsd_m, pinned_m)]
    if wrong:
        raise ConfigError(
            f"this model's gate was trained at {pinned_m:g} m alone, and folded elsewhere is another model",
            file=loaded.adapter.path,
            field="gsd_m",
            value=wrong[0],
            remedy=f"--gsd-m {pinned_m:.12g}, which serves images of every GSD",
        )
    unheard = [scale.sigma_log10 for scale in scales if scale.sigma_log10 and not hears_sigma(loaded)]
    if unheard:
        raise ConfigError(
            "this model's gate is told no sigma",
            file=loaded.adapter.path,
            field="sigma",
            value=unheard[0],
            remedy="leave --sigma out",
        )
