"""Where a finished record goes: a sample to its shard, a rejection to the quarantine, and either into the counts.

import.json         counts by source
quarantine.jsonl    each rejection with its reason
notes.jsonl         what was done to single images, and what was stated of their GSD and not used
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.prepare.corpus import QUARANTINE_NAME
from scaleearth_pl.prepare.importers.record import Imported, Rejected
from scaleearth_pl.prepare.importers.tally import Tally
from scaleearth_pl.prepare.write import ShardWriter

COUNTS_NAME, NOTES_NAME = "import.json", "notes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Books:
    """Counts, and the open files beside the shards."""

    tally: Tally
    quarantine: TextIO
    notes: TextIO

    def file(self, writer: ShardWriter, entry: Imported | Rejected) -> Imported | Rejected:
        """Files one entry; returns a rejection instead of a sample that the writer refused."""
        if isinstance(entry, Imported):
            try:
                writer.write(entry.sample, entry.image, entry.ext, later=entry.later)
            except SampleError as error:
                entry = _refused(entry, error)
        if isinstance(entry, Rejected):
            self.quarantine.write(json.dumps(asdict(entry), sort_keys=True) + "\n")
            self.quarantine.flush()
            self.tally.bad(entry)
        else:
            self.tally.good(entry.sample, converted=bool(entry.notes))
            if notes := (*entry.notes, *entry.doubts):
                self.notes.write(json.dumps({"image_id": entry.sample.image_id, "notes": notes}) + "\n")
        return entry


@contextmanager
def open_books(out: Path, tally: Tally) -> Iterator[Books]:
    """Quarantine and notes in the folder `out`, empty."""
    with (
        open(out / QUARANTINE_NAME, "w", encoding="utf-8") as quarantine,
        open(out / NOTES_NAME, "w", encoding="utf-8") as notes,
    ):
        yield Books(tally=tally, quarantine=quarantine, notes=notes)


def write_counts(out: Path, counts: Mapping[str, Any]) -> None:
    """Writes `out/import.json`."""
    (out / COUNTS_NAME).write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")


def _refused(entry: Imported, error: SampleError) -> Rejected:
    kind = "duplicate_id" if error.field == "image_id" else "bad_image"
    return Rejected(source=entry.sample.source, item=entry.sample.image_id, kind=kind, reason=str(error))
