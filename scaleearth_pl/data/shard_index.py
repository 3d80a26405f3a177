"""The index of a corpus: what lies where, as columns, and the proof that it still does.

`index.json` (schema "scaleearth-index/1") lists every shard with its size and SHA-256, and for each sample the offsets,
sizes and CRC-32 of its image and of its JSON. It knows nothing of tokenizers or processors: token lengths live in a
sidecar (`lengths.py`), so that changing the model does not touch the corpus.

    data_shards/<corpus>/index.json
    data_shards/<corpus>/<split>/<tier>/00000.tar   {key}.json {key}.jpg|jpeg|png|tif|tiff|webp [{key}.1.jpg ...]

The second image of a sample is `{key}.1.<ext>` and so on, which WebDataset reads as one more field of the sample. Only a
shard that holds such a sample has a column `later`: for each row, [ext, offset, size, crc32] of its further images.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import IndexSchemaError, ShardError
from scaleearth_pl.core.files import sha256_of
from scaleearth_pl.core.gsd import Tier, TierBoundaries
from scaleearth_pl.core.sample import MAX_IMAGES
from scaleearth_pl.data.images import IMAGE_FORMATS

INDEX_SCHEMA = "scaleearth-index/1"
INDEX_NAME = "index.json"
TEXT_COLUMNS = ("key", "image_id", "source", "ext")
NUMBER_COLUMNS = (
    "image_offset",
    "image_size",
    "image_crc32",
    "json_offset",
    "json_size",
    "json_crc32",
    "n_questions",
    "width",
    "height",
)
LATER_COLUMN = "later"
MAX_MEMBER_BYTES = 256 * 2**20
"""Cap of one member: nothing that we write comes near it, a hostile index might ask for more."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard file of one split and native tier; its samples are the rows `start` to `stop` of the index."""

    file: str
    split: str
    tier: Tier
    n_bytes: int
    sha256: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class LaterImage:
    """Where the second (third, ...) image of a sample lies in its shard."""

    ext: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """All samples of a corpus as columns; a *row* is a sample. `hash` identifies the index's own bytes.

    The columns describe each sample's first image; `later` has the rows of several images only.
    """

    root: Path
    corpus: str
    boundaries: TierBoundaries
    content_hash: str
    hash: str
    shards: tuple[ShardRecord, ...]
    text: dict[str, tuple[str, ...]]
    number: dict[str, NDArray[np.int64]]
    shard_of_row: NDArray[np.int64]
    later: dict[int, tuple[LaterImage, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shard_of_row)

    @classmethod
    def load(cls, root: Path) -> Self:
        """Reads `root/index.json`; `IndexSchemaError` if it is absent, of another schema, or contradicts itself."""
        path = Path(root) / INDEX_NAME
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise IndexSchemaError(
                f"corpus has no readable index: {error.strerror}",
                file=path,
                remedy="build the corpus with `scaleearth prepare`; `scaleearth index` gives foreign shards an index",
            ) from error
        try:
            return cls._from_document(Path(root), json.loads(raw), hashlib.sha256(raw).hexdigest())
        except (KeyError, TypeError, ValueError) as error:
            raise IndexSchemaError(
                f"index does not parse: {error!r}", file=path, remedy="rebuild the corpus"
            ) from error

    @classmethod
    def _from_document(cls, root: Path, document: dict[str, Any], digest: str) -> Self:
        if document["schema"] != INDEX_SCHEMA:
            raise IndexSchemaError(
                "index of another schema",
                file=root / INDEX_NAME,
                field="schema",
                value=document["schema"],
                remedy=f"this version reads {INDEX_SCHEMA}; rebuild the corpus",
            )
        shards: list[ShardRecord] = []
        rows_of_shard: list[int] = []
        for entry in document["shards"]:
            n_rows = _check_columns(root, entry)
            start = shards[-1].stop if shards else 0
            shards.append(
                ShardRecord(
                    file=_plain_file(root, entry["file"]),
                    split=entry["split"],
                    tier=Tier(entry["tier"]),
                    n_bytes=int(entry["bytes"]),
                    sha256=entry["sha256"],
                    start=start,
                    stop=start + n_rows,
                )
            )
            rows_of_shard.append(n_rows)
        samples = [entry["samples"] for entry in document["shards"]]
        return cls(
            root=root,
            corpus=document["corpus"],
            boundaries=TierBoundaries(**document["boundaries"]),
            content_hash=document["content_hash"],
            hash=digest,
            shards=tuple(shards),
            text={name: tuple(x for s in samples for x in s[name]) for name in TEXT_COLUMNS},
            number={n: np.array([x for s in samples for x in s[n]], dtype=np.int64) for n in NUMBER_COLUMNS},
            shard_of_row=np.repeat(np.arange(len(shards)), rows_of_shard),
            later={
                shard.start + k: tuple(_later_image(*image) for image in images)
                for shard, columns in zip(shards, samples, strict=True)
                for k, images in enumerate(columns.get(LATER_COLUMN, ()))
                if images
            },
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold samples, sorted."""
        return tuple(sorted({shard.split for shard in self.shards}))

    def rows(self, splits: tuple[str, ...]) -> NDArray[np.int64]:
        """Rows of these splits in index order; `IndexSchemaError` for a split that the corpus does not have."""
        for split in splits:
            if split not in self.splits:
                raise IndexSchemaError(
                    "corpus has no such split",
                    file=self.root / INDEX_NAME,
                    field="split",
                    value=split,
                    remedy=f"it has {list(self.splits)}"
                    + ("; `--data.val_splits '[]'` trains without validation" if split == "val" else ""),
                )
        ranges = [np.arange(s.start, s.stop) for s in self.shards if s.split in splits]
        return np.concatenate([np.zeros(0, np.int64), *ranges])

    def tier_of_row(self, row: int) -> Tier:
        """Native tier under which a row is filed."""
        return self.shards[int(self.shard_of_row[row])].tier

    def where(self, row: int) -> str:
        """Shard and key of a row, for messages."""
        return f"{self.root / self.shards[int(self.shard_of_row[row])].file}#{self.text['key'][row]}"

    def check_files(self, splits: tuple[str, ...]) -> None:
        """`ShardError` for the first shard of these splits that is missing or not of the size in the index."""
        for shard in self.shards:
            if shard.split in splits:
                path = self.root / shard.file
                check_size(path, path.stat().st_size if path.is_file() else None, shard)

    def verify(self) -> None:
        """Full check of every shard against its SHA-256; `ShardError` names the first that differs."""
        self.check_files(self.splits)
        for shard in self.shards:
            digest = sha256_of(self.root / shard.file)
            if digest != shard.sha256:
                raise ShardError("shard was altered", file=self.root / shard.file, field="sha256", value=digest)


def check_size(path: Path, n_bytes: int | None, record: ShardRecord) -> None:
    """`ShardError` unless the file is there (`n_bytes` is not None) and has the size in the index."""
    if n_bytes != record.n_bytes:
        raise ShardError(
            "shard is missing" if n_bytes is None else "shard is not of the size in the index",
            file=path,
            field="bytes",
            value=(n_bytes, record.n_bytes),
            remedy="restore or rebuild the corpus",
        )


def _check_columns(root: Path, entry: dict[str, Any]) -> int:
    samples, path = entry["samples"], root / INDEX_NAME
    optional = (LATER_COLUMN,) if LATER_COLUMN in samples else ()
    lengths = {name: len(samples[name]) for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS, *optional)}
    if len(set(lengths.values())) != 1:
        raise IndexSchemaError("columns of a shard differ in length", file=path, field=entry["file"], value=lengths)
    later = [_later_image(*image) for images in samples.get(LATER_COLUMN, ()) for image in images]
    for ext in {*samples["ext"], *(image.ext for image in later)} - set(IMAGE_FORMATS):
        raise IndexSchemaError("image extension is not allowed", file=path, field="ext", value=ext)
    if (most := max(map(len, samples.get(LATER_COLUMN, ())), default=0)) >= MAX_IMAGES:
        raise IndexSchemaError("too many images in a sample", file=path, field=entry["file"], value=1 + most)
    sizes = [*samples["image_size"], *samples["json_size"], *(image.size for image in later)]
    if sizes and (min(sizes) <= 0 or max(sizes) > MAX_MEMBER_BYTES):
        raise IndexSchemaError(
            "member size is impossible", file=path, field=entry["file"], value=(min(sizes), max(sizes))
        )
    offsets = [*samples["image_offset"], *samples["json_offset"], *(image.offset for image in later)]
    if offsets and min(offsets) < 0:
        raise IndexSchemaError("member offset is impossible", file=path, field=entry["file"], value=min(offsets))
    return lengths["key"]


def _later_image(ext: str, offset: int, size: int, crc32: int) -> LaterImage:
    return LaterImage(ext=ext, offset=int(offset), size=int(size), crc32=int(crc32))


def _plain_file(root: Path, name: str) -> str:
    parts = Path(name).parts
    if not name.endswith(".tar") or ":" in name or Path(name).is_absolute() or ".." in parts:
        raise IndexSchemaError(
            "shard is not a plain relative .tar file below the corpus", file=root / INDEX_NAME, field="file", value=name
        )
    return name
