"""ScaleEarth: LoRA ranks that open and close with the image's ground sampling distance (arXiv 2605.07562).

    import scaleearth_pl
    scaleearth_pl.load("runs/stage2-tiny-world/latest").ask("tile.tif", "How wide is the road?").text

`load` and `ScaleEarth` (whose `from_pretrained` it is) are imported on first use, so that `import scaleearth_pl` stays
cheap. The network itself is `scaleearth_pl.model.scaleearth.ScaleEarth`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_ENGINE = "scaleearth_pl.serving.engine"


def __getattr__(name: str) -> Any:
    """`scaleearth_pl.ScaleEarth` and `scaleearth_pl.load`, on first use."""
    if name not in ("ScaleEarth", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    assistant = importlib.import_module(_ENGINE).Assistant
    return assistant if name == "ScaleEarth" else assistant.from_pretrained
