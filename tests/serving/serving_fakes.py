"""A trained-looking run of stage 2, made in half a second: adapter folder, config.yaml, summary.json, sse_u.jsonl."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from fakes.runs import DATA, shallow_hf, tiny_model
from PIL import Image

from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.adapter_io import AdapterMeta, save_adapter
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.gated_lora import AdapterConfig

UTM = "EPSG:32631"

SUMMARY = {
    "experiment": "stage2-fake",
    "corpus": "fake",
    "commit": "abc",
    "versions": {"torch": "2"},
    "accuracy": {"overall": 0.61, "majority": 0.4, "by_tier": {"high": 0.7}, "by_family": {"scale_specific": 0.5}},
    "sse_u": {"mae_decades": 0.2, "calibration_ratio": 0.8},
}


def make_run(
    root: Path,
    corpus: Path,
    *,
    noise: float = 0.3,
    quantise: str = "none",
    head: bool = True,
    gate: GateConfig | None = None,
    gsd_text: str = "none",
    dtype: str = "float32",
) -> Path:
    """Writes `root/runs/stage2-fake/v0` with `latest` beside it; `noise` is B's deviation, `dtype` the backbone's."""
    model = tiny_model(corpus, quantise=quantise, noise=noise, folder=shallow_hf(corpus), gate=gate or GateConfig())
    if not head:
        model.gsd_head = None
    torch.manual_seed(3)
    for parameter in () if model.gsd_head is None else model.gsd_head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    base, run = shallow_hf(corpus), root / "runs" / "stage2-fake" / "v0"
    meta = AdapterMeta(
        adapters=AdapterConfig(rank=12, lora_alpha=12, gate=gate or GateConfig()),
        sse_u=None if model.gsd_head is None else model.gsd_head.config,
        sse_u_dims=() if model.gsd_head is None else model.gsd_head.feature_dims,
        resolver=model.resolver.config,
        base_path=str(base),
        base_hash=base_hash(base),
        quantisation=quantise,
        commit="abc",
        extra={"dtype": dtype, "steps": 3},
    )
    state = {} if model.gsd_head is None else model.gsd_head.state_dict()
    save_adapter(run / "adapter", adapters=model.adapters, gsd_head_state=state, meta=meta)
    data = {"min_pixels": DATA["min_pixels"], "max_pixels": DATA["max_pixels"], "gsd_text": gsd_text}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "sse_u.jsonl").write_text("".join(json.dumps({"sigma": s}) + "\n" for s in (0.2, 0.3, 0.6)))
    (run.parent / "latest").symlink_to("v0")
    return run


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth noise of (width, height) `size`."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def png(seed: int = 0, size: tuple[int, int] = (64, 64)) -> bytes:
    stream = io.BytesIO()
    picture(seed, size).save(stream, format="PNG")
    return stream.getvalue()


def geotiff(path: Path, gsd_m: float | None, *, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    """A GeoTIFF in UTM with square pixels; without GSD where that is None."""
    pixels = np.asarray(picture(seed, size)).transpose(2, 0, 1)
    place: dict[str, Any] = {"crs": UTM}
    if gsd_m is not None:
        place["transform"] = rasterio.Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": size[0], "height": size[1], "count": 3, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, **place) as file:
            file.write(pixels)
    return path
