"""RSVQA LR, HR and RSVQAxBEN as streams: the same three tables a split, whatever their size.

    <prefix>_split_<split>_{images,questions,answers}.json  ->  spool by image  ->  one record an image

`prepare.rsvqa` reads LR and HR into memory and stops at the first bad row, which suits a benchmark. This importer is
for corpora: xBEN's 15 million questions pass through in flat memory, and a bad row costs its image a question.

Rows with `active: false` only pad the list so that index equals id. GSD: `res_x`, `res_y` in the image's row; exact for
LR and xBEN, whose grid is Sentinel-2's, nominal for HR, which stamps one value on every tile. xBEN rows without it get
the data set's constant.

A tile that is not as large as the data set's costs its image: ids are plain numbers in all three, and images of one
beside tables of another would pass for its own.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.core.sample import Question
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.prepare.importers.bad_rows import BadRows
from scaleearth_pl.prepare.importers.jsonfiles import Row, rows_of_list
from scaleearth_pl.prepare.importers.record import Found, ImageRef, Records, Rejected
from scaleearth_pl.prepare.importers.source import Source, stated_gsd_problem
from scaleearth_pl.prepare.importers.spool import Item, Spool, SpoolRow
from scaleearth_pl.prepare.importers.store import FileTree, first_tree, unsafe_reason
from scaleearth_pl.prepare.inject import Evidence
from scaleearth_pl.prepare.rsvqa_files import PARTS, Part, json_file, lon_lat_of_centre
from scaleearth_pl.prepare.rsvqa_samples import FAMILY_OF_TYPE

XBEN = Part(
    name="xben",
    source="rsvqa_xben",
    folder="rsvqa_xben",
    image_folder="Images",
    prefix="RSVQAxBEN",
    splits=("train", "val", "test"),
    provenance=Provenance.EXACT,
    licence="CDLA-Permissive-1.0 (BigEarthNet); contains Copernicus Sentinel data",
)
_FAMILIES = {**FAMILY_OF_TYPE, "LC": "identification"}
_ABOUT = ("sensor", "res_x", "res_y", "upperleft_map_x", "upperleft_map_y", "original_name")
_SUFFIXES = (".tif", ".png", ".jpg")
_ARCHIVES = {
    "lr": ("Images_LR", "Images_LR.zip", "Images_LR.tar"),
    "hr": ("Data", "Data.zip", "Data.tar", "Images.tar"),
    "xben": ("Images", "Images.zip", "Images.tar"),
}
"""Where the images lie, first come first served; HR is published as `Images.tar`, xBEN as `Images.zip`."""

_TILE_PIXELS = {"lr": 256, "hr": 512, "xben": 120}


@dataclass(frozen=True, kw_only=True)
class _Rsvqa(Source):
    part: ClassVar[Part]

    def present(self) -> bool:
        """Whether the images table of a wanted split is there."""
        return any(json_file(self._folder, self.part, split, "images").is_file() for split in self.splits)

    def records(self) -> Records:
        """One record an image, split by split, in the order of their ids."""
        images = self._images()
        yield from images.rejected(self.part.source)
        for split in self.splits:
            with Spool(self.work) as spool:
                yield from self._fill(spool, split)
                for image_id, about, items in spool.groups():
                    yield from self._image(images, split, int(image_id), about, items)
                for image_id in spool.groups_without_rows():
                    yield self._rejected(split, image_id, "no_questions", "no active question asks about this image")

    @property
    def _folder(self) -> Path:
        below = self.root / self.part.folder
        return below if below.is_dir() else self.root

    def _images(self) -> FileTree:
        tree = first_tree(self._folder, *_ARCHIVES[self.part.name])
        if tree is None:
            raise ConfigError(
                f"no images of {self.part.source}", file=self._folder, remedy=f"unpack {self.part.image_folder}/ here"
            )
        return tree

    def _fill(self, spool: Spool, split: str) -> Iterator[Rejected]:
        """Reads the three tables; yields their unreadable rows."""

        def read(kind: str, make: Callable[[Row], Any]) -> "_Rows":
            path = json_file(self._folder, self.part, split, kind)
            return _Rows(path, kind, self.part.source_of(split), split, make)

        tables = (
            (spool.references, read("answers", _answer)),
            (spool.abouts, read("images", _about)),
            (spool.rows, read("questions", _question_row)),
        )
        for store, rows in tables:
            twice = store(rows)
            yield from rows.bad.records()
            if twice:
                reason = f"{rows.path.name}: {twice} rows with an id that was there before (the first is kept)"
                yield replace(self._rejected(split, rows.kind, "duplicate_id", reason), count=twice)

    def _image(
        self, images: FileTree, split: str, number: int, about: str | None, items: list[Item]
    ) -> Iterator[Found | Rejected]:
        if about is None:
            reason = f"{len(items)} questions about an image that is not active in this split"
            yield self._rejected(split, number, "orphan_questions", reason)
            return
        row: Row = json.loads(about)
        source = self.part.source_of(split)
        image_id = f"{source}-{number}"
        qas, problems = _questions(source, items)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            yield self._rejected(split, number, "bad_question", problems[0] + more)
        file = json_file(self._folder, self.part, split, "images")
        for field in ("res_x", "res_y"):
            bad = stated_gsd_problem(row.get(field), source=source, item=image_id, field=field, file=file)
            if bad is not None:
                yield bad
                return
        image = self._find(images, number, row)
        if image is None:
            yield self._rejected(split, number, "missing_image", f"{images.path} has no {number}.tif")
        elif qas:
            yield self._found(split, image_id, image, row, qas)

    def _find(self, images: FileTree, number: int, row: Row) -> ImageRef | None:
        stems = [str(number)]
        original = row.get("original_name")
        if self.part is XBEN and isinstance(original, str) and not unsafe_reason(original):
            stems.append(original.removesuffix(".tif"))
        names = [
            f"{folder}{stem}{suffix}"
            for stem in stems
            for folder in ("", f"{self.part.image_folder}/")
            for suffix in _SUFFIXES
        ]
        return next((ref for name in names if (ref := images.find(name))), None)

    def _found(self, split: str, image_id: str, image: ImageRef, row: Row, qas: tuple[Question, ...]) -> Found:
        gsd_m = _gsd_m(row)
        exact = gsd_m is not None and self.part.provenance is Provenance.EXACT
        extra = (
            Candidate(gsd_m=gsd_m, provenance=Provenance.EXACT, stage=Stage.RECORD, source="rsvqa:Sentinel-2 grid"),
        ) if exact and gsd_m else ()  # fmt: skip
        side = _TILE_PIXELS[self.part.name]
        lon, lat = self._centre(row, gsd_m)
        return Found(
            source=self.part.source_of(split),
            split=split,
            image_id=image_id,
            image=image,
            qas=qas,
            evidence=Evidence(image_id=image_id, name=image.name, record=row, dataset=self.part.source, extra=extra),
            sensor=row.get("sensor"),
            licence=self.part.licence,
            lon=lon,
            lat=lat,
            native_size=(side, side),
        )

    def _centre(self, row: Row, gsd_m: float | None) -> tuple[float | None, float | None]:
        corner = row.get("upperleft_map_x"), row.get("upperleft_map_y")
        if gsd_m is None or not all(isinstance(c, int | float) and math.isfinite(c) for c in corner):
            return None, None
        side = _TILE_PIXELS[self.part.name]
        return lon_lat_of_centre((float(corner[0]), float(corner[1])), gsd_m, (side, side))  # type: ignore[arg-type]

    def _rejected(self, split: str, item: int | str, kind: str, reason: str) -> Rejected:
        return Rejected(source=self.part.source_of(split), item=f"{split}/{item}", kind=kind, reason=reason)


@dataclass(frozen=True, kw_only=True)
class RsvqaLr(_Rsvqa):
    """RSVQA LR: `LR_split_*.json` beside `Images_LR/` (or its zip), below `root` or `root/rsvqa_lr`."""

    kind: ClassVar[str] = "rsvqa_lr"
    part: ClassVar[Part] = PARTS["lr"]


@dataclass(frozen=True, kw_only=True)
class RsvqaHr(_Rsvqa):
    """RSVQA HR: `USGS_split_*.json` beside `Data/` (or `Images.tar`), below `root` or `root/rsvqa_hr`."""

    kind: ClassVar[str] = "rsvqa_hr"
    allowed_splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "test_phili")
    part: ClassVar[Part] = PARTS["hr"]


@dataclass(frozen=True, kw_only=True)
class RsvqaXben(_Rsvqa):
    """RSVQAxBEN: `RSVQAxBEN_split_*.json` beside `Images/` (or `Images.zip`), below `root` or `root/rsvqa_xben`."""

    kind: ClassVar[str] = "rsvqa_xben"
    part: ClassVar[Part] = XBEN


class _Rows:
    """The active rows of one table as `make` shapes them; what it cannot shape is kept in `bad`."""

    def __init__(self, path: Path, kind: str, source: str, split: str, make: Callable[[Row], Any]) -> None:
        self.path, self.kind, self.source, self.split, self.make = path, kind, source, split, make
        self.bad = BadRows(file=path)

    def __iter__(self) -> Iterator[Any]:
        for place, row in enumerate(rows_of_list(self.path, f"{self.kind}.item")):
            try:
                made = self.make(row) if row["active"] else None
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                item = f"{self.split}/{self.kind}[{place}]"
                reason = f"{self.path.name}: {error!r} in {str(row)[:120]}"
                self.bad.add(Rejected(source=self.source, item=item, kind="bad_row", reason=reason))
                continue
            if made is not None:
                self.bad.n_good += 1
                yield made


def _answer(row: Row) -> tuple[int, str]:
    return _whole(row["id"]), _unicode(str(row["answer"]).strip())


def _about(row: Row) -> tuple[int, str]:
    return _whole(row["id"]), json.dumps({key: row[key] for key in _ABOUT if key in row})


def _question_row(row: Row) -> SpoolRow:
    text = _unicode(" ".join(row["question"].split()))
    number = _whole(row["id"])
    return _whole(row["img_id"]), number, number, _unicode(str(row["type"])), text, _whole(row["answers_ids"][0])


def _unicode(text: str) -> str:
    text.encode()  # raises for half a surrogate pair, which SQLite would not take
    return text


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"id {value!r} is no whole number")
    return value


def _questions(source: str, items: list[Item]) -> tuple[tuple[Question, ...], list[str]]:
    good, problems, seen = [], [], set[str]()
    for number, kind, text, answer in items:
        problem = _question_problem(number, kind, text, answer, seen)
        seen.add(number)
        if problem is not None:
            problems.append(problem)
            continue
        assert answer is not None
        good.append(Question(id=f"{source}-q{number}", type=kind, family=_FAMILIES[kind], question=text, answer=answer))
    return tuple(good), problems


def _question_problem(number: str, kind: str, text: str, answer: str | None, seen: set[str]) -> str | None:
    if kind not in _FAMILIES:
        return f"question {number}: unknown type {kind!r}"
    if answer is None:
        return f"question {number} has no active answer"
    if not text or not answer:
        return f"question {number}: empty text"
    return f"question {number} occurs twice" if number in seen else None


def _gsd_m(row: Row) -> float | None:
    if row.get("res_x") is None:
        return None
    try:
        x_m = parse_gsd_text(row["res_x"])
        return math.sqrt(x_m * parse_gsd_text(row.get("res_y") or row["res_x"]))
    except GsdError:
        return None
