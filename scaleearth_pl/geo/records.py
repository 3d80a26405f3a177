"""GSD from JSON records: STAC items, fMoW, RSVQA, SkyScript, web-map captures.

A record is recognised by its own fields, and yields candidates of two stages. `PIXEL_RECORD` speaks of the pixels:
STAC's `proj:transform` and `raster:spatial_resolution` ("average spatial resolution of the pixels"), fMoW's degree
grid, a corner box over the image size. `RECORD` speaks of the sensor or the product: STAC's and fMoW's `gsd`, RSVQA's
`res_x`. In a real fMoW record `gsd` says 0.468 m where the grid has 0.421 m.

An image that was resized after its record was written is caught where the record tells its own size (`proj:shape`,
`img_width`): the GSD then follows. A thumbnail is such an image: what the item says of its grid counts for it only where
`proj:shape` tells that grid's size.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.crs import earth_crs, is_other_planet
from scaleearth_pl.geo.ground import Transform, measure_pixel, scaled
from scaleearth_pl.geo.names import Size, box_candidate
from scaleearth_pl.geo.webmap import webmap_candidate

Record = Mapping[str, Any]
Maker = Callable[[], Candidate]

_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
"""What reading a stranger's JSON raises when a field has another type than its standard says."""

_STAC_FIELDS = (
    (Stage.PIXEL_RECORD, "stac:raster:spatial_resolution", ("raster:spatial_resolution", "spatial_resolution")),
    (Stage.RECORD, "stac:gsd", ("gsd", "eo:gsd")),
)
_SKYSCRIPT_FIELDS = ("center_tags", "surrounding_tags")
_MAX_BOX_DEG = 2.0
_MAX_BOX_GSD_M = 1000.0
"""A box is a name for many things: what spans more, or has coarser pixels, is no image's corners in degrees."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def record_candidates(record: Record, *, file_name: str, size: Size | None) -> tuple[list[Candidate], list[str]]:
    """Every candidate of a JSON record, and notes on fields that make no sense.

    Args:
        record: the parsed JSON object; unknown shapes yield nothing.
        file_name: of the image, to find its asset in a STAC item and to tell fMoW's `_msrgb` from `_rgb`.
        size: width and height of the image's pixels, or None.
    """
    found: list[Candidate] = []
    notes: list[str] = []
    for reader in (_stac, _fmow, _rsvqa, _box, _webmap):
        try:
            makers = list(reader(record, file_name, size))
        except _MALFORMED as error:
            notes.append(f"record not used: malformed ({error!r})")
            continue
        for make in makers:
            try:
                found.append(make())
            except GsdError as error:
                notes.append(f"record field not used: {error.problem}")
            except _MALFORMED as error:
                notes.append(f"record field not used: malformed ({error!r})")
    return found, notes


def _stac(record: Record, file_name: str, size: Size | None) -> Iterator[Maker]:
    if record.get("type") != "Feature" or "stac_version" not in record:
        return
    properties = record.get("properties") or {}
    asset = _stac_asset(record, file_name)
    both = {**properties, **asset}
    if (system := _stac_crs(both)) and is_other_planet(system):
        yield partial(_refuse, "STAC item of another planet", system)
        return
    thumbnail = "thumbnail" in (asset.get("roles") or [])
    holder = asset if thumbnail and _own_size(both) is None else both
    if holder.get("proj:transform") is not None:
        yield partial(_projected, both, size)
    factor = _shape_factor(both, size)
    holders = [asset, _common(asset), *([] if thumbnail else [properties])]
    for stage, source, keys in _STAC_FIELDS:
        value = next((h[key] for h in holders for key in keys if h.get(key) is not None), None)
        if value is not None:
            yield partial(_stated, value, factor, stage, source)


def _common(asset: Record) -> Record:
    """The fields on which all bands of an asset agree; a GSD that differs by band is no GSD of the image."""
    bands = [b for key in ("bands", "raster:bands", "eo:bands") for b in asset.get(key) or [] if isinstance(b, dict)]
    keys = {key for _, _, keys in _STAC_FIELDS for key in keys}
    values = {key: [b[key] for b in bands if key in b] for key in keys}
    return {key: found[0] for key, found in values.items() if found and all(v == found[0] for v in found)}


def _stac_asset(record: Record, file_name: str) -> Record:
    """The asset whose href ends in the image's name; an item with one asset may have been renamed."""
    assets = [a for a in (record.get("assets") or {}).values() if isinstance(a, dict)]
    for asset in assets:
        if str(asset.get("href", "")).split("?")[0].rsplit("/", 1)[-1] == file_name:
            return asset
    return assets[0] if len(assets) == 1 else {}


def _stac_crs(fields: Record) -> str | None:
    epsg = fields.get("proj:epsg")
    text = fields.get("proj:code") or (f"EPSG:{epsg}" if epsg else None) or fields.get("proj:wkt2")
    return None if text is None else str(text)


def _refuse(problem: str, value: object) -> Candidate:
    raise GsdError(problem, value=value)


