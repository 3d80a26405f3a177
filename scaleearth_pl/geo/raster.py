"""Any raster to three bands of eight bits, in one place.

The vision tower knows RGB in 0..255. What a raster offers instead is decided here once, and each decision is noted:

- bands: by colour interpretation, else by band names (red/green/blue, B04/B03/B02), else the first three; one band is
  repeated; a fourth band (infrared, alpha) is left out; a palette is looked up.
- white: a TIFF whose smallest value is white (MINISWHITE) is inverted, as Pillow does, where GDAL has no palette for it.
- depth: eight bits stay as they are; everything else is stretched per band from its 2nd to its 98th percentile of
  valid pixels. Price: the stretch throws absolute radiance away and differs between images.
- size: a raster of more than `max_pixels` is read decimated by area averaging, through overviews where it has them
  inside; the GSD must then follow (`RgbRaster.native_size` over `.size`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.rasterfile import check_png, open_raster

STRETCH_PERCENTILES = (2.0, 98.0)
MAX_READ_PIXELS = 4096 * 4096

MAX_DECODED_PIXELS = 1_000_000_000
"""Most pixels decoded for one image from formats with blocks (31 600 x 31 600), counted at the overview that serves."""

MAX_WHOLE_PIXELS = 250_000_000
"""Largest raster read from formats without blocks (PNG, JPEG, ...): interlaced and progressive ones are held whole."""

MAX_BLOCK_BYTES = 512 * 2**20
"""Largest strip or tile: GDAL decodes it in one piece, however small the window."""

_BLOCK_DRIVERS = {"GTiff", "JP2OpenJPEG", "HFA", "NITF"}
_STRIP_PIXELS = 2**25
_PERCENTILE_SAMPLE = 1_000_000
_BAND_NAMES = (("red", "green", "blue"), ("B04", "B03", "B02"))

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class RgbRaster:
    """Pixels for the model. H, W: height and width as read.

    `native_size` is (width, height) of the part of the file that was read; it differs from the pixels' size where the
    raster was decimated. `valid_share` is the share of pixels that are not nodata.
    """

    pixels_HW3: Pixels
    native_size: tuple[int, int]
    valid_share: float
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as read."""
        return self.pixels_HW3.shape[1], self.pixels_HW3.shape[0]


def read_rgb(
    path: Path,
    *,
    max_pixels: int = MAX_READ_PIXELS,
    window: tuple[int, int, int, int] | None = None,
) -> RgbRaster:
    """Reads a raster, or a window of it, as RGB.

    Args:
        path: image file of the formats of `rasterfile`.
        max_pixels: most pixels returned; a larger raster is averaged down, never cut.
        window: column, row, width, height in pixels of the file.

    Raises:
        SampleError: unreadable, truncated, too large, complex-valued, a window outside, or no valid pixel.
    """
    with open_raster(path) as dataset:
        area = _area(dataset, window, path)
        out_w, out_h = _fit((int(area.width), int(area.height)), max_pixels)
        _check_readable(dataset, path, area, shrink=area.width / out_w)
        bands, notes = choose_bands(dataset)
        decimated = (out_w, out_h) != (int(area.width), int(area.height))
        how = "by nearest pixel" if _palette(dataset) else "by averaging"
        notes += [f"read decimated to {out_w}x{out_h} {how}"] if decimated else []
        values_BHW = _read(dataset, bands, area, (out_w, out_h))
        rgb_HW3, depth_notes = _to_rgb(dataset, bands, values_BHW)
    valid = ~np.ma.getmaskarray(values_BHW).all(axis=0) & _finite(values_BHW.data)
    share = float(valid.mean())
    if share == 0:
        raise SampleError("raster holds no valid pixel", file=path, field="nodata", value="all")
    notes += depth_notes + ([f"{1 - share:.1%} of the pixels are nodata"] if share < 1 else [])
    notes += [f"{suffix} beside the file not used" for suffix in (".ovr", ".msk") if Path(f"{path}{suffix}").exists()]
    return RgbRaster(
        pixels_HW3=rgb_HW3,
        native_size=(int(area.width), int(area.height)),
        valid_share=share,
        notes=tuple(notes),
    )


