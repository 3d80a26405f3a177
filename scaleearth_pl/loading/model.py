"""A trained model, built, filled and ready to answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.data.processor import Processor
from scaleearth_pl.loading.folders import BASE_ORIGIN, check_base, find_adapter, find_base
from scaleearth_pl.loading.settings import ProcessorSettings, processor_settings
from scaleearth_pl.model.adapter_io import AdapterFolder, AdapterMeta, apply_adapter, load_adapter
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.scaleearth import ScaleEarth

Precision = Literal["trained", "nf4", "dequantised", "none"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


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
    return build_model(load_adapter(find_adapter(folder)), base=base, precision=precision, device=device)


def build_model(
    adapter: AdapterFolder,
    *,
    base: Path | str | None = None,
    precision: Precision = "trained",
    device: str = "auto",
) -> LoadedModel:
    """The model of an adapter folder that has been read; as `load_model`."""
    meta = adapter.meta
    source = str(base) if base is not None else find_base(adapter.path, meta)
    if not Path(source).is_dir() and source.count("/") != 1:  # one slash: a name of the hub
        raise CheckpointError(
            "the base that it was trained on is not there",
            file=adapter.path,
            field="base_path",
            value=source,
            remedy="name its folder with --base",
        )
    check_base(source, meta, adapter.path)
    settings = processor_settings(adapter)
    processor = settings.processor(source)
    config = BackboneConfig(
        source=source,
        quantise="nf4" if _four_bit(precision, meta, source) else "none",
        dtype=meta.extra.get("dtype", "float32"),
        keep_dequantized=precision == "dequantised" and not (Path(source) / BASE_ORIGIN).is_file(),
    )
    backbone = build_backbone(config, token_ids=processor.token_ids, device=_device(device))
    _check_patches(backbone, processor, source)
    model = ScaleEarth(backbone=backbone, adapters=meta.adapters, head=meta.sse_u, resolver=meta.resolver)
    apply_adapter(adapter, adapters=model.adapters, gsd_head=model.gsd_head)
    for_inference(model, device)
    return LoadedModel(model=model, processor=processor, settings=settings, adapter=adapter, base=source)


def for_inference(model: ScaleEarth, device: str) -> None:
    """Nothing trains any more, eval mode, on the device named: "auto" is the first GPU, or the host without one.

    Raises:
        ConfigError: no such device.
    """
    model.requires_grad_(False)
    model.eval().to(_device(device))


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
