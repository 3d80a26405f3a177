"""From whatever a user hands over to pixels and a word on their GSD.

Large images by one stated policy: a raster of more than `max_read_pixels` is *area-averaged* down while it is read
(through overviews where the file has them), the processor then reduces to what the model was trained to see, and the
effective GSD follows both reductions. Nothing is cut silently; who wants detail names a window, which is read at the
file's own resolution. Price: in a scene of 10,000 pixels a side, a car is gone before the model looks.

A file is read twice, header and pixels, because its GSD is `geo`'s business and its pixels `geo/raster`'s.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.geo.filegsd import Window, gsd_of_file
from scaleearth_pl.geo.raster import MAX_READ_PIXELS, read_rgb, stretch_band

MAX_IMAGE_BYTES = 2**30
"""Most bytes of an image handed over in memory; servers set their own, lower limit before they call."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedImage:
    """RGB pixels and what the file says about its scale.

    Attributes:
        name: for messages and results: the path, or what the caller says.
        pixels: as read; may be smaller than the file.
        native_size: (width, height) in pixels of the file, or of the window that was read.
        gsd: the file's own word, in metres per pixel of the *file*, measured where the window lies; unknown for bare pixels.
        notes: what reading decided (bands, stretch, decimation).
    """

    name: str
    pixels: Image.Image
    native_size: tuple[int, int]
    gsd: Resolution
    notes: tuple[str, ...] = ()


ImageInput = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | OpenedImage


def open_image(
    source: str | Path | bytes | Image.Image | np.ndarray[Any, Any],
    *,
    name: str | None = None,
    window: Window | None = None,
    assumed_crs: str | None = None,
    max_read_pixels: int = MAX_READ_PIXELS,
) -> OpenedImage:
    """Opens an image of any kind that the engine takes.

    Args:
        source: a path (GeoTIFF, JPEG, PNG and the other formats of `geo/rasterfile`), the bytes of such a file, or
            pixels: a PIL image, or an array [height, width, 3] or [height, width] of uint8. Pixels know no GSD.
        name: shown in results and messages; for bytes also the file name in which a GSD is looked for.
        window: column, row, width, height in pixels of the file; paths and bytes only.
        assumed_crs: for files that have a transform and no CRS, such as "EPSG:32631".
        max_read_pixels: larger images are area-averaged down while they are read.

    Raises:
        SampleError: not an image, cut, too large to decode, or an array of another shape or type.
    """
    if isinstance(source, str | Path):
        return _from_file(Path(source), name or str(source), window, assumed_crs, max_read_pixels)
    if isinstance(source, bytes):
        return _from_bytes(source, name or "image", window, assumed_crs, max_read_pixels)
    if window is not None:
        raise SampleError("a window belongs to a file", field="window", value=window, remedy="crop the pixels")
    image = source if isinstance(source, Image.Image) else _from_array(source)
    nothing = Resolution(chosen=None, notes=("pixels without a file: no GSD is known",))
    pixels, notes = rgb_pixels(image)
    return OpenedImage(name=name or "pixels", pixels=pixels, native_size=image.size, gsd=nothing, notes=notes)


def _from_file(path: Path, name: str, window: Window | None, crs: str | None, max_read_pixels: int) -> OpenedImage:
    raster = read_rgb(path, max_pixels=max_read_pixels, window=window)
    gsd = gsd_of_file(path, assumed_crs=crs, window=window)
    return OpenedImage(
        name=name,
        pixels=Image.fromarray(raster.pixels_HW3),
        native_size=raster.native_size,
        gsd=gsd,
        notes=raster.notes,
    )


def _from_bytes(data: bytes, name: str, window: Window | None, crs: str | None, max_read_pixels: int) -> OpenedImage:
    """Through a file of its own folder: GDAL looks for siblings by name, and there it finds none."""
    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        raise SampleError("image of no bytes, or of too many", file=name, field="bytes", value=len(data))
    with tempfile.TemporaryDirectory(prefix="scaleearth-") as folder:
        path = Path(folder) / (_plain(Path(name).stem) or "image")
        path.write_bytes(data)
        try:
            return _from_file(path, name, window, crs, max_read_pixels)
        except SampleError as error:
            raise _renamed(error, path, name) from error


def _plain(stem: str) -> str:
    """The characters of a name in which a GSD may be read, and nothing that a path could be made of."""
    return "".join(c for c in stem if c.isascii() and (c.isalnum() or c in "-_"))[:120]


def _renamed(error: SampleError, path: Path, name: str) -> SampleError:
    """The same message with the caller's name in place of the temporary path."""
    return SampleError(str(error).replace(str(path), name))


def rgb_pixels(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """A PIL image as RGB, and notes: 16-bit and float ones are stretched as `geo/raster.py` does, where PIL's own
    conversion cuts everything above 255 off.

    Raises:
        SampleError: the file behind the image is cut or damaged.
    """
    try:
        if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            return image.convert("RGB"), ()
        band_HW = np.ma.masked_invalid(np.asarray(image))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises while it decodes
        raise SampleError(f"image cannot be read: {error}", field="image", remedy="fetch the file again") from error
    grey_HW, (low, high) = stretch_band(band_HW)
    return Image.fromarray(grey_HW).convert("RGB"), (
        f"{band_HW.dtype} stretched by percentiles 2-98 ({low:g}..{high:g})",
    )


def _from_array(array_HWC: "np.ndarray[Any, Any]") -> Image.Image:
    if not isinstance(array_HWC, np.ndarray) or array_HWC.dtype != np.uint8 or array_HWC.ndim not in (2, 3):
        found = (type(array_HWC).__name__, getattr(array_HWC, "dtype", None), getattr(array_HWC, "shape", None))
        raise SampleError(
            "not an image",
            field="image",
            value=tuple(map(str, found)),
            remedy="give a path, the bytes of a file, a PIL image, or an array [height, width, 3] of uint8",
        )
    if array_HWC.size == 0 or (array_HWC.ndim == 3 and array_HWC.shape[2] != 3):
        raise SampleError("not an RGB or grey image", field="image", value=array_HWC.shape)
    return Image.fromarray(array_HWC)
