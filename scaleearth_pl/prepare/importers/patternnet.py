"""PatternNet: 38 classes of 800 images, 256 x 256, `PatternNet/images/<class>/<class>NNN.jpg`.

No GSD per image or class is published; the images come from several zoom levels. So the GSD is *imprecise*, the
interval of the data set's table, and does not supervise SSE-U, unless the user gives a table of classes. There is no
official split either: a folder above the class may name one (`images/test/<class>`), else shares of val and test are
drawn by hash, none by default.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.geo.candidates import Candidate
from scaleearth_pl.prepare.importers.classfolders import (
    ClassImage,
    class_images,
    found_image,
    read_gsd_table,
    split_of_path,
)
from scaleearth_pl.prepare.importers.record import Records, Rejected
from scaleearth_pl.prepare.importers.source import Shares, Source, words
from scaleearth_pl.prepare.importers.store import FileTree, first_tree

_PLACES = ("PatternNet/images", "images", "PatternNet", "PatternNet.zip", "images.zip")
_LAYOUT = "images/[<split>/]<class>/<file>"
_NOT_CLASSES = ("patternnet", "images")
_SPELLINGS = {"wastewater treatment plan": "wastewater treatment plant"}


@dataclass(frozen=True, kw_only=True)
class PatternNet(Source):
    """The class folders below `root`, or the archive `PatternNet.zip`.

    Args:
        gsd_table: CSV `class,gsd_m[,gsd_lo,gsd_hi]`; a class that it leaves out keeps the interval of the data set.
        shares: of val and test, for images that no folder assigns to a split.
    """

    kind: ClassVar[str] = "patternnet"

    gsd_table: Path | None = None
    shares: Shares = field(default_factory=Shares)

    def present(self) -> bool:
        """Whether there is an image folder or archive."""
        return _tree(self.root) is not None

    def records(self) -> Records:
        """One record an image, class by class."""
        tree = _tree(self.root)
        if tree is None:
            raise ConfigError("no images/ folder and no PatternNet.zip", file=self.root, remedy="unpack the archive")
        yield from tree.rejected(self.kind)
        found = list(class_images(tree, self.kind, layout=_LAYOUT, not_classes=_NOT_CLASSES))
        yield from (name for name in found if isinstance(name, Rejected))
        names = [name for name in found if isinstance(name, str)]
        table = _gsd_table(self.gsd_table, {_label(name) for name in names}) if self.gsd_table else {}
        split_of = {name: split_of_path(name) or self.shares.split_of(name.rsplit("/", 1)[-1]) for name in names}
        self.refuse_empty(set(split_of.values()))
        for name, split in split_of.items():
            if split in self.splits:
                path, label = "/".join(name.split("/")[-2:]), _label(name)
                about = ClassImage(source=self.kind, path=path, dataset="PatternNet", split=split, label=label)
                extra: tuple[Candidate, ...] = (table[label],) if label in table else ()
                yield found_image(tree, name, about, extra)


def _label(name: str) -> str:
    return _spelt(words(name.split("/")[-2]))


def _spelt(label: str) -> str:
    return _SPELLINGS.get(label, label)


def _gsd_table(path: Path, labels: set[str]) -> dict[str, Candidate]:
    """The user's table by label; `ConfigError` where two rows mean one class, or a row means none of `labels`."""
    given = read_gsd_table(path)
    table = {_spelt(label): candidate for label, candidate in given.items()}
    if len(table) < len(given):
        twice = sorted(label for label in given if _spelt(label) != label and _spelt(label) in given)
        remedy = "keep one spelling of it"
        raise ConfigError("GSD table names a class twice", file=path, field="class", value=twice, remedy=remedy)
    if unknown := sorted(set(table) - labels):
        remedy = f"leave them out, or use {', '.join(sorted(labels))}"
        raise ConfigError(
            "GSD table names classes that no folder has", file=path, field="class", value=unknown, remedy=remedy
        )
    return table


def _tree(root: Path) -> FileTree | None:
    return first_tree(root, *_PLACES)
