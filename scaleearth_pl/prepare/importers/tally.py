"""The books of an import: what came in, what stayed out and why, and when too much stayed out.

Shares are judged source by source, so that a rotten small archive cannot hide behind a sound large one: with each
failure once `MIN_GOOD` images were good, and at the end whatever their number. Not earlier, because tables list what
cannot be used before the first image (rows without an image, members of unsafe names), and a sound source would be
stopped by its head. Price: a source without any good image is read to its end before it is refused.

An item is an image, or a row or member that led to none; an image that lost only some of its questions counts as good
*and* as an item that failed. Images on the leakage guard's list (`DROPPED`) are counted, and no failures.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.inject import InjectReport

MIN_GOOD = 200
"""Good images of a source before its share of failures is judged while the import runs."""

DROPPED = "copy_of_evaluation"
"""Kind under which images of a leakage guard's drop list are counted."""


@dataclass(kw_only=True)
class Tally:
    """Counts by source.

    Args:
        max_bad_share: share of failures that is tolerated in each source, 0 to 1.
        quarantine: file of the reasons, named in the error.
    """

    max_bad_share: float
    quarantine: Path
    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    questions: Counter[tuple[str, str]] = field(default_factory=Counter)
    tiers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    inject: InjectReport = field(default_factory=InjectReport)

    def __post_init__(self) -> None:
        check_share(self.max_bad_share)

    def good(self, sample: Sample, *, converted: bool) -> None:
        """Counts a written sample."""
        self.images[sample.source, sample.split] += 1
        self.questions[sample.source, sample.split] += len(sample.qas)
        self.tiers[sample.source, sample.split, str(sample.tier)] += 1
        self.converted[sample.source] += converted

    def bad(self, rejected: Rejected) -> None:
        """Counts a rejection."""
        self.rejected[rejected.source, rejected.kind] += rejected.count

    def judge(self, source: str, last: str = "", *, final: bool) -> None:
        """Holds the failures of one source against the share; raises `QuarantineLimitError` past it."""
        rejected, n_good = _of(self.rejected, source), _of(self.images, source).total()
        if final or n_good >= MIN_GOOD:
            judge(source, rejected, n_good, max_bad_share=self.max_bad_share, quarantine=self.quarantine, last=last)

    def close(self) -> None:
        """The last judgement over every source."""
        for source in sorted({source for source, _ in self.rejected}):
            self.judge(source, final=True)

    @property
    def n_rejected(self) -> int:
        """All rejections."""
        return self.rejected.total()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for the data card."""
        sources = sorted({source for source, _ in (*self.images, *self.rejected)})
        by_source = {
            source: {
                "images": dict(_of(self.images, source)),
                "questions": dict(_of(self.questions, source)),
                "tiers": dict(self._tiers(source)),
                "rejected": dict(_of(self.rejected, source)),
                "converted": self.converted[source],
            }
            for source in sources
        }
        return {"sources": by_source, "skipped": self.skipped, "gsd": self.inject.as_dict()}

    def table(self) -> Table:
        """The summary for people."""
        skipped = f"; not there: {', '.join(self.skipped)}" if self.skipped else ""
        table = Table(title=f"Import: {self.n_rejected} left out{skipped}")
        for name in ("source", "split", "images", "questions", "tiers", "left out"):
            table.add_column(name, justify="right" if name in ("images", "questions") else "left")
        for source, report in self.as_dict()["sources"].items():
            for row, split in enumerate(report["images"] or [""]):
                table.add_row(
                    source,
                    split,
                    str(report["images"].get(split, 0)),
                    str(report["questions"].get(split, 0)),
                    _pairs(self._tiers(source, split)),
                    "" if row else _pairs(report["rejected"]),  # of the source: what failed may have no split
                )
        return table

    def _tiers(self, source: str, split: str | None = None) -> Counter[str]:
        found: Counter[str] = Counter()
        for (name, of_split, tier), count in self.tiers.items():
            if name == source and split in (None, of_split):
                found[tier] += count
        return found


def dropped(record: Found) -> Rejected:
    """What becomes of an image on the leakage guard's list."""
    reason = "on the leakage guard's list"
    return Rejected(source=record.source, item=record.image_id, kind=DROPPED, reason=reason)


def check_share(value: Any) -> None:
    """Raises `ConfigError` unless `value` can be a `max_bad_share`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError("a share lies in [0, 1)", field="max_bad_share", value=value)


def judge(
    source: str, rejected: Mapping[str, int], n_good: int, *, max_bad_share: float, quarantine: Path, last: str = ""
) -> None:
    """`QuarantineLimitError` where a source, of whose items `rejected` counts the failures by kind, lost too much."""
    rejected = {kind: n for kind, n in rejected.items() if kind != DROPPED}
    n_bad = sum(rejected.values())
    if n_bad > max_bad_share * (n_bad + n_good):
        raise QuarantineLimitError(
            f"{n_bad} of {n_bad + n_good} items of {source} failed {dict(rejected)}"
            + (f", the last because: {last}" if last else ""),
            file=quarantine,
            field="max_bad_share",
            value=max_bad_share,
            remedy="read the reasons in that file; mend the archive, or raise the share if they can be borne",
        )


def _of(counter: Counter[tuple[str, str]], source: str) -> Counter[str]:
    return Counter({key: count for (name, key), count in counter.items() if name == source})


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
