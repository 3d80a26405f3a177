"""Shards by index: ordinary WebDataset tar files, read by offset and verified byte for byte.

Reading by offset gives random access, hence a plan that is a pure function; and it turns a cut or altered shard into an
error, where a streaming tar reader takes many cuts for a normal end (a fifth of them, measured on webdataset 1.0.2) and
can merge two samples that share a key. Price: shards are local files (mount or copy an object store), and `scaleearth
index` must have seen a foreign corpus once.

A whole file of the wrong size is a `ShardError` and stops the run; one rotten member costs one sample (`SampleError`).
"""

import os
import zlib
from typing import Any

from scaleearth_pl.core.errors import SampleError, ShardError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import StoredImage
from scaleearth_pl.data.shard_index import ShardIndex, ShardRecord, check_size

__all__ = ["ShardIndex", "ShardReader", "ShardRecord"]

MAX_OPEN_SHARDS = 64
"""File handles that one reader keeps; the oldest is closed first."""


class ShardReader:
    """Reads samples by row; keeps file handles open, which `pread` makes safe to share with forked workers."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._handles: dict[int, int] = {}

    def read(self, row: int) -> tuple[Sample, bytes]:
        """The sample and its image bytes, for tools that know one image: a sample of several is a `SampleError`.

        Raises:
            ShardError, SampleError, GsdError: as `read_all`.
        """
        if row in self.index.later:
            raise SampleError(
                "sample of several images, where one is read",
                file=self.index.where(row),
                field="n_images",
                value=1 + len(self.index.later[row]),
                remedy="leave change pairs out here; training and evaluation take them",
            )
        return self.read_sample(row), self._member(row, "image")

    def read_all(self, row: int) -> tuple[Sample, tuple[StoredImage, ...]]:
        """The sample and all its images in order, every member verified by size and CRC-32.

        Raises:
            ShardError: the shard is missing or of another size than in the index.
            SampleError: a member's bytes are not those indexed, or its JSON is not a valid sample.
            GsdError: the sample's GSD is not a finite positive number.
        """
        sample, where = self.read_sample(row), self.index.where(row)
        size = (sample.width, sample.height)
        images = [StoredImage(data=self._member(row, "image"), ext=self.index.text["ext"][row], size=size, where=where)]
        for number, image in enumerate(self.index.later.get(row, ()), 1):
            data = self._bytes(row, f"image {number}", image.offset, image.size, image.crc32)
            images.append(StoredImage(data=data, ext=image.ext, size=size, where=f"{where}.{number}"))
        return sample, tuple(images)

    def read_sample(self, row: int) -> Sample:
        """The sample alone, for passes that need no pixels."""
        index, where = self.index, self.index.where(row)
        sample = Sample.from_json(self._member(row, "json"))
        tier = index.tier_of_row(row)
        expected = {
            "image_id": index.text["image_id"][row],
            "width": int(index.number["width"][row]),
            "height": int(index.number["height"][row]),
            "tier": tier,
            "n_images": 1 + len(index.later.get(row, ())),
        }
        for name, value in expected.items():
            if getattr(sample, name) != value:
                raise SampleError("sample contradicts the index", file=where, field=name, value=getattr(sample, name))
        if index.boundaries.tier_of(sample.gsd_m_native) is not tier:
            raise SampleError(
                "GSD lies outside the tier of its shard", file=where, field="gsd_m_native", value=sample.gsd_m_native
            )
        return sample

    def close(self) -> None:
        """Closes the file handles; reading again reopens them."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _member(self, row: int, kind: str) -> bytes:
        return self._bytes(
            row, kind, *(int(self.index.number[f"{kind}_{what}"][row]) for what in ("offset", "size", "crc32"))
        )

    def _bytes(self, row: int, kind: str, offset: int, size: int, crc32: int) -> bytes:
        handle = self._handle(int(self.index.shard_of_row[row]))
        try:
            data = os.pread(handle, size, offset)
        except OSError as error:  # a bad sector costs a sample; a lost disk is a row of them (quarantine.py)
            raise SampleError(f"{kind} member cannot be read: {error.strerror}", file=self.index.where(row)) from error
        if len(data) != size or zlib.crc32(data) != crc32:
            raise SampleError(
                f"{kind} member is cut or altered",
                file=self.index.where(row),
                field="crc32",
                value=f"{len(data)} of {size} bytes",
                remedy="restore the shard, or run `scaleearth index` if the change was meant",
            )
        return data

    def _handle(self, shard: int) -> int:
        if shard not in self._handles:
            if len(self._handles) >= MAX_OPEN_SHARDS:
                os.close(self._handles.pop(next(iter(self._handles))))
            record = self.index.shards[shard]
            path = self.index.root / record.file
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ShardError(f"shard cannot be opened: {error.strerror}", file=path) from error
            try:
                check_size(path, os.fstat(handle).st_size, record)
            except ShardError:
                os.close(handle)
                raise
            self._handles[shard] = handle
        return self._handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_handles": {}}

    def __del__(self) -> None:
        self.close()
