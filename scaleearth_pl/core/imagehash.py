"""Copies of an image, found by a 256-bit perceptual hash and confirmed on a thumbnail.

    hash       64 x 64 grey -> DCT -> 16 x 16 lowest frequencies -> bit = coefficient > median          (imagehash.phash)
    candidate  two hashes differ in at most `MAX_DISTANCE` = 64 of 256 bits (independent bits: 128 +- 8)
    copy       Pearson correlation of the 32 x 32 grey thumbnails, laid the same way, is at least `MIN_CORRELATION` = 0.9

Measured on 70 RSVQA tiles, their 280 quarters and 3,800 procedural images, in all eight orientations (69 million pairs):

    different images   at most 25 pairs an orientation within 70 bits (as near as 16: lone waves, where noise decides the bits),
                       the best correlated of them at 0.83; real tiles and quarters: none, the nearest upright pair at 90 bits
    the same image     found: JPEG 75, half size, area-averaged to a quarter, brightness x 1.2, contrast x 1.3 100 %;
                       JPEG 50 or 30 99 %; a quarter and JPEG 75 95 %; cropped by 2 % 73 %; cropped by 5 % 3 %

The usual 64 bits do not do: at distance 8, which JPEG alone needs, 17 pairs of different images match. Price: a copy
that was cropped, moved or warped is *not* found, nor a tile cut from a larger evaluation scene.

Pairs are compared exhaustively, XOR and population count in blocks: quadratic, but without a miss of the search itself.
Flips and quarter turns are found by hashing one side in its eight orientations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16
"""Frequencies a side; a hash has its square of bits, in `WORDS` words of 64."""

WORDS = HASH_SIDE**2 // 64
MAX_DISTANCE = 64
MIN_CORRELATION = 0.9

THUMBNAIL_SIDE = 32
"""Pixels a side of the picture that confirms a match: 1 kB an image."""

ORIENTATIONS = ("same", "mirrored", "flipped", "turned 180", "transposed", "turned 90", "turned 270", "transversed")
"""How the other image lies against this one; the eight symmetries of a square."""

_OPERATIONS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
_BLOCK_PAIRS = 2**21
"""Pairs compared at a time: about 20 MB of temporaries."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is kept of an image: `hashes` [8, WORDS] in the order of `ORIENTATIONS`, `thumbnail` [32, 32] grey."""

    hashes: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]


def fingerprint(image: Image.Image) -> Fingerprint:
    """Of an image of any size and mode; its sides are squeezed to a square, as a flip or turn may have swapped them."""
    side = 4 * HASH_SIDE
    grey = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    turned = [grey if how is None else grey.transpose(how) for how in _OPERATIONS]
    small = grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return Fingerprint(
        hashes=np.stack([_words(imagehash.phash(view, hash_size=HASH_SIDE)) for view in turned]),
        thumbnail=np.asarray(small, dtype=np.uint8),
    )


def near_pairs(
    a: NDArray[np.uint64], b: NDArray[np.uint64], *, max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[int, int, int]]:
    """Yields (row of `a`, row of `b`, distance in bits) of every pair within `max_distance`, rows of `a` ascending.

    Args:
        a: hashes, [n, WORDS].
        b: hashes, [m, WORDS].
        max_distance: inclusive.
    """
    if not len(a) or not len(b):
        return
    step, columns = max(1, _BLOCK_PAIRS // len(b)), np.ascontiguousarray(b.T)
    for start in range(0, len(a), step):
        rows = a[start : start + step]
        distance = np.bitwise_count(rows[:, 0, None] ^ columns[0])
        for word in range(1, WORDS - 1):  # the last word is looked at only where the others leave the pair open
            distance += np.bitwise_count(rows[:, word, None] ^ columns[word])
        i, j = np.nonzero(distance <= max_distance)
        total = np.bitwise_count(rows[i] ^ b[j]).sum(axis=1, dtype=np.int64)
        for k in np.flatnonzero(total <= max_distance):
            yield start + int(i[k]), int(j[k]), int(total[k])


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8], orientation: int) -> float:
    """Pearson's r of thumbnail `a` and `b` brought into `ORIENTATIONS[orientation]`; flat ones count 1 if equal, else 0."""
    how = _OPERATIONS[orientation]
    turned = b if how is None else np.asarray(Image.fromarray(b).transpose(how))
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (a, turned))
    power = float((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / power**0.5 if power > 0 else float(np.array_equal(a, turned))


def _words(found: imagehash.ImageHash) -> NDArray[np.uint64]:
    return np.packbits(found.hash.ravel()).view(np.uint64)