def _projected(fields: Record, size: Size | None) -> Candidate:
    text = _stac_crs(fields)
    if text is None:
        raise GsdError("proj:transform without proj:code, proj:epsg or proj:wkt2")
    transform: Transform = tuple(float(v) for v in fields["proj:transform"][:6])  # type: ignore[assignment]
    if len(transform) != 6:
        raise GsdError("proj:transform needs six numbers", field="proj:transform", value=fields["proj:transform"])
    own = _own_size(fields) or size
    seen = size or own or (1, 1)
    transform = scaled(transform, own[0] / seen[0], own[1] / seen[1]) if own else transform
    pixel = measure_pixel(transform, seen, earth_crs(text))
    return Candidate.measured(pixel, stage=Stage.PIXEL_RECORD, source="stac:proj:transform")


def _own_size(fields: Record) -> Size | None:
    """`proj:shape` is height, width of the asset as catalogued."""
    shape = fields.get("proj:shape")
    return (int(shape[1]), int(shape[0])) if shape else None


def _shape_factor(fields: Record, size: Size | None) -> float:
    own = _own_size(fields)
    return math.sqrt(own[0] * own[1] / (size[0] * size[1])) if own and size else 1.0


def _fmow(record: Record, file_name: str, size: Size | None) -> Iterator[Maker]:
    if "mean_pixel_width" not in record and "pan_resolution_dbl" not in record:
        return
    if record.get("mean_pixel_width") and record.get("raw_location"):
        yield partial(_fmow_grid, record, size)
    field = "multi_resolution_dbl" if "_msrgb" in file_name else "gsd"
    value = record.get(field, record.get("pan_resolution_dbl") if field == "gsd" else None)
    if value is not None:
        yield partial(_stated, value, _resize_factor(record, size), Stage.RECORD, f"fmow:{field}")


def _fmow_grid(record: Record, size: Size | None) -> Candidate:
    """The pixel grid in degrees at the middle of `raw_location`, a WKT polygon of longitudes and latitudes."""
    numbers = [float(n) for n in _NUMBER.findall(str(record["raw_location"]))]
    lons, lats = numbers[0::2], numbers[1::2]
    lon, lat = (min(lons) + max(lons)) / 2, (min(lats) + max(lats)) / 2
    step_x, step_y = abs(float(record["mean_pixel_width"])), abs(float(record["mean_pixel_height"]))
    factor = _resize_factor(record, size)
    transform = scaled((step_x, 0.0, lon, 0.0, -step_y, lat), factor, factor)
    pixel = measure_pixel(transform, (1, 1), earth_crs("EPSG:4326"))
    return Candidate.measured(pixel, stage=Stage.PIXEL_RECORD, source="fmow:mean_pixel_size")


def _resize_factor(record: Record, size: Size | None) -> float:
    width, height = record.get("img_width"), record.get("img_height")
    if size is None or not width or not height:
        return 1.0
    return math.sqrt(float(width) * float(height) / (size[0] * size[1]))


def _rsvqa(record: Record, file_name: str, size: Size | None) -> Iterator[Maker]:
    del file_name, size
    if record.get("res_x") is not None:
        yield partial(_rsvqa_resolution, record)


def _rsvqa_resolution(record: Record) -> Candidate:
    """`res_x` is a text with a unit (".1524m"), stamped on all tiles alike: nominal."""
    x_m = parse_gsd_text(record["res_x"], field="res_x")
    y_m = parse_gsd_text(record.get("res_y") or record["res_x"], field="res_y")
    return Candidate(
        gsd_m=math.sqrt(x_m * y_m),
        provenance=Provenance.NOMINAL,
        stage=Stage.RECORD,
        source="rsvqa:res_x",
        gsd_x_m=x_m,
        gsd_y_m=y_m,
    )


def _box(record: Record, file_name: str, size: Size | None) -> Iterator[Maker]:
    """SkyScript's `box`: west, south, east, north. A detector's, in pixels or in shares of the image, is not read."""
    del file_name
    box = record.get("box")
    if not isinstance(box, list | tuple) or len(box) != 4 or size is None:
        return
    west, south, east, north = (float(edge) for edge in box)
    make = partial(box_candidate, (west, south, east, north), size, stage=Stage.PIXEL_RECORD, source="skyscript:box")
    if any(name in record for name in _SKYSCRIPT_FIELDS) or _holds_corners((west, south, east, north), make):
        yield make


def _holds_corners(box: tuple[float, float, float, float], make: Maker) -> bool:
    """Whether four numbers that nothing explains can be an image's corners in degrees; 0 to 1 both ways is open sea."""
    west, south, east, north = box
    if max(east - west, north - south) >= _MAX_BOX_DEG or all(0 <= edge <= 1 for edge in box):
        return False
    try:
        return make().gsd_m < _MAX_BOX_GSD_M
    except GsdError:
        return False


def _webmap(record: Record, file_name: str, size: Size | None) -> Iterator[Maker]:
    """A capture described by `zoom` and `lat` (and `tile_size`, 256 unless stated)."""
    del file_name, size
    latitude = record.get("lat", record.get("latitude"))
    if record.get("zoom") is not None and latitude is not None:
        tile_pixels = int(record.get("tile_size") or 256)
        yield partial(webmap_candidate, float(record["zoom"]), float(latitude), tile_pixels)


def _stated(value: object, factor: float, stage: Stage, source: str) -> Candidate:
    gsd_m = parse_gsd_text(value, field=source) * factor
    return Candidate(gsd_m=gsd_m, provenance=Provenance.NOMINAL, stage=stage, source=source)
