"""The official file layout of RSVQA, read as it is (Lobry et al. 2020; the LR and HR archives on Zenodo).

Each split is three JSON files, `<prefix>_split_<split>_{images,questions,answers}.json`, beside a folder of TIFFs. The
lists are padded with `{"id": N, "active": false}` so that list index equals id, and the padding of questions and
answers stops after the last active row: lengths mean nothing. So rows are filtered on `active` and joined by id.

The join follows a question's `img_id` and its first `answers_ids`. An active question whose image is not active in
this split is left out, as the official loader does, but counted (`orphans`); a question without its answer is an error.
Inactive rows are dropped and unused fields forgotten while the JSON is parsed: the price is one Python call a row,
what it buys is that the million questions of HR fit into memory.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text

KINDS = ("images", "questions", "answers")
_KEPT = ("id", "active", "img_id", "type", "question", "answers_ids", "answer", "sensor", "res_x", "res_y")
_KEPT_ALSO = ("upperleft_map_x", "upperleft_map_y", *KINDS)
_MERCATOR_RADIUS_M = 6378137.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of the family: where its files lie and how far its GSD can be trusted."""

    name: str
    source: str
    folder: str
    image_folder: str
    prefix: str
    splits: tuple[str, ...]
    provenance: Provenance
    licence: str

    def source_of(self, split: str) -> str:
        """Source name of a split; `test_phili` is its own, so that test1 and test2 are never pooled."""
        return f"{self.source}_phili" if split == "test_phili" else self.source


PARTS = {
    # Sentinel-2's 10 m grid is a property of the product: exact. HR stamps ".1524m" on every tile, also on those of
    # test_phili that another sensor took: nominal.
    "lr": Part(
        name="lr",
        source="rsvqa_lr",
        folder="rsvqa_lr",
        image_folder="Images_LR",
        prefix="LR",
        splits=("train", "val", "test"),
        provenance=Provenance.EXACT,
        licence="CC BY 4.0; contains Copernicus Sentinel data",
    ),
    "hr": Part(
        name="hr",
        source="rsvqa_hr",
        folder="rsvqa_hr",
        image_folder="Data",
        prefix="USGS",
        splits=("train", "val", "test", "test_phili"),
        provenance=Provenance.NOMINAL,
        licence="CC BY 4.0; imagery USGS, public domain",
    ),
}


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """An active image row: `gsd_m_native` metres per pixel on the ground, `corner_m` upper left in EPSG:3857."""

    id: int
    path: Path
    gsd_m_native: float
    sensor: str | None
    corner_m: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class RawQuestion:
    """An active question joined to its answer; the text has single spaces, the answer is raw."""

    id: int
    type: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """A split after the join, images in the order of their ids."""

    images: tuple[RawImage, ...]
    questions_of: dict[int, list[RawQuestion]]
    orphans: int


def locate(root: Path, part: Part) -> Path | None:
    """Folder of the part's JSON: `root/rsvqa_xx`, or `root` itself (archives unpacked there); None if neither."""
    for folder in (root / part.folder, root):
        if any(folder.glob(f"{part.prefix}_split_*_images.json")):
            return folder
    return None


def json_file(folder: Path, part: Part, split: str, kind: str) -> Path:
    """Path of one official JSON file."""
    return folder / f"{part.prefix}_split_{split}_{kind}.json"


def read_split(folder: Path, part: Part, split: str) -> RawSplit:
    """Reads and joins one split.

    Raises:
        ConfigError: a file or the image folder is missing.
        SampleError: JSON that does not parse or lacks a field, a missing image, a question without its answer.
        GsdError: `res_x` or `res_y` is no length in m, cm or km.
    """
    rows = {kind: _active_rows(json_file(folder, part, split, kind), kind) for kind in KINDS}
    images = _images(rows["images"], folder / part.image_folder, json_file(folder, part, split, "images"))
    questions_of, orphans = _join(rows, {i.id for i in images}, json_file(folder, part, split, "questions"))
    return RawSplit(images=images, questions_of=questions_of, orphans=orphans)


