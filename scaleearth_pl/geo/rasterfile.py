"""Opening raster files that strangers made.

GDAL opens whatever it recognises, and some of what it recognises is a program: a VRT named `x.tif` may read other
files or the network. So the driver is chosen here from the file's first bytes, out of a list of plain image formats;
nothing else reaches GDAL. Every failure becomes one `SampleError` that names the file.

Sizes are refused by header before a pixel is decoded. Formats that GDAL decodes row by row from the top (PNG, JPEG)
have the lower limit, because some of their variants (interlaced, progressive) hold the whole image in memory.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rasterio
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.ground import Transform

MAX_BLOCK_PIXELS = 1_000_000_000
"""Largest raster read from formats with blocks: 31 600 x 31 600; a Sentinel-2 tile has 1.2e8."""

MAX_WHOLE_PIXELS = 250_000_000
"""Largest raster read from formats without blocks: 15 800 x 15 800."""

MAX_BLOCK_BYTES = 512 * 2**20
"""Largest single strip or tile: GDAL decodes it in one piece, however small the window."""

_BLOCK_DRIVERS = {"GTiff", "JP2OpenJPEG", "HFA", "NITF"}
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
_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_PAM_ENABLED": "YES"}
"""Siblings are looked up by name (world file, .aux.xml), never by listing a folder of a million tiles."""


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """What a raster file says about its place; nothing is decoded.

    `transform` is None where the file has none (GDAL's identity stands for "none"); `crs_text` is WKT or None.
    `resolution_tags` holds TIFF print density, kept only to say that it was not used.
    """

    size: tuple[int, int]
    transform: Transform | None
    crs_text: str | None
    gcps: int
    has_rpcs: bool
    resolution_tags: tuple[str, ...]


@contextmanager
def open_raster(path: Path) -> Iterator[DatasetReader]:
    """Opens one image file for reading within GDAL's bounded environment.

    Raises:
        SampleError: not a file, not an image format of the list, not readable, or too large. Errors of GDAL that the
            caller's own reading meets inside the `with` come out as `SampleError` too.
    """
    driver = _driver_of(path)
    try:
        with rasterio.Env(**_ENV), _quiet(), rasterio.open(path, driver=driver) as dataset:
            _check_size(dataset, path)
            yield dataset
    except (RasterioError, OSError, ValueError, MemoryError) as error:
        raise SampleError(
            f"raster cannot be read: {str(error) or type(error).__name__}",
            file=path,
            remedy="fetch the file again; `gdalinfo` says whether it is whole",
        ) from error


def read_header(path: Path) -> RasterHeader:
    """Reads size, transform, CRS, control points; raises `SampleError` for a file that cannot be opened."""
    with open_raster(path) as dataset:
        transform = dataset.transform
        gcps, _ = dataset.gcps
        tags = sorted(key for key in dataset.tags() if key.startswith("TIFFTAG_") and "RESOLUTION" in key)
        return RasterHeader(
            size=(dataset.width, dataset.height),
            transform=None if transform.is_identity else _six(transform),
            crs_text=_crs_text(dataset),
            gcps=len(gcps),
            has_rpcs=dataset.rpcs is not None,
            resolution_tags=tuple(tags),
        )


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


def _check_size(dataset: DatasetReader, path: Path) -> None:
    pixels = dataset.width * dataset.height
    limit = MAX_BLOCK_PIXELS if dataset.driver in _BLOCK_DRIVERS else MAX_WHOLE_PIXELS
    if dataset.count < 1 or pixels < 1:
        raise SampleError("raster has no pixels", file=path, field="size", value=(dataset.width, dataset.height))
    if pixels > limit:
        raise SampleError(
            f"raster has more than {limit} pixels",
            file=path,
            field="size",
            value=(dataset.width, dataset.height),
            remedy="cut it into tiles (gdal_translate -srcwin, gdal_retile)",
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


@contextmanager
def _quiet() -> Iterator[None]:
    """A file without georeference is an answer here, not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
