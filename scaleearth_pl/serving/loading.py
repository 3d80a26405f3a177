"""From a run, or from an `adapter/` folder, to a model that answers.

What the folder names is looked for in this order, and what is found is checked, never assumed:

- the folder: a run (which holds `adapter/`) or the adapter folder itself;
- the base: the caller's, else the recorded path inside the folder, or as it is, or under a parent of the folder (runs
  are moved as a whole), else another version of the same stage 1, if `latest` has moved on. Local weights must have
  the recorded hash, or be what `export-base` made of those, so a wrong base is an error and not a slightly
  different model;
- the processor: `extra.processor` of `scaleearth.json`, else the run's `config.yaml`, else the base's
  `preprocessor_config.json`. It decides what a GSD means to the gate, through the size of the pixels seen.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.data.processor import GsdText, Processor
from scaleearth_pl.data.tokenizer import load_tokenizer
from scaleearth_pl.model.adapter_files import base_hash, read_json
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterFolder, AdapterMeta, apply_adapter, load_adapter
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.scaleearth import ScaleEarth

Precision = Literal["trained", "nf4", "dequantised", "none"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

BASE_ORIGIN = "scaleearth_base.json"
"""Beside a dequantised base: the hash of the weights that it was made of (`export_base.py`)."""

NEWEST_RUN = "runs/stage2-*/latest"
"""Where a model is looked for if none is named."""


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """What turns an image into the pixels that the model was trained on; see `data/processor.py`."""

    min_pixels: int
    max_pixels: int
    gsd_text: GsdText = "none"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in eval mode, its processor, and where both came from."""

    model: ScaleEarth
    processor: Processor
    settings: ProcessorSettings
    adapter: AdapterFolder
    base: str


def load_model(
    folder: Path | str | None = None,
    *,
    base: Path | str | None = None,
    precision: Precision = "trained",
    device: str = "auto",
) -> LoadedModel:
    """Loads a trained model for inference.

    Args:
        folder: a run or an adapter folder; None takes the newest run of `NEWEST_RUN`.
        base: Hugging Face folder or hub name of the backbone, instead of the recorded one.
        precision: of the backbone's projections: "trained" as in training, "nf4", "none" for full precision, or
            "dequantised": NF4 values written out in full width, the same numbers faster for four times the memory.
        device: "auto" is the first GPU, or the host without one.

    Raises:
        CheckpointError: nothing there, an incomplete folder, or a base that is not the one it was trained on.
    """
    adapter = load_adapter(find_adapter(folder))
    meta = adapter.meta
    source = str(base) if base is not None else find_base(adapter.path, meta)
    if Path(source).is_dir():
        _check_hash(source, meta, adapter.path)
    settings = processor_settings(adapter, source)
    processor = Processor(
        load_tokenizer(source),
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        gsd_text=settings.gsd_text,
    )
    config = BackboneConfig(
        source=source,
        quantise="nf4" if _four_bit(precision, meta, source) else "none",
        dtype=meta.extra.get("dtype", "float32"),
        keep_dequantized=precision == "dequantised" and not (Path(source) / BASE_ORIGIN).is_file(),
    )
    backbone = build_backbone(config, token_ids=processor.token_ids)
    _check_patches(backbone, processor, source)
    model = ScaleEarth(backbone=backbone, adapters=meta.adapters, head=meta.sse_u, resolver=meta.resolver)
    apply_adapter(adapter, adapters=model.adapters, gsd_head=model.gsd_head)
    model.requires_grad_(False)
    model.eval().to(_device(device))
    return LoadedModel(model=model, processor=processor, settings=settings, adapter=adapter, base=source)


def _four_bit(precision: Precision, meta: AdapterMeta, source: str) -> bool:
    """Whether to quantise while loading; what `export-base` wrote holds NF4 values already."""
    if not (Path(source) / BASE_ORIGIN).is_file():
        return precision in ("nf4", "dequantised") or (precision == "trained" and meta.quantisation == "nf4")
    if precision == "nf4":
        raise ConfigError(
            "a dequantised base is not quantised again",
            file=source,
            field="precision",
            value=precision,
            remedy="use precision 'trained', or name the base that training used",
        )
    return False