def content_hash(files: Iterator[Path]) -> str:
    """SHA-256 over the names and bytes of the JSON files: what the corpus was made from. `ConfigError` if one lacks."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(_read(path)).digest())
    return digest.hexdigest()


def lon_lat_of_centre(corner_m: tuple[float, float], gsd_m: float, size: tuple[int, int]) -> tuple[float, float]:
    """Degrees of a tile's centre from its upper-left corner in EPSG:3857 and its size in pixels (width, height).

    Mercator metres are ground metres / cos(latitude), so half a tile is `gsd_m * pixels / 2 / cos(lat)` of them; the
    latitude of the corner is near enough for a tile of a few kilometres.
    """
    x_m, y_m = corner_m
    stretch = math.cosh(y_m / _MERCATOR_RADIUS_M)  # = 1 / cos(latitude)
    x_m += gsd_m * size[0] / 2 * stretch
    y_m -= gsd_m * size[1] / 2 * stretch
    return math.degrees(x_m / _MERCATOR_RADIUS_M), math.degrees(math.atan(math.sinh(y_m / _MERCATOR_RADIUS_M)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            "RSVQA file is missing", file=path, remedy="unpack the official archive so that all three files are there"
        ) from error


def _active_rows(path: Path, kind: str) -> dict[int, dict[str, Any]]:
    def keep(row: dict[str, Any]) -> dict[str, Any] | None:
        if row.get("active") is False:
            return None
        return {k: v for k, v in row.items() if k in _KEPT or k in _KEPT_ALSO}

    try:
        table = json.loads(_read(path), object_hook=keep)
    except ValueError as error:
        raise SampleError(f"RSVQA JSON does not parse: {error}", file=path, remedy="download the file again") from error
    if not isinstance(table, dict) or not isinstance(table.get(kind), list):
        raise SampleError("RSVQA JSON holds no such list", file=path, field=kind, remedy="is it the official file?")
    rows = [row for row in table[kind] if row is not None]
    return {_field(row, "id", int, path): row for row in rows if _field(row, "active", bool, path)}


def _images(rows: dict[int, dict[str, Any]], folder: Path, file: Path) -> tuple[RawImage, ...]:
    images = []
    for image_id, row in sorted(rows.items()):
        path = folder / f"{image_id}.tif"
        if not path.is_file():
            raise SampleError(
                "image of RSVQA is missing",
                file=path,
                field="id",
                value=image_id,
                remedy=f"unpack all of {folder.name}/; {file.name} lists this image as active",
            )
        gsd_m = math.sqrt(_resolution_m(row, "res_x", file) * _resolution_m(row, "res_y", file))
        corner = (row.get("upperleft_map_x"), row.get("upperleft_map_y"))
        known = all(isinstance(c, int | float) and math.isfinite(c) for c in corner)
        corner_m = (float(corner[0]), float(corner[1])) if known else None  # type: ignore[arg-type]
        images.append(RawImage(id=image_id, path=path, gsd_m_native=gsd_m, sensor=row.get("sensor"), corner_m=corner_m))
    return tuple(images)


def _resolution_m(row: dict[str, Any], field: str, file: Path) -> float:
    if row.get(field) is None:
        raise GsdError(
            "RSVQA image row has no resolution",
            file=file,
            field=f"images[id={row['id']}].{field}",
            value=None,
            remedy="the official files hold '.1524m' (HR) or '10m' (LR)",
        )
    return parse_gsd_text(row[field], field=f"images[id={row['id']}].{field}", file=file)


def _join(
    rows: dict[str, dict[int, dict[str, Any]]], image_ids: set[int], file: Path
) -> tuple[dict[int, list[RawQuestion]], int]:
    questions_of: dict[int, list[RawQuestion]] = {}
    orphans = 0
    for question_id, row in sorted(rows["questions"].items()):
        image_id = _field(row, "img_id", int, file)
        if image_id not in image_ids:
            orphans += 1
            continue
        answer = _answer_of(row, rows["answers"], file)
        text = " ".join(_field(row, "question", str, file).split())
        question = RawQuestion(id=question_id, type=_field(row, "type", str, file), question=text, answer=answer)
        questions_of.setdefault(image_id, []).append(question)
    return questions_of, orphans


def _answer_of(question: dict[str, Any], answers: dict[int, dict[str, Any]], file: Path) -> str:
    ids = _field(question, "answers_ids", list, file)
    found = next((answers[i] for i in ids if i in answers), None)
    if found is None:
        raise SampleError(
            "question has no active answer",
            file=file,
            field=f"questions[id={question['id']}].answers_ids",
            value=ids,
            remedy="questions and answers files must be of the same split and release",
        )
    return str(_field(found, "answer", str, file)).strip()


def _field(row: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    value = row.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SampleError(
            f"RSVQA row lacks a field of type {kind.__name__}",
            file=file,
            field=f"[id={row.get('id')}].{name}",
            value=value,
            remedy="use the official release of the data set",
        )
    return value
