"""Rows of a table that are none, kept until the table is read: many of them are a bad table only where good ones are fewer.

The first `MAX_BAD_ROWS` become a record each, the rest one record a kind, so that a table of 300,000 conversations of
which 1,001 have no image loses these and goes on to the importer's share of failures. A table that has more bad rows than
that *and* than good ones is another format. Price: such a table is read to its end before it is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.prepare.importers.record import Rejected

MAX_BAD_ROWS = 1000
"""Unreadable rows of one table that are kept one by one."""


@dataclass(kw_only=True)
class BadRows:
    """The rejections of one table.

    Args:
        file: the table.
        n_good: rows that were read, for the reader to count.
    """

    file: Path
    n_good: int = 0
    _kept: list[Rejected] = field(default_factory=list)
    _more: dict[str, Rejected] = field(default_factory=dict)

    def add(self, rejected: Rejected) -> None:
        """Keeps one rejection, or counts it."""
        if len(self._kept) < MAX_BAD_ROWS:
            self._kept.append(rejected)
            return
        before = self._more.get(rejected.kind, replace(rejected, count=0))
        self._more[rejected.kind] = replace(before, count=before.count + 1)

    def records(self) -> Iterator[Rejected]:
        """What was left out, once the table is read.

        Raises:
            SampleError: most of it: the table is of another format.
        """
        n_bad = len(self._kept) + sum(more.count for more in self._more.values())
        if self._more and n_bad > self.n_good:
            raise SampleError(
                f"{n_bad} of {n_bad + self.n_good} rows are not of this format",
                file=self.file,
                value=self._kept[0].reason,
                remedy="is it the table that this importer reads? The value says what its first bad row lacks",
            )
        yield from self._kept
        for more in self._more.values():
            yield replace(more, item=self.file.name, reason=f"{more.count} more rows, such as: {more.reason}")
