"""MtSCCD: scene classification and change detection over five Chinese cities, 300 x 300, around 1 m.

The publisher's folder layout could not be read, so the importer asks for little: an image's folder is its class, and
folders above it may name a split (train, val, test) and a city. Official splits are by city: the city is the region.
`pairs` is a CSV `t1,t2[,split][,answer]` of relative names; `split` is written as a folder's name would be, and
where it is empty the first image's folder tells. A pair is one tree with two images of one size and GSD (that
of the first); its question asks whether the class changed (the folders tell, or `answer` does).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers.classfolders import ClassImage, found_image
from scaleearth_pl.prepare.importers.jsonfiles import rows_of_csv
from scaleearth_pl.prepare.importers.record import Found, Records, Rejected
from scaleearth_pl.prepare.importers.source import Shares, Source, split_of_folder, words
from scaleearth_pl.prepare.importers.store import FileTree, first_tree

CITIES = ("hangzhou", "shanghai", "wuhan", "nanjing", "hefei")
_PLACES = ("MtSCCD_LUSC", "MtSCCD/MtSCCD_LUSC", "MtSCCD", "MtSCCD_LUSC.zip", "MtSCCD.zip")


@dataclass(frozen=True, kw_only=True)
class MtSCCD(Source):
    """The class folders below `root` (or one of its usual subfolders).

    Args:
        images: folder or archive of the class folders, where it is not one of the usual names.
        pairs: CSV of change pairs; with it only the pairs are imported.
        shares: of val and test, for images that no folder assigns to a split.
    """

    kind: ClassVar[str] = "mtsccd"

    images: Path | None = None
    pairs: Path | None = None
    shares: Shares = field(default_factory=Shares)

    def present(self) -> bool:
        """Whether there is an image folder or archive."""
        return self.images is not None or _tree(self.root) is not None

    def records(self) -> Records:
        """One record an image, or one a pair."""
        tree = FileTree(self.images) if self.images else _tree(self.root)
        if tree is None:
            raise ConfigError("no MtSCCD folder below this root", file=self.root, remedy="name the folder in `images`")
        yield from tree.rejected(self.kind)
        if self.pairs is not None:
            yield from self._pairs(tree, self.pairs)
            return
        for name in tree.names():
            if "/" in name and self._split(name) in self.splits:
                yield self._found(tree, name)

    def _split(self, name: str) -> str:
        named = [split_of_folder(part) for part in name.split("/")[:-1]]
        return next((s for s in named if s), None) or self.shares.split_of(name)

    def _found(self, tree: FileTree, name: str) -> Found | Rejected:
        *above, label, _ = ("", *name.split("/"))
        city = next((part.lower() for part in above if part.lower() in CITIES), None)
        about = ClassImage(
            source=self.kind,
            path="/".join(part for part in name.split("/") if not part.startswith("MtSCCD")),
            dataset="MtSCCD",
            split=self._split(name),
            label=label,
            region_id=f"{self.kind}-{city}" if city else None,
        )
        return found_image(tree, name, about)

    def _pairs(self, tree: FileTree, path: Path) -> Records:
        for number, row in enumerate(rows_of_csv(path, ("t1", "t2"))):
            found = self._pair(tree, row, f"{self.kind}-pair-{number}")
            if isinstance(found, Rejected) or found.split in self.splits:
                yield found

    def _pair(self, tree: FileTree, row: Mapping[str, str | None], image_id: str) -> Found | Rejected:
        stated = (row.get("split") or "").strip()
        if stated and split_of_folder(stated) is None:
            reason = f"split is {stated!r}: write train, val or test, or leave it empty"
            return Rejected(source=self.kind, item=image_id, kind="bad_row", reason=reason)
        sides = []
        for column in ("t1", "t2"):
            image = tree.image_or_rejected(row[column], source=self.kind, item=f"{image_id}.{column}")
            if isinstance(image, Rejected):
                return image
            sides.append(image)
        first = self._found(tree, str(row["t1"]))
        if isinstance(first, Rejected):
            return first
        split = split_of_folder(stated) or first.split
        return replace(first, image_id=image_id, later=(sides[1],), qas=(_change_question(row, image_id),), split=split)


def _change_question(row: Mapping[str, str | None], image_id: str) -> Question:
    labels = [words(("", *str(row[column]).split("/"))[-2]) for column in ("t1", "t2")]
    return Question(
        id=f"{image_id}-change",
        type="change",
        family="identification",
        question="Did the land use change between the first and the second image?",
        answer=(row.get("answer") or "").strip() or ("no" if labels[0] == labels[1] else "yes"),
    )


def _tree(root: Path) -> FileTree | None:
    return first_tree(root, *_PLACES)
