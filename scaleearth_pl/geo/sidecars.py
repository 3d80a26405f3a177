"""Files beside an image: world file, .prj, JSON record, DOTA text.

They are found by name only. What is found and cannot be used is said in a note, since a broken sidecar is a reason to
doubt the folder, but it does not make the image unreadable.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.ground import Transform
from scaleearth_pl.geo.names import Size
from scaleearth_pl.geo.records import record_candidates

MAX_JSON_BYTES = 8 * 2**20
_TEXT_BYTES = 4096
_DOTA_FOLDERS = ("labelTxt", "meta")
_DOTA_GSD = re.compile(r"^gsd[^\S\n]*:[^\S\n]*(.*)$", re.IGNORECASE | re.MULTILINE)
_DOTA_SOURCE = re.compile(r"^imagesource\s*:", re.IGNORECASE | re.MULTILINE)


@dataclass(kw_only=True)
class Sidecars:
    """What lies beside one image: candidates, a transform and CRS for a file without, and notes."""

    candidates: list[Candidate] = field(default_factory=list)
    transform: Transform | None = None
    crs_text: str | None = None
    notes: list[str] = field(default_factory=list)


Reader = Callable[[Sidecars, Path], None]


def read_sidecars(image: Path, size: Size | None) -> Sidecars:
    """Reads everything beside `image`; never raises for a sidecar's content.

    Args:
        image: path of the image.
        size: its width and height in pixels, needed by corner boxes.
    """
    found = Sidecars()
    readers: tuple[tuple[Reader, list[Path]], ...] = (
        (partial(_add_json, image=image, size=size), _existing(*_beside(image, ".json"))),
        (_add_dota, _existing(image.with_suffix(".txt"), *_dota_paths(image))),
        (_add_world, _existing(*world_file_names(image))),
        (_add_prj, _existing(image.with_suffix(".prj"), image.with_suffix(".PRJ"))[:1]),
    )
    for reader, paths in readers:
        for path in paths:
            try:
                reader(found, path)
            except (SampleError, GsdError, OSError) as error:
                reason = str(error) if isinstance(error, OSError) else error.problem
                found.notes.append(f"{path.name} not used: {reason}")
    return found


def world_file_names(image: Path) -> tuple[Path, ...]:
    """For tif: tfw, tifw, wld; for jpg: jgw, jpgw, wld; then the same in capitals, as old deliveries have them."""
    ext = image.suffix.lstrip(".").lower()
    names = dict.fromkeys((f"{ext[0]}{ext[-1]}w" if len(ext) > 1 else "wld", f"{ext}w", "wld"))
    return tuple(image.with_suffix(f".{name}") for name in (*names, *map(str.upper, names)))


def parse_world_file(path: Path) -> Transform:
    """The transform of a world file: six lines a, d, b, e and the *centre* of the first pixel.

    Raises:
        SampleError: not six finite numbers.
    """
    words = _head(path).decode("ascii", "replace").replace(",", ".").split()
    try:
        a, d, b, e, x, y = numbers = [float(word) for word in words]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
    except ValueError as error:
        raise SampleError("world file is not six finite numbers", file=path, value=words[:8]) from error
    return a, b, x - a / 2 - b / 2, d, e, y - d / 2 - e / 2


def parse_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 8 MiB.

    Raises:
        SampleError: too large, not JSON, nested too deeply, or not an object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SampleError(f"JSON record has more than {MAX_JSON_BYTES} bytes", file=path)
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise SampleError(f"JSON record does not parse: {error}", file=path) from error
    if not isinstance(record, dict):
        raise SampleError("JSON record is not an object", file=path, value=type(record).__name__)
    return record


def parse_dota(text: str) -> Candidate | None:
    """The `gsd:` line of a DOTA label (v1, second line) or meta file (v2, last line).

    None where the text is not DOTA's or its GSD is empty or "null", as for images whose source did not tell.

    Raises:
        GsdError: the line holds something else than a length.
    """
    match = _DOTA_GSD.search(text)
    if match is None or not _DOTA_SOURCE.search(text) or match[1].strip().lower() in ("", "null", "none"):
        return None
    return Candidate(
        gsd_m=parse_gsd_text(match[1].strip(), field="gsd"),
        provenance=Provenance.EXACT,
        stage=Stage.RECORD,
        source="dota:gsd",
    )


def _add_json(found: Sidecars, path: Path, *, image: Path, size: Size | None) -> None:
    candidates, notes = record_candidates(parse_json(path), file_name=image.name, size=size)
    found.candidates += candidates
    found.notes += [f"{path.name}: {note}" for note in notes]


def _add_dota(found: Sidecars, path: Path) -> None:
    candidate = parse_dota(_ends(path).decode("utf-8", "replace"))
    found.candidates += [candidate] if candidate is not None else []


def _add_world(found: Sidecars, path: Path) -> None:
    found.transform = found.transform or parse_world_file(path)


def _add_prj(found: Sidecars, path: Path) -> None:
    found.crs_text = _head(path).decode("utf-8", "replace").strip() or None


def _beside(image: Path, suffix: str) -> tuple[Path, Path]:
    return image.with_suffix(suffix), image.with_name(image.name + suffix)


def _dota_paths(image: Path) -> list[Path]:
    return [image.parent.parent / folder / f"{image.stem}.txt" for folder in _DOTA_FOLDERS]


def _existing(*paths: Path) -> list[Path]:
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_TEXT_BYTES)


def _ends(path: Path) -> bytes:
    """First and last lines of a label file that may hold thousands of objects."""
    with path.open("rb") as stream:
        head = stream.read(_TEXT_BYTES)
        stream.seek(max(len(head), path.stat().st_size - _TEXT_BYTES))
        return head + b"\n" + stream.read()
