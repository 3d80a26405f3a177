"""Fingerprints of a whole corpus, or of a folder of images, in the order in which they lie there.

1.3 kB an image: 80,000 images are 100 MB. Each image is decoded once, which is what the time goes into (measured in
`docs/scale.md`). Images of a folder are taken as the importers take them: what a shard holds as it is by Pillow, all
else (16-bit, float, other formats, huge ones) by `geo.raster`, averaged down. What does not decode is listed, since an
image that was not looked at proves nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.imagehash import THUMBNAIL_SIDE, WORDS, Fingerprint, fingerprint
from scaleearth_pl.data.images import IMAGE_FORMATS, decode_rgb, image_size
from scaleearth_pl.data.shard_index import INDEX_NAME, MAX_MEMBER_BYTES
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.geo.raster import read_rgb
from scaleearth_pl.prepare.importers.store import IMAGE_SUFFIXES

FOLDER_SPLIT = "images"
"""Split that images of a plain folder count as."""

RASTER_PIXELS = 2**20
"""What Pillow cannot decode is averaged down to at most this; a fingerprint looks at 32 x 32 pixels in the end."""


@dataclass(frozen=True)
class Unreadable:
    """An image that was not looked at, and why."""

    image_id: str
    split: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Prints:
    """Fingerprints as columns; a pair has two rows of one id. Row k is `image_id[k]`, of `split[k]`, `place_id[k]`,
    `provenance[k]` (of its GSD).

    `hashes` [n, 8, WORDS] as in `Fingerprint`, `thumbnail` [n, side, side]; `unreadable` are no rows.
    """

    root: Path
    image_id: tuple[str, ...]
    split: tuple[str, ...]
    place_id: tuple[str, ...]
    provenance: tuple[Provenance, ...]
    hashes: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]
    unreadable: tuple[Unreadable, ...]

    def __len__(self) -> int:
        return len(self.image_id)

    def of_splits(self, keep: Callable[[str], bool]) -> "Prints":
        """The rows, and the unreadable images, whose split passes `keep`."""
        rows = [k for k, split in enumerate(self.split) if keep(split)]
        return Prints(
            root=self.root,
            image_id=tuple(self.image_id[k] for k in rows),
            split=tuple(self.split[k] for k in rows),
            place_id=tuple(self.place_id[k] for k in rows),
            provenance=tuple(self.provenance[k] for k in rows),
            hashes=self.hashes[rows],
            thumbnail=self.thumbnail[rows],
            unreadable=tuple(one for one in self.unreadable if keep(one.split)),
        )


@dataclass(frozen=True, kw_only=True)
class _Row:
    image_id: str
    split: str
    place_id: str
    found: Fingerprint | str
    provenance: Provenance = Provenance.UNKNOWN


def read_prints(root: Path, *, observe: Callable[[], None] = lambda: None) -> Prints:
    """Fingerprints of a corpus (a folder with `index.json`) or of all images below a folder.

    Args:
        root: the folder.
        observe: called after every image, for a progress bar.

    Raises:
        ConfigError: there is no image below `root`.
        IndexSchemaError, ShardError: the corpus is broken.
    """
    rows = []
    for row in _corpus_rows(root) if (root / INDEX_NAME).is_file() else _folder_rows(root):
        rows.append(row)
        observe()
    if not rows:
        raise ConfigError("no image below this folder", file=root, remedy="name a corpus, or a folder of images")
    good = [row for row in rows if isinstance(row.found, Fingerprint)]
    prints = [row.found for row in good if isinstance(row.found, Fingerprint)]
    side = THUMBNAIL_SIDE
    return Prints(
        root=root,
        image_id=tuple(row.image_id for row in good),
        split=tuple(row.split for row in good),
        place_id=tuple(row.place_id for row in good),
        provenance=tuple(row.provenance for row in good),
        hashes=np.array([p.hashes for p in prints], dtype=np.uint64).reshape(-1, 8, WORDS),
        thumbnail=np.array([p.thumbnail for p in prints], dtype=np.uint8).reshape(-1, side, side),
        unreadable=tuple(Unreadable(row.image_id, row.split, row.found) for row in rows if isinstance(row.found, str)),
    )


def count_images(root: Path) -> int:
    """Images that `read_prints` will look at, without decoding any."""
    if (root / INDEX_NAME).is_file():
        index = ShardIndex.load(root)
        return len(index) + sum(len(images) for images in index.later.values())
    return len(_image_files(root))


def _corpus_rows(root: Path) -> Iterator[_Row]:
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    for k in range(len(index)):
        image_id, split = index.text["image_id"][k], index.shards[int(index.shard_of_row[k])].split
        try:
            sample, images = reader.read_all(k)
            found = [fingerprint(image.rgb()) for image in images]
        except (SampleError, GsdError) as error:
            yield _Row(image_id=image_id, split=split, place_id=image_id, found=str(error))
            continue
        about = _Row(
            image_id=image_id,
            split=split,
            place_id=sample.place_id or image_id,
            found="",
            provenance=sample.gsd_provenance,
        )
        yield from (replace(about, found=one) for one in found)
    reader.close()


def _folder_rows(root: Path) -> Iterator[_Row]:
    for path in _image_files(root):
        name, found = path.relative_to(root).as_posix(), _file_print(path)
        yield _Row(image_id=name, split=FOLDER_SPLIT, place_id=name, found=found)


def _file_print(path: Path) -> Fingerprint | str:
    try:
        picture = _as_in_a_shard(path) or Image.fromarray(read_rgb(path, max_pixels=RASTER_PIXELS).pixels_HW3)
        return fingerprint(picture)
    except (SampleError, OSError) as error:
        return str(error)


def _as_in_a_shard(path: Path) -> Image.Image | None:
    """The picture as a shard would hold the file; None where none would, or where it is broken: GDAL says why."""
    ext = path.suffix[1:].lower()
    if ext not in IMAGE_FORMATS or path.stat().st_size > MAX_MEMBER_BYTES:
        return None
    data = path.read_bytes()
    try:
        return decode_rgb(data, ext, size=image_size(data, ext, where=str(path)), where=str(path))
    except SampleError:
        return None


def _image_files(root: Path) -> list[Path]:
    """All images of the importers' suffixes, sorted; macOS's shadows are left out as they leave them out."""
    found = (path for path in root.rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(path for path in found if not path.name.startswith("._") and path.is_file())
