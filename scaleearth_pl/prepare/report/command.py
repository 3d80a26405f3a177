"""`scaleearth report ROOT --out DIR`: figures, tables and the data card of a corpus.

    landscape.png|csv    sources on the plane of GSD and image side (the paper's Figure 2)
    composition.png|csv  questions by source and tier; families.csv: by tier and family
    coverage.png|csv     where on Earth; the CSV only where an image states coordinates
    CARD.md              counts, provenance, splits, licences, limits, hashes

Reads `index.json` and the metadata of each sample, no pixels. Exit status: 0, 3 where a sample did not read (it is named
and not counted), 2 for bad input.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleearth_pl.core.console import command, console, progress
from scaleearth_pl.core.errors import DiskSpaceError, QuarantineLimitError
from scaleearth_pl.data.shard_index import INDEX_NAME
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.prepare.report import figures
from scaleearth_pl.prepare.report.card import data_card
from scaleearth_pl.prepare.report.stats import CorpusStats, read_stats
from scaleearth_pl.prepare.report.tables import write_tables

CARD_NAME = "CARD.md"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was read and the files that were written, the card first."""

    stats: CorpusStats
    files: tuple[Path, ...]


def report(root: Path, out: Path, *, observe: Callable[[], None] = lambda: None) -> Report:
    """Writes everything about the corpus `root` into the folder `out`.

    Raises:
        IndexSchemaError, ShardError: the corpus is broken.
        QuarantineLimitError: not one sample can be read.
        DiskSpaceError: `out` cannot be written.
    """
    index = ShardIndex.load(root)
    stats = read_stats(index, observe=observe)
    if not stats.n_images:
        raise QuarantineLimitError(f"no sample reads, the first: {stats.unreadable[0]}", file=root / INDEX_NAME)
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = [
            figures.save(figures.landscape(stats, index.boundaries), out / "landscape.png"),
            figures.save(figures.composition(stats), out / "composition.png"),
            figures.save(figures.coverage(stats), out / "coverage.png"),
        ]
        tables = write_tables(stats, out)
        card = out / CARD_NAME
        card.write_text(data_card(index, stats, rejected=_rejected(root), figures=pictures), encoding="utf-8")
    except OSError as error:
        raise DiskSpaceError(f"report cannot be written: {error.strerror}", file=out) from error
    return Report(stats=stats, files=(card, *pictures, *tables))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleearth report", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="folder that holds index.json")
    parser.add_argument("--out", type=Path, help="folder of the report; default: ROOT/report")
    args = parser.parse_args(argv)
    with progress("metadata", len(ShardIndex.load(args.root)), transient=True) as advance:
        found = report(args.root, args.out or args.root / "report", observe=advance)
    screen = console(stderr=True)
    screen.print(f"{found.stats.n_images:,} images, {found.stats.n_questions:,} questions: {found.files[0]}")
    for reason in found.stats.unreadable:
        screen.print(f"  not counted: {reason}", soft_wrap=True)
    return 3 if found.stats.unreadable else 0


def _rejected(root: Path) -> int:
    return len(json.loads((root / INDEX_NAME).read_bytes()).get("rejected", []))
