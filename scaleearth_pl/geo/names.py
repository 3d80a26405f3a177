"""GSD from file names: NAIP, LHRS, SkyScript.

A name tells what was ordered or where the corners are, not what became of the pixels: a NAIP quarter quad resampled to
five metres keeps the "1" in its name. So these are candidates of a late stage, and a transform overrules them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.crs import earth_crs
from scaleearth_pl.geo.ground import GroundPixel, measure_pixel
from scaleearth_pl.geo.sensors import sensors

Size = tuple[int, int]
"""Width and height in pixels."""

_NAIP = re.compile(r"m_\d{7}_(?:ne|nw|se|sw)_\d{1,2}_(\d{3}|\d|h|0?\.\d+)_\d{8}(?:_\d{8})?", re.IGNORECASE)
_NAIP_HALF_M = (0.5, 0.6)
"""The code "h" (half a metre): catalogue ids of such files say .5 for some and .6 for others."""

_LHRS = re.compile(r".+" + r"_(-?\d{1,3}\.\d+)" * 4)
_SKYSCRIPT = re.compile(r"[awn]\d+_([A-Z][A-Z0-9])_\d{2}")
_SKYSCRIPT_SENSORS = {
    "US": "NAIP",
    "DE": "Brandenburg DOP20",
    "FI": "Finland NLS orthophoto",
    "CH": "SWISSIMAGE",
    "ES": "PNOA10",
    "P3": "SkySat",
    "P5": "SkySat",
    "S2": "Sentinel-2",
    "L8": "Landsat 8",
    "L9": "Landsat 9",
}


def name_candidates(stem: str, size: Size | None) -> tuple[list[Candidate], list[str]]:
    """Every candidate that a file name (without suffix) yields, and notes on names that fit but make no sense.

    Args:
        stem: the original file name without folder and suffix.
        size: of the image; LHRS names need it, being corner coordinates.
    """
    found: list[Candidate] = []
    notes: list[str] = []
    readers: tuple[Callable[[str, Size | None], Candidate | None], ...] = (_naip, _lhrs, _skyscript)
    for reader in readers:
        try:
            candidate = reader(stem, size)
        except GsdError as error:
            notes.append(f"file name not used: {error.problem}")
            continue
        if candidate is not None:
            found.append(candidate)
    return found, notes


def box_pixel(box: tuple[float, float, float, float], size: Size) -> GroundPixel:
    """One pixel of an image that fills a longitude and latitude box.

    Args:
        box: west, south, east, north in degrees (WGS 84); east below west crosses the antimeridian.
        size: width and height in pixels.

    Raises:
        GsdError: an empty box, or coordinates off the Earth.
    """
    west, south, east, north = box
    east += 360 if east < west and west - east > 180 else 0
    if not (west < east and south < north):
        raise GsdError("corner box is empty", field="box", value=box, remedy="give west, south, east, north")
    width, height = size
    transform = ((east - west) / width, 0.0, west, 0.0, (south - north) / height, north)
    return measure_pixel(transform, size, earth_crs("EPSG:4326"))


def box_candidate(box: tuple[float, float, float, float], size: Size, *, stage: Stage, source: str) -> Candidate:
    """Box metres over pixels, nominal: rounded corners and silent padding are common; raises `GsdError`."""
    measured = Candidate.measured(box_pixel(box, size), stage=stage, source=source)
    if measured.provenance is Provenance.IMPRECISE:
        return measured
    return replace(measured, provenance=Provenance.NOMINAL, sigma_log10=math.nan)


def _naip(stem: str, size: Size | None) -> Candidate | None:
    del size
    match = _NAIP.match(stem)
    if match is None:
        return None
    code = match[1].lower()
    if code == "h":
        return Candidate.interval(*_NAIP_HALF_M, stage=Stage.FILE_NAME, source="name:naip")
    gsd_m = float(code) / 100 if len(code) == 3 and code.isdigit() else float(code)
    return Candidate(gsd_m=gsd_m, provenance=Provenance.NOMINAL, stage=Stage.FILE_NAME, source="name:naip")


def _lhrs(stem: str, size: Size | None) -> Candidate | None:
    match = _LHRS.fullmatch(stem)
    if match is None:
        return None
    if size is None:
        raise GsdError("corner coordinates need the image size", field="name", value=stem)
    west, north, east, south = (float(text) for text in match.groups())
    return box_candidate((west, south, east, north), size, stage=Stage.FILE_NAME, source="name:lhrs")


def _skyscript(stem: str, size: Size | None) -> Candidate | None:
    """The collection's native GSD within a factor of two: SkyScript's crops are resampled, the box would tell."""
    del size
    match = _SKYSCRIPT.match(stem)
    if match is None or match[1] not in _SKYSCRIPT_SENSORS:
        return None
    row = sensors().find(_SKYSCRIPT_SENSORS[match[1]], "rgb")
    if row is None:
        return None
    return Candidate.interval(row.low_m / 2, row.high_m * 2, stage=Stage.FILE_NAME, source="name:skyscript")