def choose_bands(dataset: DatasetReader) -> tuple[list[int], list[str]]:
    """Band numbers (from 1) to read as red, green, blue (one number: grey or palette), and notes."""
    interp = dataset.colorinterp
    triple = [interp.index(c) + 1 for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if c in interp]
    if len(triple) == 3:
        return triple, _left_out(dataset, triple)
    if dataset.count < 3:
        dropped = ["second band left out"] if dataset.count == 2 else []
        return [1], dropped + ([] if _palette(dataset) else ["one band repeated"])
    names = list(dataset.descriptions)
    for wanted in _BAND_NAMES:
        found = [i + 1 for want in wanted for i, name in enumerate(names) if (name or "").lower() == want.lower()]
        if len(found) == 3:
            return found, [f"bands taken by name: {', '.join(wanted)}", *_left_out(dataset, found)]
    return [1, 2, 3], ["first three bands taken as red, green, blue", *_left_out(dataset, [1, 2, 3])]


def stretch_band(values_HW: "np.ma.MaskedArray[Any, Any]") -> tuple[Pixels, tuple[float, float]]:
    """Maps the 2nd..98th percentile of valid values to 0..255; returns bytes and the two values.

    Masked and non-finite pixels become 0. A constant band becomes 0.
    """
    data = values_HW.data.astype(np.float64)
    valid = ~np.ma.getmaskarray(values_HW) & np.isfinite(data)
    sample = data[valid]
    if sample.size == 0:
        return np.zeros(data.shape, np.uint8), (0.0, 0.0)
    sample = sample[:: max(1, sample.size // _PERCENTILE_SAMPLE)]
    low, high = (float(v) for v in np.percentile(sample, STRETCH_PERCENTILES))
    if high <= low:
        return np.zeros(data.shape, np.uint8), (low, high)
    unit = np.clip((np.where(valid, data, low) - low) / (high - low), 0.0, 1.0)
    return np.rint(unit * 255).astype(np.uint8), (low, high)


def _read(
    dataset: DatasetReader, bands: list[int], area: Window, out_size: tuple[int, int]
) -> "np.ma.MaskedArray[Any, Any]":
    """Reads `area` at `out_size` in strips.

    GDAL reads band after band; where one pass exceeds its block cache, every block would be decoded once a band.
    """
    out_w, out_h = out_size
    rows = max(1, math.floor(_STRIP_PIXELS / (area.width * area.height / out_h)))
    strips = []
    for top in range(0, out_h, rows):
        bottom = min(out_h, top + rows)
        first, last = (area.row_off + area.height * edge / out_h for edge in (top, bottom))
        strips.append(
            dataset.read(
                bands,
                window=Window(area.col_off, first, area.width, last - first),
                out_shape=(len(bands), bottom - top, out_w),
                resampling=Resampling.nearest if _palette(dataset) else Resampling.average,
                masked=True,
            )
        )
    whole: np.ma.MaskedArray[Any, Any] = np.ma.concatenate(strips, axis=1)
    return whole


def _to_rgb(
    dataset: DatasetReader, bands: list[int], values_BHW: "np.ma.MaskedArray[Any, Any]"
) -> tuple[Pixels, list[str]]:
    if _palette(dataset):
        table = np.zeros((256, 3), np.uint8)
        for index, rgba in dataset.colormap(1).items():
            if index < 256:
                table[index] = rgba[:3]
        return table[np.clip(values_BHW.data[0], 0, 255).astype(np.uint8)], ["palette looked up"]
    if values_BHW.dtype == np.uint8:
        bits = int(dataset.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        bytes_BHW = values_BHW.data * np.uint8(255 // (2**bits - 1)) if bits < 8 else values_BHW.data
        notes = [f"{bits}-bit values spread to eight bits"] if bits < 8 else []
    else:
        stretched = [stretch_band(band_HW) for band_HW in values_BHW]
        bytes_BHW = np.stack([pixels for pixels, _ in stretched])
        ends = "; ".join(f"{low:g}..{high:g}" for _, (low, high) in stretched)
        notes = [f"{values_BHW.dtype} stretched by percentiles 2-98 ({ends})"]
        notes += ["constant band" for _, (low, high) in stretched if low == high][:1]
    if dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
        bytes_BHW = np.where(_unknown(values_BHW), bytes_BHW, 255 - bytes_BHW)
        notes.append("smallest value is white: inverted")
    rgb_HW3 = np.ascontiguousarray(np.moveaxis(bytes_BHW, 0, -1))
    return (np.repeat(rgb_HW3, 3, axis=-1) if len(bands) == 1 else rgb_HW3), notes


def _check_readable(dataset: DatasetReader, path: Path, area: Window, shrink: float) -> None:
    """Refuses by header what would not fit, before a pixel is decoded."""
    if any(name.startswith("complex") for name in dataset.dtypes):
        raise SampleError("raster is complex-valued", file=path, field="dtype", value=dataset.dtypes[0])
    if dataset.driver in _BLOCK_DRIVERS:
        overview = max((f for f in dataset.overviews(1) if f <= shrink), default=1)
        decoded, limit = area.width * area.height / overview**2, MAX_DECODED_PIXELS
    else:
        decoded, limit = dataset.width * dataset.height, MAX_WHOLE_PIXELS
    if decoded > limit:
        raise SampleError(
            f"more than {limit} pixels to decode",
            file=path,
            field="size",
            value=(dataset.width, dataset.height),
            remedy="read a window, add overviews inside the file (gdaladdo), or cut it into tiles (gdal_retile)",
        )
    if dataset.driver == "PNG":
        check_png(path)
    height, width = dataset.block_shapes[0]
    together = dataset.count if dataset.interleaving and dataset.interleaving.name == "pixel" else 1
    if height * width * np.dtype(dataset.dtypes[0]).itemsize * together > MAX_BLOCK_BYTES:
        raise SampleError(
            f"one block of the raster decodes to more than {MAX_BLOCK_BYTES} bytes",
            file=path,
            field="block size",
            value=(width, height),
            remedy="rewrite it tiled: gdal_translate -co TILED=YES",
        )


def _area(dataset: DatasetReader, window: tuple[int, int, int, int] | None, path: Path) -> Window:
    if window is None:
        return Window(0, 0, dataset.width, dataset.height)
    col, row, width, height = window
    inside = min(col, row) >= 0 and col + width <= dataset.width and row + height <= dataset.height
    if not inside or width < 1 or height < 1:
        raise SampleError("window lies outside the raster", file=path, field="window", value=window)
    return Window(col, row, width, height)


def _fit(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    width, height = size
    factor = min(1.0, math.sqrt(max_pixels / (width * height)))
    return max(1, math.floor(width * factor)), max(1, math.floor(height * factor))


def _palette(dataset: DatasetReader) -> bool:
    return bool(dataset.colorinterp[0] == ColorInterp.palette)


def _unknown(values_BHW: "np.ma.MaskedArray[Any, Any]") -> Any:
    """Where a value is nodata or no number."""
    missing = np.ma.getmaskarray(values_BHW)
    return missing | ~np.isfinite(values_BHW.data) if values_BHW.dtype.kind == "f" else missing


def _finite(values_BHW: Any) -> Any:
    return np.isfinite(values_BHW).any(axis=0) if values_BHW.dtype.kind == "f" else True


def _left_out(dataset: DatasetReader, taken: list[int]) -> list[str]:
    rest = [i for i in range(1, dataset.count + 1) if i not in taken]
    if not rest:
        return []
    kinds = {dataset.colorinterp[i - 1].name for i in rest}
    label = "alpha band" if kinds == {"alpha"} else "fourth band" if rest == [4] else f"{len(rest)} bands"
    return [f"{label} left out"]
