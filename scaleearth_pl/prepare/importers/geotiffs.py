"""A folder of GeoTIFFs and a file of questions: the importer for anybody's own data.

`questions.jsonl` (or .json, .csv): one row a question, `image, question, answer` and, as wanted, `type, family, split,
options, id, gsd_m`; other columns are passed over, but one that is nearly one of these is an error. The GSD of every
image is measured from its own transform (`geo/`), sidecars and name, as is what `gsd_m` states (metres a pixel of the
file, or a text with its unit; the transform wins, and a disagreement is counted); a raster of which nothing is said is
*unknown*, unless `sensor` or `dataset` names a row of the tables. 16-bit, float and large rasters become RGB as
`picture.py` says. The question file selects: rasters that it does not name are not imported.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.core.sample import FAMILIES, Question
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.sensors import datasets, sensors
from scaleearth_pl.prepare.importers.bad_rows import BadRows
from scaleearth_pl.prepare.importers.jsonfiles import Row, rows_of_file
from scaleearth_pl.prepare.importers.record import Found, ImageRef, Records, Rejected
from scaleearth_pl.prepare.importers.source import ImageIds, Source, plain_name
from scaleearth_pl.prepare.importers.spool import Item, Spool, SpoolRow
from scaleearth_pl.prepare.importers.store import FileTree
from scaleearth_pl.prepare.inject import Evidence

_KEYS = ("image", "question", "answer", "type", "family", "split", "options", "id", "gsd_m")
_NAMED = tuple(key for key in _KEYS if key != "id")
"""Keys long enough that another may be seen to be a misspelling."""

_TABLES = ("questions.jsonl", "questions.json", "questions.csv")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeoTiffs(Source):
    """Rasters and questions.

    Args:
        name: source name written to the samples.
        images: folder of the rasters; None takes `root`.
        questions: table; None takes `root/questions.{jsonl,json,csv}`.
        sensor: row of `sensors.csv` with `product`, for rasters that say nothing.
        product: "rgb", "pan", "pansharpened", ...
        dataset: row of `datasets.csv`, likewise.
        licence: of the imagery.

    Raises:
        ConfigError: the tables have no such sensor with that product, or no such data set.
    """

    kind: ClassVar[str] = "geotiffs"

    name: str = "geotiffs"
    images: Path | None = None
    questions: Path | None = None
    sensor: str | None = None
    product: str = "rgb"
    dataset: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sensors().refuse_unknown(self.sensor, self.product, field="sensor")
        datasets().refuse_unknown(self.dataset, field="dataset")

    def present(self) -> bool:
        """Whether there is a question file."""
        return self._table() is not None

    def records(self) -> Records:
        """One record an image, in the order of their names."""
        table, folder = self._table(), self.images or self.root
        if table is None or not folder.is_dir():
            raise ConfigError(
                "needs a folder of rasters and a question file", file=folder, remedy=f"write {_TABLES[0]}"
            )
        tree = FileTree(folder)
        with Spool(self.work) as spool:
            bad = BadRows(file=table)
            spool.rows(self._rows(table, bad))
            yield from bad.records()
            ids = ImageIds(self.name)
            for image_name, _, items in spool.groups():
                yield from self._image(tree, ids, str(image_name), items)

    def _table(self) -> Path | None:
        if self.questions is not None:
            return self.questions if self.questions.is_file() else None
        return next((self.root / name for name in _TABLES if (self.root / name).is_file()), None)

    def _rows(self, table: Path, bad: BadRows) -> Iterator[SpoolRow]:
        """Rows of the splits that were asked for; how many questions the others hold is said, not passed over."""
        others: Counter[str] = Counter()
        for number, (place, row) in enumerate(rows_of_file(table)):
            if isinstance(row, SampleError):
                bad.add(Rejected(source=self.name, item=place, kind="broken_json", reason=str(row)))
                continue
            if _is_empty(row):  # what a spreadsheet leaves below its last row
                continue
            _refuse_misspelt(row, table)
            image, split = row.get("image"), row.get("split") or "train"
            if not isinstance(image, str) or not image.isprintable() or split not in self.allowed_splits:
                reason = f"image {image!r}, split {split!r}; splits are {', '.join(self.allowed_splits)}"
                bad.add(Rejected(source=self.name, item=place, kind="bad_row", reason=reason))
                continue
            bad.n_good += 1
            if split in self.splits:
                yield plain_name(image), number, number, split, json.dumps(row), None
            else:
                others[split] += 1
        if others:
            _log.warning("%s: not imported, for `splits` is %s: %s questions", table, [*self.splits], dict(others))

    def _image(self, tree: FileTree, ids: ImageIds, image_name: str, items: list[Item]) -> Iterator[Found | Rejected]:
        image = tree.image_or_rejected(image_name, source=self.name, item=image_name)
        if isinstance(image, Rejected):
            yield image
            return
        splits = {split for _, split, _, _ in items}
        if len(splits) > 1:
            reason = f"questions of one image in several splits: {sorted(splits)}"
            yield Rejected(source=self.name, item=image_name, kind="bad_row", reason=reason)
            return
        rows = [json.loads(text) for _, _, text, _ in items]
        try:
            stated = _stated_gsd(rows)
        except GsdError as error:
            yield Rejected(source=self.name, item=image_name, kind="bad_gsd", reason=str(error))
            return
        image_id = ids.of(image_name)
        qas = []
        for (number, *_), row in zip(items, rows, strict=True):
            try:
                qas.append(_question(row, f"{image_id}-{number}"))
            except (SampleError, KeyError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                yield Rejected(source=self.name, item=f"{image_name}#{number}", kind="bad_question", reason=reason)
        if qas:
            ids.take(image_id)
            yield self._found(image_id, image, splits.pop(), tuple(qas), stated)

    def _found(
        self, image_id: str, image: ImageRef, split: str, qas: tuple[Question, ...], stated: tuple[Candidate, ...]
    ) -> Found:
        evidence = Evidence(
            image_id=image_id,
            image=image.path,
            sensor=self.sensor,
            product=self.product,
            dataset=self.dataset,
            extra=stated,
        )
        return Found(
            source=self.name,
            split=split,
            image_id=image_id,
            image=image,
            qas=qas,
            evidence=evidence,
            sensor=self.sensor,
            licence=self.licence,
        )


def _is_empty(row: Row) -> bool:
    return bool(row) and all(value is None or (isinstance(value, str) and not value.strip()) for value in row.values())


def _refuse_misspelt(row: Row, table: Path) -> None:
    """`ConfigError` for a key that is nearly one of ours, whose value would be lost; other keys are the user's own."""
    for key in (key for key in row if key not in _KEYS):
        if key.lower() == "gsd":  # too short for the comparison below
            raise ConfigError("misspelt key", file=table, field=key, value=row[key], remedy="write 'gsd_m'")
        if close := get_close_matches(key.lower(), _NAMED, n=1, cutoff=0.75):
            raise ConfigError("misspelt key", file=table, field=key, value=row[key], remedy=f"write {close[0]!r}")


