"""Very large images: a stated policy, and memory that does not depend on the benchmark.

    budget   the whole image, reduced to at most `max_pixels`; details below that are gone
    tiles    a grid of at most `max_tiles` equal tiles, each reduced to at most `max_pixels`; one tree, several images

At 8B the budget may be the model's own million of visual pixels; the tiny model sees 16,384, which turns a 10,000 px scene
into 128 x 128 and says so (`shrink`). The images of these benchmarks have no GSD, so nothing is falsified by reducing
them: SSE-U reads what is left. One image is decoded at a time, JPEG at a fraction of its size; above `max_decoded`
pixels it is refused and counted. The peak is then 3 bytes a decoded pixel, 600 MB by default.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.data.processor import ProcessedImage, Processor

MAX_DECODED = 200_000_000


@dataclass(frozen=True, kw_only=True)
class PixelPolicy:
    """See the module's table. `max_pixels` None is the processor's own."""

    kind: Literal["budget", "tiles"] = "budget"
    max_pixels: int | None = None
    max_tiles: int = 9
    max_decoded: int = MAX_DECODED

    def __post_init__(self) -> None:
        if self.kind not in ("budget", "tiles"):
            raise ConfigError("no such pixel policy", field="kind", value=self.kind, remedy="budget or tiles")
        for name in ("max_tiles", "max_decoded"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))

    @property
    def name(self) -> str:
        """In result rows: budget-16384, tiles-9x16384."""
        pixels = "own" if self.max_pixels is None else str(self.max_pixels)
        return f"budget-{pixels}" if self.kind == "budget" else f"tiles-{self.max_tiles}x{pixels}"

    def processor(self, own: Processor) -> Processor:
        """The processor with this policy's pixels."""
        if self.max_pixels is None or self.max_pixels == own.max_pixels:
            return own
        return Processor(
            own.tokenizer,
            min_pixels=min(own.min_pixels, self.max_pixels),
            max_pixels=self.max_pixels,
            patch_size=own.patch_size,
            merge_size=own.merge_size,
            gsd_text=own.gsd_text,
        )

    def encode(self, data: bytes, own: Processor, *, where: str) -> tuple[tuple[ProcessedImage, ...], tuple[int, int]]:
        """One encoded image to model inputs; also its native (width, height).

        Raises:
            SampleError: no image, or more pixels than `max_decoded`.
        """
        processor = self.processor(own)
        with _open(data, self.max_decoded, where) as image:
            size = image.size
            if self.kind == "budget":
                image.draft("RGB", _draft_size(size, processor.max_pixels))
            whole = _decoded(image, where)
        boxes = [(0, 0, *whole.size)] if self.kind == "budget" else list(tile_boxes(whole.size, self.max_tiles))
        return tuple(processor.image(whole.crop(box) if len(boxes) > 1 else whole) for box in boxes), size


def image_size(data: bytes, *, where: str) -> tuple[int, int]:
    """(width, height) of one encoded image, from its header; `SampleError` where there is none."""
    with _open(data, MAX_DECODED, where) as image:
        return image.width, image.height


def tile_boxes(size: tuple[int, int], max_tiles: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of the grid of equal tiles that is as square as `max_tiles` allows; rows of tiles, left to right.

    Equal sizes give equal GSDs, which a tree needs; the price is a border of less than one pixel per tile.
    """
    width, height = size
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]

    def badness(grid: tuple[int, int]) -> tuple[float, int]:
        aspect = (width / grid[0]) / (height / grid[1])
        return abs(math.log(aspect)) - math.log(grid[0] * grid[1]), grid[0]

    columns, rows = min(grids, key=badness)
    w, h = width // columns, height // rows
    for r in range(rows):
        for c in range(columns):
            yield c * w, r * h, (c + 1) * w, (r + 1) * h


def _draft_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """At least twice the size that is wanted, so that the last reduction is still a filtered one."""
    shrink = max(1.0, math.sqrt(size[0] * size[1] / max_pixels) / 2)
    return max(1, math.ceil(size[0] / shrink)), max(1, math.ceil(size[1] / shrink))


@contextmanager
def _open(data: bytes, max_decoded: int, where: str) -> Iterator[Image.Image]:
    """Opens without PIL's bomb check (its limit is global and too low) but with ours, before a pixel is decoded."""
    old, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
        if image.width * image.height > max_decoded:
            raise SampleError(
                f"image has more than {max_decoded} pixels",
                file=where,
                value=image.size,
                remedy="raise max_decoded if memory allows: three bytes a pixel",
            )
        yield image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise SampleError(f"not an image: {error}", file=where) from error
    finally:
        Image.MAX_IMAGE_PIXELS = old


def _decoded(image: Image.Image, where: str) -> Image.Image:
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(f"image does not decode: {error}", file=where) from error
