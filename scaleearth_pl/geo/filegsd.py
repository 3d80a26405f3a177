"""A file's GSD: transform, sidecars and name, weighed.

The transform is measured (`ground.py`); where the file has none, a world file stands in, and where it has no CRS, a
.prj. What cannot be measured is said and not guessed: ground control points alone, rational polynomials, a transform
without CRS. A raster of another planet is vetoed outright: nothing said beside it concerns Earth.
"""

from dataclasses import dataclass
from pathlib import Path

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.geo.candidates import Candidate, Resolution, Stage, resolve
from scaleearth_pl.geo.crs import earth_crs, is_other_planet
from scaleearth_pl.geo.ground import measure_pixel, moved
from scaleearth_pl.geo.names import Size, name_candidates
from scaleearth_pl.geo.rasterfile import RasterHeader, read_header
from scaleearth_pl.geo.sidecars import Sidecars, read_sidecars

Window = tuple[int, int, int, int]
"""Column, row, width, height in pixels of the file."""


@dataclass(frozen=True, kw_only=True)
class FileEvidence:
    """Everything that one image file and its surroundings say, before anything is chosen."""

    size: Size
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    veto: str | None


def gsd_of_file(path: Path, *, assumed_crs: str | None = None, window: Window | None = None) -> Resolution:
    """The native GSD of an image file.

    Args:
        path: a raster that `rasterfile` can open.
        assumed_crs: the user's word for files that have a transform and no CRS, such as "EPSG:32631".
        window: measure in the middle of this part, not of the whole.

    Raises:
        SampleError: the file cannot be read. A readable file without GSD is not an error: its `gsd_m` is None.
    """
    evidence = file_evidence(path, assumed_crs=assumed_crs, window=window)
    return resolve(evidence.candidates, notes=evidence.notes, veto=evidence.veto)


def file_evidence(
    path: Path, *, assumed_crs: str | None = None, name: str | None = None, window: Window | None = None
) -> FileEvidence:
    """Gathers the candidates of a file; arguments and errors as `gsd_of_file`.

    Args:
        path: a raster that `rasterfile` can open.
        assumed_crs: as in `gsd_of_file`.
        name: the original stem, where the file was renamed on the way here.
        window: as in `gsd_of_file`.
    """
    header = read_header(path)
    sidecars = read_sidecars(path, header.size)
    notes = list(sidecars.notes)
    candidates = list(sidecars.candidates)
    crs_text = _crs_text(header, sidecars, assumed_crs, notes)
    veto = "CRS is of another planet: no GSD on Earth" if crs_text and is_other_planet(crs_text) else None
    measured = None if veto else _measured(header, sidecars, crs_text, window, notes)
    candidates += [measured] if measured else []
    named, name_notes = name_candidates(name or path.stem, header.size)
    notes += name_notes
    if header.resolution_tags:
        notes.append("TIFF resolution tags are print density: ignored")
    return FileEvidence(size=header.size, candidates=(*candidates, *named), notes=tuple(notes), veto=veto)


def _crs_text(header: RasterHeader, sidecars: Sidecars, assumed: str | None, notes: list[str]) -> str | None:
    if header.crs_text:
        return header.crs_text
    if sidecars.crs_text:
        notes.append("CRS from the .prj beside the file")
        return sidecars.crs_text
    if assumed:
        notes.append(f"CRS assumed: {assumed}")
    return assumed


def _measured(
    header: RasterHeader, sidecars: Sidecars, crs_text: str | None, window: Window | None, notes: list[str]
) -> Candidate | None:
    transform = header.transform or sidecars.transform
    if transform is None:
        notes.append(_no_transform(header))
        return None
    if crs_text is None:
        notes.append("transform without CRS: its unit is unknown")
        return None
    source = "transform" if header.transform else "worldfile"
    col, row, *size = window or (0, 0, *header.size)
    try:
        pixel = measure_pixel(moved(transform, col, row), (size[0], size[1]), earth_crs(crs_text))
    except GsdError as error:
        notes.append(f"transform not used: {error}")
        return None
    return Candidate.measured(pixel, stage=Stage.TRANSFORM, source=source)


def _no_transform(header: RasterHeader) -> str:
    if header.gcps:
        return f"{header.gcps} ground control points and no transform: not measured"
    if header.has_rpcs:
        return "rational polynomials and no transform: not measured"
    return "no transform"
