"""MtSCCD: scene classification and change detection over five Chinese cities, 300 x 300, around 1 m.

The publisher's folder layout could not be read, so the importer asks for little: an image's folder is its class, and
folders above it may name a split (train, val, test) and a city. Official splits are by city: the city is the region,
and shares draw whole cities. `pairs` is a CSV `t1,t2[,split][,answer]` of relative names; `split` is written as a
folder's name would be, and where it is empty the images' folders tell; two that disagree are no pair. A pair is one tree
with two images of one size and GSD (that of the first); its question asks whether the class changed (the folders tell,
or `answer` does).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers.classfolders import (
    ClassImage,
    class_folder,
    class_images,
    found_image,
    split_of_path,
)
from scaleearth_pl.prepare.importers.jsonfiles import rows_of_csv
from scaleearth_pl.prepare.importers.record import Found, Records, Rejected
from scaleearth_pl.prepare.importers.source import Shares, Source, plain_name, split_of_folder, words
from scaleearth_pl.prepare.importers.store import FileTree, first_tree

CITIES = ("hangzhou", "shanghai", "wuhan", "nanjing", "hefei")
_LAYOUT = "[<split>/][<city>/]<class>/<file>"
_NOT_CLASSES = (*CITIES, "mtsccd", "mtsccd_lusc")
_PLACES = ("MtSCCD_LUSC", "MtSCCD/MtSCCD_LUSC", "MtSCCD", "MtSCCD_LUSC.zip", "MtSCCD.zip")


@dataclass(frozen=True, kw_only=True)
class MtSCCD(Source):
    """The class folders below `root` (or one of its usual subfolders).

    Args:
        images: folder or archive of the class folders, where it is not one of the usual names.
        pairs: CSV of change pairs; with it only the pairs are imported.
        shares: of val and test, for cities (and images of none) that no folder assigns to a split.
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
        found = list(class_images(tree, self.kind, layout=_LAYOUT, not_classes=_NOT_CLASSES))
        yield from (name for name in found if isinstance(name, Rejected))
        split_of = {name: self._told(name) or self.shares.split_of(name) for name in found if isinstance(name, str)}
        self.refuse_empty(set(split_of.values()))
        for name, split in split_of.items():
            if split in self.splits:
                yield found_image(tree, name, self._about(name, split))

    def _told(self, name: str) -> str | None:
        """The split that the folders name, or the draw of their city; None where there is neither."""
        city = _city(name)
        return split_of_path(name) or (self.shares.split_of(city) if city else None)

    def _about(self, name: str, split: str) -> ClassImage:
        city = _city(name)
        return ClassImage(
            source=self.kind,
            path="/".join(part for part in name.split("/") if not part.startswith("MtSCCD")),
            dataset="MtSCCD",
            split=split,
            label=class_folder(name, _NOT_CLASSES) or "",
            region_id=f"{self.kind}-{city}" if city else None,
        )

    def _pairs(self, tree: FileTree, path: Path) -> Records:
        for number, row in enumerate(rows_of_csv(path, ("t1", "t2"))):
            found = self._pair(tree, row, f"{self.kind}-pair-{number}")
            if isinstance(found, Rejected) or found.split in self.splits:
                yield found

    def _pair(self, tree: FileTree, row: Mapping[str, str | None], image_id: str) -> Found | Rejected:
        sides = []
        for column in ("t1", "t2"):
            image = tree.image_or_rejected(row[column], source=self.kind, item=f"{image_id}.{column}")
            if isinstance(image, Rejected):
                return image
            sides.append(image)
        names = (plain_name(str(row["t1"])), plain_name(str(row["t2"])))
        try:
            about = self._about(names[0], self._split_of_pair(row, names))
            asked = _change_question(row, names, image_id)
        except SampleError as error:
            return Rejected(source=self.kind, item=image_id, kind="bad_row", reason=str(error))
        first = found_image(tree, names[0], replace(about, asked=asked))
        return first if isinstance(first, Rejected) else replace(first, image_id=image_id, later=(sides[1],))

    def _split_of_pair(self, row: Mapping[str, str | None], names: tuple[str, str]) -> str:
        """The row's split, else that of the images; `SampleError` for no split's name, and where the images disagree."""
        stated = (row.get("split") or "").strip()
        if stated and split_of_folder(stated) is None:
            remedy = "write train, val or test, or leave it empty"
            raise SampleError("unknown split", field="split", value=stated, remedy=remedy)
        told = {split for split in map(split_of_path if stated else self._told, names) if split}
        if len(told) > 1:
            remedy = "pair images of one split"
            raise SampleError("images of one pair lie in two splits", field="t1, t2", value=names, remedy=remedy)
        return split_of_folder(stated) or next(iter(told), None) or self.shares.split_of(names[0])


def _city(name: str) -> str | None:
    return next((part for part in name.lower().split("/")[:-1] if part in CITIES), None)


def _change_question(row: Mapping[str, str | None], names: tuple[str, str], image_id: str) -> Question:
    """Answered by the row, else by the folders; `SampleError` where neither tells."""
    labels = [class_folder(name, _NOT_CLASSES) for name in names]
    answer = (row.get("answer") or "").strip()
    if not answer and None in labels:
        remedy = "write its `answer`"
        raise SampleError("pair has neither an answer nor class folders", field="t1, t2", value=names, remedy=remedy)
    return Question(
        id=f"{image_id}-change",
        type="change",
        family="identification",
        question="Did the land use change between the first and the second image?",
        answer=answer or ("no" if len({words(label or "") for label in labels}) == 1 else "yes"),
    )


def _tree(root: Path) -> FileTree | None:
    return first_tree(root, *_PLACES)
