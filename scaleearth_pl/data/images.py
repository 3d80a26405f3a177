"""Bytes of an image member to RGB pixels, with every surprise turned into a `SampleError`.

Shards hold 8-bit pictures: what is 16-bit, float or multi-band becomes RGB once, in `geo/raster.py`, before it is
written. Here nothing is stretched or guessed. The header is read first, so a decompression bomb is refused before a
pixel is decoded; only the format that the extension promises is tried, so a renamed file cannot reach another decoder.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from scaleearth_pl.core.errors import SampleError

IMAGE_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP"}
"""Allowed image extensions and the one decoder that each may reach."""

MAX_IMAGE_PIXELS = 50_000_000
"""Cap of one image, about 150 MB of RGB in a worker; larger scenes are tiled by `prepare`."""

_EIGHT_BIT_MODES = ("RGB", "L", "P", "RGBA", "LA", "1")
_SIXTEEN_BIT = ";16"
"""In the name of a file's raw mode ("RGB;16B"). Pillow calls such colour images "RGB" and keeps their high bytes."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image member as it lies in a shard; `size` is the (width, height) promised, `where` names it in messages."""

    data: bytes
    ext: str
    size: tuple[int, int]
    where: str

    def rgb(self) -> Image.Image:
        """Its pixels; raises as `decode_rgb`."""
        return decode_rgb(self.data, self.ext, size=self.size, where=self.where)


def image_size(data: bytes, ext: str, *, where: str) -> tuple[int, int]:
    """(width, height) from the header alone; `SampleError` where the header does not parse, breaks the cap or is not 8-bit."""
    width, height = _open(data, ext, where).size
    return width, height


def decode_rgb(data: bytes, ext: str, *, size: tuple[int, int], where: str) -> Image.Image:
    """Decodes one image to RGB.

    Args:
        data: bytes of the member.
        ext: its extension, a key of `IMAGE_FORMATS`.
        size: (width, height) that the index promises.
        where: shard and key, for messages.

    Raises:
        SampleError: not an image of that format, of another size, truncated, over the cap, or not 8-bit.
    """
    image = _open(data, ext, where)
    if image.size != size:
        raise SampleError(
            "image is of another size than its metadata", file=where, field="width, height", value=(image.size, size)
        )
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(f"image does not decode: {error}", file=where) from error


def _open(data: bytes, ext: str, where: str) -> Image.Image:
    format_name = IMAGE_FORMATS.get(ext)
    if format_name is None:
        raise SampleError(
            "image extension is not allowed",
            file=where,
            field="ext",
            value=ext,
            remedy=f"use one of {[*IMAGE_FORMATS]}",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[format_name])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise SampleError(f"not a {format_name} image: {error}", file=where) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise SampleError(f"image is too large: {error}", file=where, remedy="tile it when preparing") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise SampleError(
            f"image has more than {MAX_IMAGE_PIXELS} pixels",
            file=where,
            value=image.size,
            remedy="tile it when preparing",
        )
    stored = sorted({str(tile.args) for tile in image.tile})
    if image.mode not in _EIGHT_BIT_MODES or any(_SIXTEEN_BIT in args for args in stored):
        raise SampleError(
            "image is not 8-bit RGB, grey or palette",
            file=where,
            field="mode",
            value=(image.mode, *stored),
            remedy="convert rasters to RGB when the corpus is prepared (geo/raster.py)",
        )
    return image
