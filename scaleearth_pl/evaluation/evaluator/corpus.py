"""Images and questions of a split of shards, as the engine takes them; and the guard against leaks.

Read in index order, one image at a time, verified as in training. A sample that cannot be read is counted with its
reason and left out; an image with no question of the wanted sources is passed over.

The guard compares image bytes (CRC-32, size, width and height of every member): an evaluated sample with an image that
is byte for byte one of the images trained on is a leak, in whichever split it is filed. Near duplicates are the business of the
corpus builder (perceptual hashes); this guard costs nothing and runs every time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import TRAINED_SPLITS, Question, Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.evaluation.evaluator.engine import Asked
from scaleearth_pl.evaluation.evaluator.model import Subject

_BYTES = ("image_crc32", "image_size", "width", "height")


@dataclass(kw_only=True)
class CorpusSplit:
    """Rows of one split (evenly thinned to `limit_images`), and what could not be read of them."""

    index: ShardIndex
    split: str
    rows: NDArray[np.int64]
    sources: Collection[str] | None = None
    types: Collection[str] | None = None
    bad: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        root: Path | str,
        split: str,
        *,
        limit_images: int | None = None,
        sources: Collection[str] | None = None,
        types: Collection[str] | None = None,
    ) -> "CorpusSplit":
        """Opens a corpus.

        Args:
            root: folder with index.json.
            split: one of its splits.
            limit_images: evenly spaced over the split; None for all.
            sources: keep images of these sources only.
            types: keep questions of these types only.

        Raises:
            IndexSchemaError: no index, or no such split.
            ConfigError: nothing is left.
        """
        if limit_images is not None and limit_images < 1:
            raise ConfigError("must be at least 1", field="limit_images", value=limit_images)
        index = ShardIndex.load(Path(root))
        rows = every = index.rows((split,))
        if sources is not None:
            rows = rows[np.array([index.text["source"][row] in sources for row in rows.tolist()], bool)]
        if limit_images is not None and limit_images < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, limit_images).round().astype(int)]
        if not len(rows):
            there = ", ".join(sorted({index.text["source"][row] for row in every.tolist()}))
            raise ConfigError(
                f"no image of these sources in split {split!r}",
                file=index.root,
                field="sources",
                value=list(sources or ()),
                remedy=f"its sources are {there}" if there else "name another split",
            )
        return cls(index=index, split=split, rows=rows, sources=sources, types=types)

    def leaked(
        self, *trained_on: "ShardIndex", trained_splits: Mapping[str, Collection[str]] | None = None
    ) -> list[str]:
        """Ids of evaluated images whose bytes are those of a trained image, here or in another corpus.

        `trained_splits`, by content hash of a corpus, are those of the run itself; the usual ones count in any case.
        """
        seen: set[tuple[int, ...]] = set()
        for index in (self.index, *trained_on):
            trained = {*TRAINED_SPLITS, *(trained_splits or {}).get(index.content_hash, ())}
            splits = tuple(s for s in index.splits if s in trained)
            seen.update(*_fingerprints(index, index.rows(splits)))
        ours = zip(self.rows.tolist(), _fingerprints(self.index, self.rows), strict=True)
        return [self.index.text["image_id"][row] for row, prints in ours if not seen.isdisjoint(prints)]

    def refuse_leaks(self, leaked: Sequence[str]) -> None:
        """`ConfigError` names the first of what `leaked` returned, if there is any."""
        if leaked:
            raise ConfigError(
                f"{len(leaked)} of {len(self.rows)} evaluated images were trained on",
                file=self.index.root,
                field="image_id",
                value=leaked[0],
                remedy="evaluate a split that was held out, or say --allow-leaks and mark the number",
            )

    def images(self, subject: Subject, *, skip: Collection[str] = ()) -> Iterator[Asked]:
        """The split's images in index order, but for those whose id is in `skip`."""
        reader = ShardReader(self.index)
        try:
            for row in self.rows.tolist():
                if self.index.text["image_id"][row] in skip:
                    continue
                asked = self._read(reader, row, subject)
                if asked is not None:
                    yield asked
        finally:
            reader.close()

    def _read(self, reader: ShardReader, row: int, subject: Subject) -> Asked | None:
        where = self.index.where(row)
        try:
            sample, stored = reader.read_all(row)
            questions = self._wanted(sample)
            if not questions:
                return None
            images = tuple(subject.processor.image(image.rgb()) for image in stored)
        except (SampleError, GsdError) as error:
            self.bad[where] = str(error)
            return None
        return Asked(sample=sample, images=images, questions=questions)

    def _wanted(self, sample: Sample) -> tuple[Question, ...]:
        return tuple(q for q in sample.qas if self.types is None or q.type in self.types)


def _fingerprints(index: ShardIndex, rows: NDArray[np.int64]) -> Sequence[list[tuple[int, ...]]]:
    """For each row, the prints of its images."""
    first = zip(*(index.number[name][rows].tolist() for name in _BYTES), strict=True)
    return [
        [one, *((image.crc32, image.size, *one[2:]) for image in index.later.get(row, ()))]
        for row, one in zip(rows.tolist(), first, strict=True)
    ]
