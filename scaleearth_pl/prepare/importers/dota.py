"""DOTA v1 and v2: aerial images, their oriented boxes, and for most of them the GSD.

    <split>/images/P0000.png   <split>/labelTxt/P0000.txt (imagesource, gsd, boxes)   <split>/meta/P0000.txt (v2)

or `<split>/labelTxt-v2.0/DOTA-v2.0_<split>/P0000.txt`, as v1.5 and v2 are published; the upright boxes beside it, in
`DOTA-v2.0_<split>_hbb`, are never taken.

The `gsd:` line is the image's own. Where it is null or empty the GSD is *unknown*: no constant fits images from five
sources. A line that holds something else is a fault and costs the image. Labels answer two kinds of question: whether a
class is there (asked of as many absent classes as present ones, so that "yes" is no safe guess) and how many there are.

`DotaParents` gives the same GSDs to sets that were cut from DOTA (VRSBench): by parent id, nominal, since a patch may
have been resized.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.sample import Question
from scaleearth_pl.geo.candidates import Candidate
from scaleearth_pl.geo.sidecars import parse_dota
from scaleearth_pl.prepare.importers.record import Found, Records, Rejected
from scaleearth_pl.prepare.importers.source import Source, words
from scaleearth_pl.prepare.importers.store import FileTree
from scaleearth_pl.prepare.inject import Evidence

CLASSES = (
    "plane", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court", "ground track field",
    "harbor", "bridge", "large vehicle", "small vehicle", "helicopter", "roundabout", "soccer ball field",
    "swimming pool",
)  # fmt: skip
"""The fifteen classes that every release labels completely."""

_LABEL_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labelTxt-v2.0")
_INNER_FOLDERS = ("", "labelTxt", "DOTA-v1.5_{split}", "DOTA-v2.0_{split}")
"""Below each of those; "" is the folder itself."""

_META_FOLDER = re.compile(r"meta|labelTxt(-v\d\.\d)?|DOTA-v\d\.\d_(train|val|test)")
_MAX_TEXT_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Dota(Source):
    """The split folders below `root` or `root/DOTA`.

    Args:
        max_count: more objects of a class than this are not asked to be counted.
    """

    kind: ClassVar[str] = "dota"

    max_count: int = 30

    def present(self) -> bool:
        """Whether a wanted split has its image folder."""
        return any((self._folder(split) / "images").is_dir() for split in self.splits)

    def records(self) -> Records:
        """One record an image that has a label file."""
        if not self.present():
            raise ConfigError("no <split>/images folder of DOTA", file=self.root, value=self.splits)
        for split in self.splits:
            folder = self._folder(split)
            if (folder / "images").is_dir():
                for name in FileTree(folder / "images").names():
                    yield self._image(folder, split, name)

    def _folder(self, split: str) -> Path:
        return next((f for f in (self.root / split, self.root / "DOTA" / split) if f.is_dir()), self.root / split)

    def _image(self, folder: Path, split: str, name: str) -> Found | Rejected:
        image = FileTree(folder / "images").image_or_rejected(name, source=self.kind, item=f"{split}/{name}")
        if isinstance(image, Rejected):
            return image
        image_id = f"{self.kind}-{Path(name).stem}"
        label = _text_of(folder, _LABEL_FOLDERS, Path(name).stem)
        if label is None:
            return self._rejected(image_id, "no_questions", f"no label file: none of {_tried(folder, Path(name).stem)}")
        try:
            candidate = parse_dota(label) or parse_dota(_text_of(folder, ("meta",), Path(name).stem) or "")
            counts = _counts(label)
        except (GsdError, ValueError) as error:
            return self._rejected(image_id, "bad_gsd" if isinstance(error, GsdError) else "bad_row", str(error))
        return Found(
            source=self.kind,
            split=split,
            image_id=image_id,
            image=image,
            qas=tuple(_questions(image_id, counts, self.max_count)),
            evidence=Evidence(image_id=image_id, name=name, extra=(candidate,) if candidate else ()),
            licence="DOTA: academic use only",
        )

    def _rejected(self, item: str, kind: str, reason: str) -> Rejected:
        return Rejected(source=self.kind, item=item, kind=kind, reason=reason)


class DotaParents:
    """GSDs of DOTA images by their id ("P0000").

    Args:
        root: folder that holds label or meta files, at any depth down to `<split>/<labels>/<release>/P0000.txt`.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        below = sorted(p for p in (root, *root.glob("*"), *root.glob("*/*"), *root.glob("*/*/*")) if p.is_dir())
        self._folders = [p for p in below if _META_FOLDER.fullmatch(p.name) or p == root]
        if not any(next(p.glob("P*.txt"), None) for p in self._folders):
            raise ConfigError("no DOTA label or meta file P*.txt", file=root, remedy="name the folder of DOTA's texts")
        self._find = lru_cache(maxsize=65536)(self._read)

    def candidate(self, parent: str) -> Candidate | None:
        """The parent's GSD, nominal; None where DOTA does not know it. Raises `GsdError` where it is none."""
        return self._find(parent)

    def _read(self, parent: str) -> Candidate | None:
        for folder in self._folders:
            path = folder / f"{parent}.txt"
            if path.is_file() and (found := parse_dota(_read_text(path))):
                return replace(found, provenance=Provenance.NOMINAL, sigma_log10=float("nan"), source="dota:parent gsd")
        return None


def _text_of(folder: Path, below: tuple[str, ...], stem: str) -> str | None:
    paths = (folder / name / inner / f"{stem}.txt" for name in below for inner in _inner_folders(folder))
    path = next((p for p in paths if p.is_file()), None)
    return None if path is None else _read_text(path)


def _inner_folders(folder: Path) -> tuple[str, ...]:
    return tuple(name.format(split=folder.name) for name in _INNER_FOLDERS)


def _tried(folder: Path, stem: str) -> str:
    """Where a label was looked for, in the shell's way of naming several paths."""
    return f"{folder}/{{{','.join(_LABEL_FOLDERS)}}}/{{{','.join(_inner_folders(folder))}}}/{stem}.txt"


def _read_text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(_MAX_TEXT_BYTES).decode("utf-8", "replace")


def _counts(label: str) -> Counter[str]:
    """Objects by class; difficult ones count too, since they are in the picture."""
    counts: Counter[str] = Counter()
    for line in label.splitlines():
        cells = line.split()
        if not cells or ":" in cells[0]:
            continue
        if len(cells) < 9:
            raise ValueError(f"label line is not eight coordinates and a class: {line[:80]!r}")
        [float(cell) for cell in cells[:8]]
        counts[words(cells[8])] += 1
    return counts


def _questions(image_id: str, counts: Counter[str], max_count: int) -> Iterator[Question]:
    present = [name for name in CLASSES if counts[name]]
    absent = sorted(
        (n for n in CLASSES if not counts[n]), key=lambda n: hashlib.sha256(f"{image_id}|{n}".encode()).digest()
    )
    for name, answer in [*((n, "yes") for n in present), *((n, "no") for n in absent[: max(1, len(present))])]:
        yield _question(image_id, f"presence-{name}", "presence", f"Is there a {name} in the image?", answer)
    for name in present:
        if counts[name] <= max_count:
            text = f"How many objects of the class {name} are in the image?"
            yield _question(image_id, f"count-{name}", "count", text, str(counts[name]))


def _question(image_id: str, suffix: str, kind: str, text: str, answer: str) -> Question:
    number = f"{image_id}-{suffix.replace(' ', '-')}"
    return Question(id=number, type=kind, family="identification", question=text, answer=answer)
