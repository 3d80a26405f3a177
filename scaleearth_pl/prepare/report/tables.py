"""The numbers behind the figures as CSV: one row a bubble, a bar segment, a cell of the map."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaleearth_pl.prepare.report.stats import Cell, CorpusStats


def write_tables(stats: CorpusStats, out: Path) -> list[Path]:
    """Writes `landscape.csv`, `composition.csv`, `families.csv` and, where an image has coordinates, `coverage.csv`."""
    places: list[Sequence[object]] = [
        (source, f"{10**x:.6g}", f"{10**y:.6g}", cell.images, cell.questions)
        for source, (x, y), cell in _cells(stats.landscape)
    ]
    places += [(source, "", "", "", n) for source, n in sorted(stats.unknown_gsd.items())]
    spots = [
        (source, f"{lon:.4f}", f"{lat:.4f}", cell.images, cell.questions)
        for source, (lon, lat), cell in _cells(stats.coverage)
    ]
    counts = [(*key, stats.images[key], n) for key, n in sorted(stats.questions.items())]
    families = [(*key, n) for key, n in sorted(stats.families.items())]
    numbers = ("images", "questions")
    written = [
        _write(out / "landscape.csv", ("source", "gsd_m_native", "side_px", *numbers), places),
        _write(out / "composition.csv", ("source", "split", "tier", *numbers), counts),
        _write(out / "families.csv", ("tier", "family", "questions"), families),
    ]
    (out / "coverage.csv").unlink(missing_ok=True)
    if spots:
        written.append(_write(out / "coverage.csv", ("source", "lon", "lat", *numbers), spots))
    return written


def _cells(cells: dict[tuple[str, int, int], Cell]) -> Iterable[tuple[str, tuple[float, float], Cell]]:
    for (source, _, _), cell in sorted(cells.items()):
        yield source, cell.position, cell


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
