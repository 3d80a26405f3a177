"""An image as it lies in an archive becomes a member of a shard: 8-bit, whole, of a size that can be trained on.

What a shard may hold goes in by its own bytes, decoded once so that a broken image is found now and not in the middle
of a run: re-encoding would cost size or quality and teach nothing. Everything else (16-bit, float, other formats, more
than `max_pixels`) becomes RGB by `geo.raster`, the one place that decides how, and is stored as PNG. A scene of
10,000 x 10,000 pixels is averaged down and its GSD follows; a header that announces more than can be decoded is
refused before a pixel is touched.

Price of averaging down: objects of a few pixels are gone, though a question may still ask for them.
"""

import io
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.data.images import IMAGE_FORMATS, decode_rgb, image_size
from scaleearth_pl.data.shard_index import MAX_MEMBER_BYTES
from scaleearth_pl.geo.raster import read_rgb
from scaleearth_pl.prepare.importers.record import ImageRef
from scaleearth_pl.prepare.importers.store import read_image

MAX_PIXELS = 4096 * 4096
"""Larger images are averaged down to at most this many pixels."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Encoded bytes for a shard; sizes are (width, height), `native_size` that of the file in the archive."""

    data: bytes
    ext: str
    size: tuple[int, int]
    native_size: tuple[int, int]
    notes: tuple[str, ...] = ()


def picture_of(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads, checks and, where needed, converts one image.

    Raises:
        SampleError: unreadable, truncated, not an image, or too large to decode.
    """
    ext = ref.name.rsplit(".", 1)[-1].lower()
    data = b"" if _is_huge(ref) else read_image(ref)
    if ext in IMAGE_FORMATS and data:
        picture = _as_it_is(data, ext, str(ref), max_pixels)
        if picture is not None:
            return picture
    if ref.member is None:
        return _converted(ref.path, max_pixels)
    with tempfile.NamedTemporaryFile(suffix=f".{ext}") as stream:
        stream.write(data)
        stream.flush()
        try:
            return _converted(Path(stream.name), max_pixels)
        except SampleError as error:
            raise SampleError(error.problem, file=str(ref), remedy=error.remedy) from error


def _is_huge(ref: ImageRef) -> bool:
    """A plain raster that GDAL can read in parts need not be read whole."""
    return ref.member is None and ref.path.is_file() and ref.path.stat().st_size > MAX_MEMBER_BYTES


def _as_it_is(data: bytes, ext: str, where: str, max_pixels: int) -> Picture | None:
    """The bytes themselves if Pillow decodes them to the end and they are small enough, else None."""
    try:
        size = image_size(data, ext, where=where)
        if math.prod(size) > max_pixels:
            return None
        decode_rgb(data, ext, size=size, where=where)
    except SampleError:
        return None  # GDAL reads more formats than Pillow, and raises its own error for a broken file
    return Picture(data=data, ext=ext, size=size, native_size=size)


def _converted(path: Path, max_pixels: int) -> Picture:
    raster = read_rgb(path, max_pixels=max_pixels)
    stream = io.BytesIO()
    Image.fromarray(raster.pixels_HW3).save(stream, format="PNG", compress_level=4)
    notes = (*raster.notes, "stored as 8-bit PNG")
    return Picture(data=stream.getvalue(), ext="png", size=raster.size, native_size=raster.native_size, notes=notes)
