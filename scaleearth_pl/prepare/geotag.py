"""`scaleearth geotag FILE...`: one JSON line a file with its GSD on the ground.

Fields: file, gsd_m (metres per pixel of the file, null where unknown; goes into a sample's `gsd_m_native`), gsd_x_m,
gsd_y_m (pixel edges, null where only one number is known), sigma_log10 (decades), provenance, source, anisotropic,
notes. A file that cannot be read gives the same fields, empty, plus `error`. Exit status: 0 if every file was read, 1
if some was not. A readable file without GSD is a result, not a failure.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ScaleEarthError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.geo.crs import earth_crs
from scaleearth_pl.geo.filegsd import gsd_of_file


def main(argv: list[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scaleearth geotag", description="GSD of image files, in metres on the ground."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--crs", help="CRS of files that have a transform and none, such as EPSG:32631")
    args = parser.parse_args(argv)
    if args.crs is not None:
        try:
            earth_crs(args.crs)
        except ScaleEarthError as error:
            parser.error(str(error))
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # its complaints come back as typed errors
    failed = 0
    for path in args.files:
        row = geotag(path, assumed_crs=args.crs)
        failed += "error" in row
        sys.stdout.write(json.dumps(row, allow_nan=False) + "\n")
        sys.stdout.flush()
    return 1 if failed else 0


def geotag(path: Path, *, assumed_crs: str | None = None) -> dict[str, Any]:
    """The JSON row of one file; a file that cannot be read yields a row with `error` instead of an exception."""
    try:
        return geotag_row(path, gsd_of_file(path, assumed_crs=assumed_crs))
    except ScaleEarthError as error:
        return geotag_row(path, Resolution(chosen=None)) | {"error": str(error)}


def geotag_row(path: Path, resolution: Resolution) -> dict[str, Any]:
    """The documented fields of a resolution, ready for JSON."""
    chosen = resolution.chosen
    return {
        "file": str(path),
        "gsd_m": resolution.gsd_m,
        "gsd_x_m": chosen.gsd_x_m if chosen else None,
        "gsd_y_m": chosen.gsd_y_m if chosen else None,
        "sigma_log10": resolution.sigma_log10,
        "provenance": str(chosen.provenance if chosen else Provenance.UNKNOWN),
        "source": chosen.source if chosen else None,
        "anisotropic": bool(chosen and chosen.anisotropic),
        "notes": list(resolution.all_notes),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
