"""Parts of a corpus become one corpus: shards are renumbered and linked, index entries are taken as they are.

    parts/00000/train/high/00000.tar, parts/00001/train/high/00000.tar, ...  ->  train/high/00000.tar, 00001.tar, ...

Nothing is read again or copied, where the file system has hard links, so that joining takes as long as writing the
index. Counts are summed, and only here is the share of failures judged, since no part knows the others'.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import QuarantineLimitError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.data.shard_index import INDEX_NAME
from scaleearth_pl.prepare.corpus import QUARANTINE_NAME
from scaleearth_pl.prepare.importers.books import COUNTS_NAME, NOTES_NAME, write_counts
from scaleearth_pl.prepare.importers.tally import judge
from scaleearth_pl.prepare.index import Scan, write_index


def join_parts(parts: Sequence[Path], out: Path, *, corpus: str, max_bad_share: float) -> dict[str, Any]:
    """Makes one corpus of parts, in their order; returns the summed counts, which `out/import.json` holds too.

    Raises:
        QuarantineLimitError: a source lost more than `max_bad_share` of its items, or nothing is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Any] = {}
    for part in parts:
        counts = add_counts(counts, json.loads((part / COUNTS_NAME).read_text()))
    for name in (QUARANTINE_NAME, NOTES_NAME):
        with open(out / name, "wb") as stream:
            for part in parts:
                stream.write((part / name).read_bytes())
    judge_all(counts, max_bad_share, out / QUARANTINE_NAME)
    scan, digest = Scan(), hashlib.sha256()
    number: Counter[tuple[str, str]] = Counter()
    boundaries = TierBoundaries()
    for part in (p for p in parts if (p / INDEX_NAME).is_file()):
        document = json.loads((part / INDEX_NAME).read_bytes())
        boundaries = TierBoundaries(**document["boundaries"])
        for entry in document["shards"]:
            group = (entry["split"], entry["tier"])
            file = f"{group[0]}/{group[1]}/{number[group]:05d}.tar"
            number[group] += 1
            _link(part / entry["file"], out / file)
            digest.update(entry["sha256"].encode())
            scan.entries.append({**entry, "file": file})
    write_counts(out, counts)
    write_index(out, scan, corpus=corpus, boundaries=boundaries, content_hash=digest.hexdigest())
    return counts


def add_counts(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Sum of two nested mappings: numbers are added, lists united."""
    out = dict(a)
    for key, value in b.items():
        if key not in out:
            out[key] = value
        elif isinstance(value, Mapping):
            out[key] = add_counts(out[key], value)
        elif isinstance(value, list):
            out[key] = sorted({*out[key], *value})
        else:
            out[key] += value
    return out


def judge_all(counts: Mapping[str, Any], max_bad_share: float, quarantine: Path) -> None:
    """`QuarantineLimitError` for the first source that lost too much, or where nothing came through at all."""
    sources: Mapping[str, Any] = counts.get("sources", {})
    for source, found in sources.items():
        n_good = sum(found["images"].values())
        judge(source, found["rejected"], n_good, max_bad_share=max_bad_share, quarantine=quarantine)
    if not any(sum(found["images"].values()) for found in sources.values()):
        raise QuarantineLimitError("no image came through", file=quarantine, remedy="check root and splits")


def _link(source: Path, target: Path, link: Callable[[Path, Path], None] = os.link) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