def find_adapter(folder: Path | str | None) -> Path:
    """The adapter folder of a run, or the folder itself.

    Raises:
        CheckpointError: none there.
    """
    if folder is None:
        return _newest_run()
    path = Path(folder)
    for candidate in (path, path / "adapter"):
        if (candidate / OUR_CONFIG).is_file():
            return candidate.resolve()
    raise CheckpointError(
        "no trained model there",
        file=path,
        field="model",
        remedy=f"name a run of stage 2 or its adapter/ folder, which holds {OUR_CONFIG}; `make stage2` makes one",
    )


def _newest_run() -> Path:
    found = [run / "adapter" for run in Path().glob(NEWEST_RUN) if (run / "adapter" / OUR_CONFIG).is_file()]
    if not found:
        raise CheckpointError(
            "no trained model found",
            file=NEWEST_RUN,
            field="model",
            remedy="name one with --model RUN_OR_FOLDER, or train one: `make stage2`",
        )
    return max(found, key=lambda path: (path / OUR_CONFIG).stat().st_mtime).resolve()


def find_base(adapter_path: Path, meta: AdapterMeta) -> str:
    """Folder or hub name of the backbone that the adapter was trained on; see the module's docstring."""
    existing = [path for path in _base_candidates(adapter_path, meta.base_path) if path.is_dir()]
    if not existing:
        return meta.base_path  # a hub name, or a folder whose absence `build_backbone` reports
    if meta.base_hash == "hub":
        return str(existing[0])
    return str(next((path for path in existing if base_hash(path) == meta.base_hash), existing[0]))


def _base_candidates(adapter_path: Path, recorded: str) -> Iterator[Path]:
    roots = [adapter_path, Path(), *adapter_path.resolve().parents]
    places = list(dict.fromkeys(root / recorded for root in roots))
    yield from places
    for place in places:  # runs/<stage 1>/latest/hf has moved on: the other versions
        if place.parent.parent.is_dir():
            yield from sorted(place.parent.parent.glob(f"*/{place.name}"))


def _check_hash(source: str, meta: AdapterMeta, file: Path) -> None:
    origin = Path(source) / BASE_ORIGIN
    found = read_json(origin)["weights_hash"] if origin.is_file() else base_hash(source)
    if meta.base_hash not in ("hub", found):
        raise CheckpointError(
            f"the adapter was trained on other weights ({meta.base_path}, hash {meta.base_hash[:12]})",
            file=file,
            field="base_hash",
            value=f"{source}: {found[:12]}",
            remedy="name the folder that stage 2 started from with --base",
        )


def processor_settings(adapter: AdapterFolder, base: str) -> ProcessorSettings:
    """Pixel limits and GSD text; see the module's docstring for where they are looked for."""
    if isinstance(recorded := adapter.meta.extra.get("processor"), dict):
        return _settings(recorded, adapter.path / OUR_CONFIG)
    run = adapter.path.parent / "config.yaml"
    if run.is_file():
        return _settings(yaml.safe_load(run.read_text(encoding="utf-8")).get("data") or {}, run)
    file = Path(base) / "preprocessor_config.json"
    if not file.is_file():
        raise CheckpointError(
            "nothing says which pixels the model was trained on",
            file=adapter.path,
            field="extra.processor",
            remedy="load the run's own adapter/ folder, which has config.yaml beside it, and save it again",
        )
    size = json.loads(file.read_text(encoding="utf-8")).get("size", {})
    return _settings({"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}, file)


def _settings(row: dict[str, Any], file: Path) -> ProcessorSettings:
    pixels = row.get("min_pixels"), row.get("max_pixels")
    style = row.get("gsd_text", "none")
    if not all(isinstance(p, int) for p in pixels) or style not in ("none", "metres", "log"):
        raise CheckpointError("processor settings are not usable", file=file, field="processor", value=(*pixels, style))
    return ProcessorSettings(min_pixels=pixels[0], max_pixels=pixels[1], gsd_text=style)  # type: ignore[arg-type]


def _check_patches(backbone: Any, processor: Processor, source: str) -> None:
    vision = backbone.config.vision_config
    found = (vision.patch_size, vision.spatial_merge_size)
    if found != (processor.patch_size, processor.merge_size):
        raise CheckpointError("vision tower of another patch size", file=source, field="patch_size", value=found)


def _device(name: str) -> torch.device:
    n_gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("no such device", field="device", value=name, remedy="auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= n_gpus):
        raise ConfigError(f"no such device here ({n_gpus} GPUs)", field="device", value=name, remedy="auto or cpu")
    return device
