"""Which pixels a model was trained on: it decides what a GSD means to the gate.

Looked for in this order: `extra.processor` of `scaleearth.json`, else the run's `config.yaml` (adapters written before
training recorded it).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.data.processor import GsdText, Processor
from scaleearth_pl.data.tokenizer import load_tokenizer
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterFolder

CONFIG = "config.yaml"
"""Every setting of a run, in its folder."""


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """What turns an image into the pixels that the model was trained on; see `data/processor.py`."""

    min_pixels: int
    max_pixels: int
    gsd_text: GsdText = "none"

    def processor(self, base: str) -> Processor:
        """With the tokenizer that lies beside the backbone."""
        return Processor(
            load_tokenizer(base), min_pixels=self.min_pixels, max_pixels=self.max_pixels, gsd_text=self.gsd_text
        )


def processor_settings(adapter: AdapterFolder) -> ProcessorSettings:
    """Pixel limits and GSD text that training used; see the module's docstring for where they are looked for.

    Raises:
        CheckpointError: neither says, or what it says cannot be used.
    """
    if (recorded := adapter.meta.extra.get("processor")) is not None:
        return parse_settings(recorded, adapter.path / OUR_CONFIG)
    file = adapter.path.parent / CONFIG
    if (data := read_config(file).get("data")) is None:
        raise settings_unknown(file)
    return parse_settings(data, file)


def settings_unknown(file: Path) -> CheckpointError:
    """For a model beside which no `file` says what it was trained on: a guess would answer, and worse."""
    return CheckpointError(
        "nothing says which pixels the model was trained on",
        file=file,
        field="data.max_pixels",
        remedy="name the folder of a run of `scaleearth fit`, which holds config.yaml",
    )


def parse_settings(row: Any, file: Path) -> ProcessorSettings:
    """Raises `CheckpointError` unless `row`, read from `file`, holds pixel limits that can be used."""
    if not isinstance(row, dict):
        raise CheckpointError("processor settings are not a mapping", file=file, field="data", value=row)
    pixels = row.get("min_pixels"), row.get("max_pixels")
    style = row.get("gsd_text", "none")
    if not all(isinstance(p, int) for p in pixels) or style not in ("none", "metres", "log"):
        raise CheckpointError("processor settings are not usable", file=file, field="processor", value=(*pixels, style))
    return ProcessorSettings(min_pixels=pixels[0], max_pixels=pixels[1], gsd_text=style)  # type: ignore[arg-type]


def read_config(file: Path) -> dict[str, Any]:
    """A run's settings; none where there is no such file.

    Raises:
        CheckpointError: it holds something else.
    """
    if not file.is_file():
        return {}
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"configuration of a run does not parse: {error}", file=file) from error