def _stated_gsd(rows: list[Row]) -> tuple[Candidate, ...]:
    """What the rows of one image say of its GSD, in which they must agree; `GsdError` where it is none."""
    told = {parse_gsd_text(row["gsd_m"]) for row in rows if row.get("gsd_m") not in (None, "")}
    if len(told) > 1:
        raise GsdError("rows of one image state several GSDs", field="gsd_m", value=sorted(told))
    source = "questions:gsd_m"
    return tuple(Candidate(gsd_m=m, provenance=Provenance.NOMINAL, stage=Stage.RECORD, source=source) for m in told)


def _question(row: Row, identity: str) -> Question:
    family = row.get("family") or "other"
    if family not in FAMILIES:
        raise SampleError("unknown question family", field="family", value=family, remedy=f"use {', '.join(FAMILIES)}")
    return Question(
        id=str(identity if row.get("id") in (None, "") else row["id"]),
        type=row.get("type") or "question",
        family=family,
        question=_text(row["question"]),
        answer=_text(row["answer"]),
        options=_options(row.get("options")),
    )


def _text(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _options(value: Any) -> tuple[str, ...] | None:
    """A list, or a text with | between (CSV)."""
    found = value.split("|") if value and isinstance(value, str) else value or []
    if not isinstance(found, list):
        raise SampleError("options are no list", field="options", value=value, remedy="give a list, or one text with |")
    return tuple(str(v).strip() for v in found) or None
