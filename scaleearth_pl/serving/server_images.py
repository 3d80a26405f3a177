"""From a data URL to an opened image, with every bound checked before anything is decoded.

    data:image/tiff;base64,SUkqAA...   ->  bytes (413)  ->  signature (422)  ->  header: pixels, bands (413)  ->  pixels, GSD

Only data URLs: a server that fetches addresses or opens paths for strangers reads its own network and disk for them.
Only PNG, JPEG and TIFF, by their first bytes and not by what the URL says: the fewest decoders that serve. The file goes
through a folder of its own, where GDAL finds no sidecar, and under a name of ours.
"""

import base64
import binascii
import re
import tempfile
from pathlib import Path

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.rasterfile import RasterHeader, read_header
from scaleearth_pl.serving.images import OpenedImage, open_image
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits

_HEAD = re.compile(r"data:(?P<kind>[a-zA-Z0-9.+/-]{0,64})(?:;[a-zA-Z0-9=.-]{1,64}){0,4}?;base64,")
_KINDS = ("image/png", "image/jpeg", "image/jpg", "image/tiff", "image/geotiff", "application/octet-stream")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PARAM = "image_url.url"


def image_from_url(url: str, limits: ServerLimits, *, max_read_pixels: int) -> OpenedImage:
    """Opens the image of a data URL.

    Raises:
        RefusedError: another kind of URL, broken base64, too many bytes or pixels, not PNG, JPEG or TIFF.
        SampleError: the file is damaged.
    """
    return image_from_bytes(_decode(url, limits), limits, max_read_pixels=max_read_pixels)


def image_from_bytes(data: bytes, limits: ServerLimits, *, max_read_pixels: int) -> OpenedImage:
    """The same for the bytes of a file."""
    if len(data) > limits.max_image_bytes:
        raise RefusedError(413, f"the image has more than {limits.max_image_bytes} bytes", param=_PARAM)
    if not data.startswith(_SIGNATURES):
        raise RefusedError(422, "not a PNG, JPEG or TIFF file, by its first bytes", param=_PARAM)
    with tempfile.TemporaryDirectory(prefix="scaleearth-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        try:
            _check_header(read_header(path), limits)
            return open_image(path, name="image", max_read_pixels=max_read_pixels)
        except SampleError as error:
            raise SampleError(str(error).replace(str(path), "image")) from error


def _check_header(header: RasterHeader, limits: ServerLimits) -> None:
    """Refuses what would take long or much to decode, however few bytes it has."""
    width, height = header.size
    if width * height > limits.max_image_pixels:
        told = f"{width} x {height} pixels, of {limits.max_image_pixels} allowed: cut or reduce it"
    elif header.bands > limits.max_bands:
        told = f"{header.bands} bands, of {limits.max_bands} allowed: send the three that show red, green, blue"
    elif header.n_bytes > limits.max_decoded_bytes:
        told = (
            f"{header.n_bytes} bytes when decoded ({width} x {height} pixels, {header.bands} bands), of "
            f"{limits.max_decoded_bytes} allowed: cut or reduce it, or send three bands of eight bits"
        )
    else:
        return
    raise RefusedError(413, told, param=_PARAM)


def _decode(url: str, limits: ServerLimits) -> bytes:
    head = _HEAD.match(url)
    if head is None:
        raise RefusedError(
            422,
            "images come as base64 data URLs (data:image/png;base64,...); nothing is fetched and no path is opened",
            param=_PARAM,
        )
    if head["kind"].lower() not in _KINDS:
        raise RefusedError(422, f"image of type {head['kind']!r}; known: PNG, JPEG, TIFF", param=_PARAM)
    text = url[head.end() :]
    if len(text) > limits.max_image_bytes * 4 // 3 + 4:
        raise RefusedError(413, f"the image has more than {limits.max_image_bytes} bytes", param=_PARAM)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(422, f"the data URL is not base64: {error}", param=_PARAM) from None
