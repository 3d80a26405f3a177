"""Functional Map of the World: `<split>/<category>/<category>_<n>/<category>_<n>_<k>_rgb.jpg` with a JSON beside each.

The record knows the degree grid of the pixels (measured) and the sensor's GSD (stated); they differ, and the chain of
`inject` takes the pixels' and logs the rest. `_rgb` files are pan-sharpened, `_msrgb` files multispectral: one place at
two GSDs, so both share a `place_id`. An image with boxes of several categories is asked box by box, in thousandths of
width and height; `bounding_boxes` is a list, or the one object itself. A box that is none costs the image: without it,
what the image shows would be told from the others alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers.jsonfiles import Row, record_of_image
from scaleearth_pl.prepare.importers.record import Found, Records, Rejected
from scaleearth_pl.prepare.importers.source import Source, stated_gsd_problem, words
from scaleearth_pl.prepare.importers.store import FileTree
from scaleearth_pl.prepare.inject import Evidence

PRODUCTS = ("rgb", "msrgb")
_FOLDERS = {"train": "train", "val": "val", "test": "test_gt"}
_STATED = {"rgb": ("gsd", "pan_resolution_dbl"), "msrgb": ("multi_resolution_dbl",)}


@dataclass(frozen=True, kw_only=True)
class Fmow(Source):
    """The split folders below `root` or `root/fmow`.

    Args:
        products: of "rgb" (pan-sharpened) and "msrgb".
    """

    kind: ClassVar[str] = "fmow"

    products: tuple[str, ...] = ("rgb",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.products or not set(self.products) <= set(PRODUCTS):
            raise ConfigError("unknown product", field="products", value=self.products, remedy=f"use {PRODUCTS}")

    def present(self) -> bool:
        """Whether a wanted split's folder holds a place."""
        places = (self._folder(split).glob("*/*/*_*rgb.json") for split in self.splits)
        return any(next(found, None) for found in places)

    def records(self) -> Records:
        """One record an image, in the order of folders."""
        for split in self.splits:
            folder = self._folder(split)
            if not folder.is_dir():
                raise ConfigError("split of fMoW is missing", file=folder, remedy="unpack it, or leave it out")
            for name in FileTree(folder).names((".jpg", ".tif")):
                product = next((p for p in PRODUCTS if name.rsplit(".", 1)[0].endswith(f"_{p}")), None)
                if product in self.products and name.count("/") == 2:
                    yield self._image(folder, split, name, str(product))

    def _folder(self, split: str) -> Path:
        name = _FOLDERS[split]
        return next((f for f in (self.root / name, self.root / "fmow" / name) if f.is_dir()), self.root / name)

    def _image(self, folder: Path, split: str, name: str, product: str) -> Found | Rejected:
        path = folder / name
        item = f"{split}/{name}"
        row = record_of_image(path.with_suffix(".json"))
        if isinstance(row, SampleError):
            return Rejected(source=self.kind, item=item, kind="broken_json", reason=str(row))
        for field in _STATED[product]:
            bad = stated_gsd_problem(row.get(field), source=self.kind, item=item, field=field, file=path)
            if bad is not None:
                return bad
        image_id = f"{self.kind}-{split}-{path.stem}"
        try:
            qas = tuple(_questions(row, image_id))
        except (KeyError, TypeError, ValueError, ArithmeticError, SampleError) as error:
            return Rejected(source=self.kind, item=item, kind="bad_row", reason=f"bounding_boxes: {error!r}")
        image = FileTree(folder).image_or_rejected(name, source=self.kind, item=item)
        if isinstance(image, Rejected):
            return image
        if not qas:
            return Rejected(source=self.kind, item=item, kind="no_questions", reason="no labelled box")
        return Found(
            source=self.kind,
            split=split,
            image_id=image_id,
            image=image,
            qas=qas,
            evidence=Evidence(image_id=image_id, name=path.name, record=row),
            place_id=f"{self.kind}-{split}-{path.parent.name}",
            class_label=words(path.parts[-3]),
            sensor=str(row["sensor_platform_name"]) if row.get("sensor_platform_name") else None,
            licence="fMoW: non-commercial use, see its licence file",
        )


def _questions(row: Row, image_id: str) -> Iterator[Question]:
    boxes = [box for box in _boxes(row) if box.get("category") not in (None, "", "false_detection")]
    labels = {words(box["category"]) for box in boxes}
    if len(labels) == 1:
        text = "Which facility or land use does this image show?"
        yield _question(f"{image_id}-0", text, labels.pop())
        return
    width, height = float(row["img_width"]), float(row["img_height"])
    for number, box in enumerate(boxes):
        x, y, w, h = (float(v) for v in box["box"])
        corners = [round(1000 * v) for v in (x / width, y / height, (x + w) / width, (y + h) / height)]
        text = f"Which facility or land use lies in the box {corners}?"
        yield _question(f"{image_id}-{number}", text, words(box["category"]))


def _boxes(row: Row) -> list[dict[str, Any]]:
    """The boxes; `SampleError` where one is no object."""
    stated = row["bounding_boxes"]
    boxes = [stated] if isinstance(stated, dict) else stated
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise SampleError("not a list of boxes", field="bounding_boxes", value=repr(stated)[:80])
    return boxes


def _question(number: str, text: str, answer: str) -> Question:
    return Question(id=number, type="land_use", family="identification", question=text, answer=answer)
