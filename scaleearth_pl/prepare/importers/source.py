"""What all importers share: a root, the splits to take, and small decisions made the same way everywhere."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import parse_gsd_text
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers.record import Records, Rejected

SPLITS = ("train", "val", "test")

_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test", "test_gt": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on the disk. Subclasses add their own options; the signature is the schema of the YAML.

    Args:
        root: folder of the raw files.
        splits: those to take; only train unless told otherwise, so that no evaluation set is trained on by oversight.
        work: folder for temporary tables; None takes the system's.
    """

    kind: ClassVar[str]
    allowed_splits: ClassVar[tuple[str, ...]] = SPLITS

    root: Path
    splits: tuple[str, ...] = ("train",)
    work: Path | None = None

    def __post_init__(self) -> None:
        if not self.splits:
            raise ConfigError("no split to import", field="splits", value=self.splits)
        for split in self.splits:
            if split not in self.allowed_splits:
                raise ConfigError(
                    f"{self.kind} has no such split",
                    field="splits",
                    value=split,
                    remedy=f"use {', '.join(self.allowed_splits)}",
                )

    def present(self) -> bool:
        """Whether `root` holds this data set."""
        raise NotImplementedError

    def records(self) -> Records:
        """Streams the data set: images with their questions, and what had to be left out.

        Raises:
            ConfigError: the layout is not the expected one.
            SampleError: a table breaks off.
        """
        raise NotImplementedError

    def refuse_empty(self, found: Collection[str]) -> None:
        """Raises `ConfigError` where a split that was asked for is not among those `found`: folders and shares decide.

        Where none was found, every image was refused, and the share of failures is what to report.
        """
        if found and (empty := [split for split in self.splits if split not in found]):
            raise ConfigError(
                "no image lies in this split",
                file=self.root,
                field="splits",
                value=empty,
                remedy="name it in a folder above the classes, draw it (`shares: {val: 0.1}`), or leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Splits by hash for data sets that have none: equal names fall into equal splits on every machine."""

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise ConfigError("shares of val and test must lie in [0, 1) together", value=(self.val, self.test))

    def split_of(self, name: str) -> str:
        """train, val or test."""
        draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
        if draw < self.test:
            return "test"
        return "val" if draw < self.test + self.val else "train"


class ImageIds:
    """Ids of one source's images by their names: `a/b.tif` is `<source>-a-b`.

    `a.tif` and `a.png`, or `a/b` and `a-b`, would be one: the first that is taken keeps the plain id, each later one has
    a digest of its name behind it. Price: about 100 bytes an image.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._taken: set[str] = set()

    def of(self, name: str) -> str:
        """The id that an image of this relative name would get."""
        plain = f"{self._source}-{name.rsplit('.', 1)[0].replace('/', '-')}"
        if plain not in self._taken:
            return plain
        return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"

    def take(self, image_id: str) -> None:
        """Marks an id as an image's."""
        self._taken.add(image_id)


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name means, or None."""
    return _SPLIT_WORDS.get(name.lower())


def plain_name(name: str) -> str:
    """A relative name in one spelling: `./a.png` is `a.png`, so that two rows of one file are of one image."""
    return str(PurePosixPath(name)) if name else name


def words(label: str) -> str:
    """A class label as words: "christmas_tree_farm", "DenseResidential" -> lower case with spaces."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    return " ".join(re.sub(r"[_\-]+", " ", spaced).lower().split())


def scene_question(image_id: str, label: str) -> Question:
    """The one question that a class label answers."""
    return Question(
        id=f"{image_id}-scene",
        type="scene",
        family="identification",
        question="Which class of land use or object does this image show?",
        answer=words(label),
    )


def stated_gsd_problem(value: object, *, source: str, item: str, field: str, file: Path) -> Rejected | None:
    """A rejection if a GSD is stated and is none ("0.5ft", zero): a wrong unit must not fall through to a constant."""
    if value is None:
        return None
    try:
        parse_gsd_text(value, field=field, file=file)
    except GsdError as error:
        return Rejected(source=source, item=item, kind="bad_gsd", reason=str(error))
    return None
