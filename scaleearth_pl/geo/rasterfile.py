"""Opening raster files that strangers made.

GDAL opens whatever it recognises, and some of what it recognises is a program: a VRT named `x.tif` may read other
files or the network. So the driver is chosen here from the file's first bytes, out of a list of plain image formats.
Overviews and masks in further files GDAL would open with any driver: `.ovr`, `.msk`, or what the metadata item
OVERVIEW_FILE names, in the file or its `.aux.xml`. So pixels are read from the one file alone; what lies beside it is
asked only for the place, which opens neither. Price: external overviews and masks are not used.

Every failure becomes one `SampleError` that names the file.

A header costs nothing to read, however large the raster that it announces; `raster.py` decides what may be decoded.
"""

import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # GDAL's own errors: raised by some attributes, exported nowhere
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.ground import Transform

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"RIFF", "WEBP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"BM", "BMP"),
    (b"EHFA_HEADER_TAG", "HFA"),
    (b"NITF0", "NITF"),
)
_MAX_CHUNK_BYTES = 2**30
_ENV = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    "GDAL_CACHEMAX": 256 * 2**20,
}
"""A JPEG cut in the middle is an error, where GDAL would fill the rest with grey. The block cache is in bytes; GDAL's own
default is five percent of the machine's memory."""

_SIBLINGS = {True: "TRUE", False: "EMPTY_DIR"}
"""Looked up by name (world file, .aux.xml), never by listing a folder of a million tiles; or not at all."""

_NO_PLACE = "Dataset has no geotransform, gcps, or rpcs. The identity matrix will be returned."
_FILTERING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """What a raster file says about its place and its pixels; nothing is decoded.

    `transform` is None where the file has none (GDAL's identity stands for "none"); `crs_text` is WKT or None. RPCs are
    only present or absent: they are not used, so those that lack a coefficient cost nothing.
    `resolution_tags` holds TIFF print density, kept only to say that it was not used. `n_bytes` is that of all bands
    decoded.
    """

    size: tuple[int, int]
    bands: int
    n_bytes: int
    transform: Transform | None
    crs_text: str | None
    gcps: int
    has_rpcs: bool
    resolution_tags: tuple[str, ...]


