"""Samples to WebDataset shards: one door for every source of `prepare`.

A shard holds one split and one native tier, written by webdataset's own `TarWriter` with time stamps 0, so that equal
samples in equal order are equal bytes and any WebDataset reader can read them. What cannot be true is refused here,
before hours are spent on it: a tier that contradicts the GSD, an image of another size than stated, an id used twice.
A corpus is valid once `index.json` exists; it is removed first and written last, so a killed build is never half read.

Price: each shard is read back once to be indexed and hashed (from the page cache), for an index that describes what
lies on the disk.
"""

import hashlib
import re
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from webdataset import TarWriter

from scaleearth_pl.core.errors import ConfigError, DiskSpaceError, SampleError, ShardError
from scaleearth_pl.core.files import NO_ROOM
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import image_size
from scaleearth_pl.data.shard_index import INDEX_NAME, ShardIndex
from scaleearth_pl.prepare.index import Scan, image_member, scan_shard, write_index

DISK_RESERVE_BYTES = 64 * 2**20
"""Free space that writing never eats: checkpoints and logs live on the same disk."""


class ShardWriter:
    """Context manager that files samples by split and native tier.

    Args:
        root: `data_shards/<corpus>`; created if absent.
        corpus: name of the corpus, stored in the index.
        boundaries: tier boundaries in metres per pixel, stored in the index.
        samples_per_shard: images in one tar file.
        content_hash: what the builder says identifies the content (its configuration's hash), stored as it is; empty
            takes the digest of the shards' own bytes.
        overwrite: replace a corpus that already has an index; otherwise it is refused.
    """

    def __init__(
        self,
        root: Path,
        *,
        corpus: str,
        boundaries: TierBoundaries | None = None,
        samples_per_shard: int = 512,
        content_hash: str = "",
        overwrite: bool = False,
    ) -> None:
        if samples_per_shard < 1:
            raise ConfigError("a shard holds at least one sample", field="samples_per_shard", value=samples_per_shard)
        self.root, self.corpus, self.content_hash = Path(root), corpus, content_hash
        self.boundaries = boundaries or TierBoundaries()
        self.samples_per_shard = samples_per_shard
        self._open: dict[tuple[str, str], tuple[Path, Any]] = {}
        self._count: dict[tuple[str, str], int] = {}
        self._ids: set[str] = set()
        self._keys: set[str] = set()
        self._scan = Scan()
        self._clear(overwrite)

    def write(self, sample: Sample, image_bytes: bytes, ext: str, *, later: Sequence[tuple[bytes, str]] = ()) -> None:
        """Appends one image, or the images of one tree, with all questions.

        Args:
            sample: metadata and questions; width and height are those of the image.
            image_bytes: the encoded file.
            ext: jpg, jpeg, png, tif, tiff or webp, without the dot.
            later: (encoded file, ext) of the second image and those after it, of the first one's size.

        Raises:
            SampleError: image and metadata disagree, the tier does not fit, or the id was written before.
            DiskSpaceError: less than the reserve would be left.
        """
        images = ((image_bytes, ext), *later)
        self._check(sample, images)
        text = sample.to_json().encode()
        self._check_space(len(text) + sum(len(data) for data, _ in images))
        group = (sample.split, str(sample.tier))
        record = {"__key__": self._key(sample.image_id), "json": text}
        record |= {image_member(number, ext): data for number, (data, ext) in enumerate(images)}
        try:
            self._writer(group).write(record)
        except OSError as error:
            raise self._disk_error(error) from error
        self._count[group] = self._count.get(group, 0) + 1
        if self._count[group] % self.samples_per_shard == 0:
            self._finish(group)

    def close(self) -> None:
        """Closes the open shards and writes the index; the corpus is valid from here on."""
        for group in sorted(self._open):
            self._finish(group)
        if not self._scan.n_samples:
            raise ConfigError("nothing was written", file=self.root, remedy="check the builder's source folder")
        write_index(
            self.root,
            self._scan,
            corpus=self.corpus,
            boundaries=self.boundaries,
            content_hash=self.content_hash or self._digest(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        for _, writer in self._open.values():
            with suppress(OSError):
                writer.close()

    def _clear(self, overwrite: bool) -> None:
        path = self.root / INDEX_NAME
        if path.exists():
            if not overwrite:
                raise ConfigError(
                    "corpus exists already", file=path, remedy="delete the folder, or ask for it to be overwritten"
                )
            old = ShardIndex.load(self.root)
            path.unlink()
            for shard in old.shards:
                (self.root / shard.file).unlink(missing_ok=True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._disk_error(error) from error

    def _check(self, sample: Sample, images: Sequence[tuple[bytes, str]]) -> None:
        where = f"{self.root}#{sample.image_id}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", sample.split):
            raise SampleError("split is not a plain name", file=where, field="split", value=sample.split)
        tier = self.boundaries.tier_of(sample.gsd_m_native)
        if tier is not sample.tier:
            raise SampleError(
                "tier contradicts the native GSD",
                file=where,
                field="tier",
                value=str(sample.tier),
                remedy=f"{sample.gsd_m_native} m per pixel is tier {tier}",
            )
        if sample.n_images != len(images):
            raise SampleError("not as many images as stated", file=where, field="n_images", value=len(images))
        for data, ext in images:
            size = image_size(data, ext, where=where)
            if size != (sample.width, sample.height):
                raise SampleError("image is of another size than stated", file=where, field="width, height", value=size)
        if sample.image_id in self._ids:
            raise SampleError("image_id was written before", file=where, field="image_id", value=sample.image_id)
        self._ids.add(sample.image_id)

    def _digest(self) -> str:
        return hashlib.sha256("".join(entry["sha256"] for entry in self._scan.entries).encode()).hexdigest()

    def _key(self, image_id: str) -> str:
        # WebDataset cuts a name at its first dot and ustar headers end at 100 bytes: odd ids get a checksum instead.
        key = re.sub(r"[^A-Za-z0-9_-]", "_", image_id)[:72]
        if key != image_id or key in self._keys:
            key = f"{key}-{zlib.crc32(image_id.encode()):08x}"
        self._keys.add(key)
        return key

    def _writer(self, group: tuple[str, str]) -> Any:
        if group not in self._open:
            number = self._count.get(group, 0) // self.samples_per_shard
            path = self.root / group[0] / group[1] / f"{number:05d}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "wb")  # noqa: SIM115 (closed with the writer in _finish)
            writer = TarWriter(stream, encoder=False, compress=False, mtime=0, user="", group="")
            writer.own_fileobj = stream
            self._open[group] = (path, writer)
        return self._open[group][1]

    def _finish(self, group: tuple[str, str]) -> None:
        path, writer = self._open.pop(group)
        try:
            writer.close()
        except OSError as error:
            raise self._disk_error(error) from error
        rejected = len(self._scan.rejected)
        scan_shard(path, self.root, self._scan, boundaries=self.boundaries)
        if len(self._scan.rejected) > rejected:
            raise ShardError(f"shard does not read back: {self._scan.rejected[-1].reason}", file=path)

    def _check_space(self, n_bytes: int) -> None:
        free = shutil.disk_usage(self.root).free
        if free < n_bytes + DISK_RESERVE_BYTES:
            raise DiskSpaceError(
                "not enough room for the corpus",
                file=self.root,
                field="free bytes",
                value=free,
                remedy="free some space",
            )

    def _disk_error(self, error: OSError) -> DiskSpaceError:
        problem = "disk is full" if error.errno in NO_ROOM else f"corpus cannot be written: {error.strerror}"
        return DiskSpaceError(problem, file=self.root, remedy="free some space or name a writable folder")
