"""The common currency of importers.

    Source.records() -> Found | Rejected  ->  finish() -> Imported | Rejected  ->  ShardWriter

`Found` is cheap: what the tables say about one image, the image itself still on the disk. `finish` is the expensive
half (decode, resolve the GSD) and a pure function of one record, so it can run anywhere and in any order; all three
are frozen and can be pickled. `Rejected` travels in the same stream: a bad record is data about the source, not an
exception, and nothing that was found disappears without one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.prepare.inject import Evidence


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """Where an image lies: a file, or a member of a zip or tar.

    Args:
        path: the file, or the archive.
        member: name inside the archive, None for a plain file.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """File name without folders."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.path}!{self.member}" if self.member else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One image as the source describes it, not yet opened.

    Args:
        source: name of the data set, as written to the sample.
        split: train, val, test, stage1.
        image_id: unique in the corpus.
        image: where the image lies.
        qas: its questions, at least one.
        evidence: what is known about its GSD; the chain of `inject` decides.
        later: further images of the same tree (change pairs).
        place_id: images of one place; None for the image's own.
        region_id: places that must share a split; None for the place.
        class_label: scene class in words.
        sensor: as the source names it.
        licence: of the source.
        lon: degrees, where the source says so itself; otherwise the GSD's evidence may tell.
        lat: degrees.
        native_size: (width, height) that every image of the data set has; one of another size is another's, and its GSD
            with it. None where sizes differ.
        notes: of the import, kept for the report.
    """

    source: str
    split: str
    image_id: str
    image: ImageRef
    qas: tuple[Question, ...]
    evidence: Evidence
    later: tuple[ImageRef, ...] = ()
    place_id: str | None = None
    region_id: str | None = None
    class_label: str | None = None
    sensor: str | None = None
    licence: str | None = None
    lon: float | None = None
    lat: float | None = None
    native_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Imported:
    """One finished sample: what `ShardWriter.write(sample, image, ext, later=later)` takes.

    `image` is encoded and was decoded once; so are the further images of a pair, `later`, of (bytes, extension). `notes`
    say what was done to the image, `doubts` what was said of its GSD in vain.
    """

    sample: Sample
    image: bytes
    ext: str
    later: tuple[tuple[bytes, str], ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Something that did not get in, and why.

    Args:
        source: name of the data set.
        item: image id, row or member.
        kind: short reason that is counted: missing_image, broken_json, duplicate_id, unsafe_path, bad_image,
            bad_gsd, bad_row, bad_question, orphan_questions, no_questions.
        reason: the sentence for a person.
        count: items that it stands for.
    """

    source: str
    item: str
    kind: str
    reason: str
    count: int = 1


Records: TypeAlias = Iterator[Found | Rejected]
"""What an importer yields: streaming, in a fixed order."""