@contextmanager
def open_raster(path: Path, *, siblings: bool = False) -> Iterator[DatasetReader]:
    """Opens one image file for reading within GDAL's bounded environment.

    Args:
        path: the image file.
        siblings: heed the files beside it, for the place; then neither pixels, overviews nor masks may be asked for.

    Raises:
        SampleError: not a file, not an image format of the list, overviews in another file, or not readable. Errors
            of GDAL that the caller's own reading meets inside the `with` come out as `SampleError` too.
    """
    driver = _driver_of(path)
    try:
        _expect_no_georeference()
        env = {**_ENV, "GDAL_DISABLE_READDIR_ON_OPEN": _SIBLINGS[siblings]}
        with rasterio.Env(**env), rasterio.open(path, driver=driver) as dataset:
            if dataset.count < 1 or dataset.width * dataset.height < 1:
                raise SampleError("raster has no pixels", file=path, field="bands", value=dataset.count)
            if not siblings:
                _check_overviews(dataset, path)
            yield dataset
    except (RasterioError, CPLE_BaseError, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        text = repr(error) if isinstance(error, LookupError) else str(error) or type(error).__name__
        raise SampleError(
            f"raster cannot be read: {text}",
            file=path,
            remedy="fetch the file again; `gdalinfo` says whether it is whole",
        ) from error


def read_header(path: Path) -> RasterHeader:
    """Reads size, transform, CRS, control points; raises `SampleError` for a file that cannot be opened."""
    with open_raster(path, siblings=True) as dataset:
        transform = dataset.transform
        gcps, _ = dataset.gcps
        tags = sorted(key for key in dataset.tags() if key.startswith("TIFFTAG_") and "RESOLUTION" in key)
        return RasterHeader(
            size=(dataset.width, dataset.height),
            bands=dataset.count,
            n_bytes=dataset.width * dataset.height * sum(np.dtype(name).itemsize for name in dataset.dtypes),
            transform=None if transform.is_identity else _six(transform),
            crs_text=_crs_text(dataset),
            gcps=len(gcps),
            has_rpcs=bool(dataset.tags(ns="RPC")),
            resolution_tags=tuple(tags),
        )


def check_png(path: Path) -> None:
    """Walks a PNG's chunks and their checksums.

    GDAL's fast path for whole PNG images returns unwritten memory for a truncated one, without an error (3.10).

    Raises:
        SampleError: a chunk is cut or altered, or the end is missing.
    """
    with path.open("rb") as stream:
        stream.seek(8)
        kind = b""
        while kind != b"IEND":
            head = stream.read(8)
            length = int.from_bytes(head[:4], "big")
            kind = head[4:]
            body, crc = stream.read(min(length, _MAX_CHUNK_BYTES)), stream.read(4)
            if len(head) < 8 or len(body) < length or crc != zlib.crc32(kind + body).to_bytes(4, "big"):
                raise SampleError("PNG is cut or altered", file=path, field="chunk", value=kind)


def _driver_of(path: Path) -> str:
    if not path.is_file():
        raise SampleError("no such file" if not path.exists() else "not a file", file=path)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise SampleError(f"file cannot be read: {error}", file=path) from error
    for magic, driver in _MAGIC:
        if head.startswith(magic) and (driver != "WEBP" or head[8:12] == b"WEBP"):
            return driver
    raise SampleError(
        "not a raster image" if head else "empty file",
        file=path,
        field="first bytes",
        value=head[:8],
        remedy="give GeoTIFF, PNG, JPEG, WebP, JPEG 2000, BMP, HFA or NITF",
    )


def _check_overviews(dataset: DatasetReader, path: Path) -> None:
    elsewhere = dataset.get_tag_item("OVERVIEW_FILE", dm="OVERVIEWS")
    if elsewhere is not None:
        raise SampleError(
            "raster has its overviews in another file",
            file=path,
            field="OVERVIEW_FILE",
            value=elsewhere,
            remedy="write it anew: gdal_translate FILE NEW.tif",
        )


def _six(transform: rasterio.Affine) -> Transform:
    return (
        float(transform.a),
        float(transform.b),
        float(transform.c),
        float(transform.d),
        float(transform.e),
        float(transform.f),
    )


def _crs_text(dataset: DatasetReader) -> str | None:
    """WKT of the file's CRS: WKT2 where PROJ can write it, else the older form."""
    if not dataset.crs:
        return None
    try:
        return str(dataset.crs.to_wkt(version="WKT2_2019"))
    except CRSError:
        return str(dataset.crs.to_wkt())


def _expect_no_georeference() -> None:
    """A file without georeference is an answer here, not a warning, whichever thread opens it.

    `warnings.catch_warnings` would say so for one block, but the list of filters belongs to the process: of two threads
    inside such a block, the first to leave switches the warning on again for the other, and the last to leave puts back a
    list without the filters that anybody else has added meanwhile. rasterio has no option to stay silent. So one filter,
    of this category alone, goes before the others and stays. It is looked for again at every opening, because the module
    may have been imported inside somebody's `catch_warnings` (pytest does), whose end drops it. Price: the program's own
    use of rasterio is not warned of missing georeference any more.

    A filter that stands before it counts only if it would let the warning through: `simplefilter` takes its filter out
    before it puts it in front, and a thread that opens a file in between would be warned.
    """
    with _FILTERING:
        if _action_on_no_place() != "ignore":
            warnings.simplefilter("ignore", NotGeoreferencedWarning)


def _action_on_no_place() -> str | None:
    """What Python's first matching filter does with rasterio's warning of missing georeference."""
    for action, message, category, module, line in tuple(warnings.filters):
        of_ours = issubclass(NotGeoreferencedWarning, category) and line == 0
        if of_ours and _matches(message, _NO_PLACE) and _matches(module, "rasterio"):
            return action
    return None


def _matches(wanted: Any, text: str) -> bool:
    """Whether a filter wants `text`: it holds None for any, a pattern, or (the interpreter's own filters) the text."""
    if wanted is None or isinstance(wanted, str):
        return wanted in (None, text)
    return wanted.match(text) is not None


_expect_no_georeference()
