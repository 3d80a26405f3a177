"""Sensor and dataset tables: the last words on a GSD, when nothing speaks of the image itself.

`sensors.csv` is keyed by (sensor, product), because one satellite sells several: pan-sharpened RGB has the
panchromatic GSD, plain RGB the multispectral one, and products are often resampled from the native sampling.
`datasets.csv` holds constants of published data sets. Each row names its source, and `checked` says whether that source
was read when the row was made ("yes") or the value is common knowledge that still wants a reading ("no").

A row states either gsd_m or an interval low_m..high_m; an interval is imprecise and does not supervise SSE-U.
"""

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from io import StringIO

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.geo.candidates import Candidate, Stage

COLUMNS = ("name", "product", "gsd_m", "low_m", "high_m", "aliases", "source", "checked")

_PRODUCT_ALIASES = {
    "": "rgb",
    "ms": "rgb",
    "multispectral": "rgb",
    "mul": "rgb",
    "panchromatic": "pan",
    "pansharpened": "pan",
    "psrgb": "pan",
    "psms": "pan",
}


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """Metres per pixel of one product; `low_m` = `high_m` where it has one GSD."""

    name: str
    product: str
    low_m: float
    high_m: float
    aliases: tuple[str, ...]
    source: str
    checked: bool

    def candidate(self, stage: Stage) -> Candidate:
        """Nominal where the product has one GSD, imprecise where it has a range."""
        label = f"{stage.name.lower()}:{_key(self.name)}/{self.product}"
        if self.low_m < self.high_m:
            return Candidate.interval(self.low_m, self.high_m, stage=stage, source=label)
        return Candidate(gsd_m=self.low_m, provenance=Provenance.NOMINAL, stage=stage, source=label)


class Table:
    """Rows found by name or alias, and product; spelling (case, dashes, spaces) does not matter."""

    def __init__(self, rows: list[TableRow], stage: Stage) -> None:
        self.rows, self.stage = tuple(rows), stage
        self._index: dict[tuple[str, str], TableRow] = {}
        for row in rows:
            for key in {_key(name) for name in (row.name, *row.aliases)}:
                if (key, row.product) in self._index:
                    raise ConfigError("table names a product twice", field=key, value=row.product)
                self._index[key, row.product] = row

    def find(self, name: str, product: str = "rgb") -> TableRow | None:
        """The row of a name and product, or None."""
        plain = _key(product)
        return self._index.get((_key(name), _PRODUCT_ALIASES.get(plain, plain)))

    def refuse_unknown(self, name: str | None, product: str = "rgb", *, field: str) -> None:
        """`ConfigError` for a user's row that is not here, which would be passed over; None asks for none."""
        if name is None or self.find(name, product) is not None:
            return
        products = sorted({row.product for row in self.rows if _key(name) in map(_key, (row.name, *row.aliases))})
        names = {_key(n): n for row in self.rows for n in (*row.aliases, row.name)}
        near = [names[key] for key in get_close_matches(_key(name), names, n=3)] or sorted(names.values())
        raise ConfigError(
            f"the table of the package has no such {field}",
            field=field,
            value=f"{name}, product {product}" if products else name,
            remedy=f"of it there is product {', '.join(products)}" if products else f"there is {', '.join(near)}",
        )

    def candidate(self, name: str, product: str = "rgb") -> Candidate | None:
        """The candidate of a name and product, or None where the table does not hold it."""
        row = self.find(name, product)
        return None if row is None else row.candidate(self.stage)


@cache
def sensors() -> Table:
    """The sensor table of the package."""
    return read_table("sensors.csv", Stage.SENSOR)


@cache
def datasets() -> Table:
    """The dataset constants of the package."""
    return read_table("datasets.csv", Stage.DATASET)


def read_table(file: str, stage: Stage) -> Table:
    """Reads and checks a table of this package.

    Raises:
        ConfigError: other columns, a row without source, or both a GSD and an interval.
        GsdError: a number that is no GSD.
    """
    text = files("scaleearth_pl.geo").joinpath(file).read_text(encoding="utf-8")
    reader = csv.DictReader(StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError("table has other columns", file=file, value=reader.fieldnames, remedy=f"write {COLUMNS}")
    return Table([_row(raw, file) for raw in reader], stage)


def _row(raw: dict[str, str], file: str) -> TableRow:
    low_m = _metres(raw["low_m"] or raw["gsd_m"], raw, file)
    high_m = _metres(raw["high_m"] or raw["gsd_m"], raw, file)
    one_form = bool(raw["gsd_m"]) != bool(raw["low_m"] and raw["high_m"])
    if not one_form or low_m > high_m or not raw["source"] or raw["checked"] not in ("yes", "no"):
        raise ConfigError(
            "table row needs either gsd_m or a rising low_m, high_m; a source; checked = yes or no",
            file=file,
            field=raw["name"],
            value=raw,
        )
    return TableRow(
        name=raw["name"],
        product=raw["product"],
        low_m=low_m,
        high_m=high_m,
        aliases=tuple(a for a in raw["aliases"].split("|") if a),
        source=raw["source"],
        checked=raw["checked"] == "yes",
    )


def _metres(text: str, raw: dict[str, str], file: str) -> float:
    return parse_gsd_text(text, file=file, field=raw["name"])


def _key(text: str) -> str:
    """Letters and digits only, so that "WorldView-2", "WORLDVIEW 2" and "worldview2" are one name."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
