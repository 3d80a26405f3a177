"""Grouping by image on the disk: a table in any order becomes images with all their questions, in flat memory.

    rows() of questions, references() of what they point to (answers), abouts() of the images  ->  groups()

The contract wants one sample per image; the tables come question by question, in an order that no publisher promises.
SQLite keeps them in a temporary file with a bounded cache, and sorts (in its own temporary folder, `SQLITE_TMPDIR`) only
where the table does not come in the order of its images, as the official files do. Price: the spool takes about as much
disk as the table's texts, and questions are read twice.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleearth_pl.core.errors import DiskSpaceError

_CACHE_KIB = 32 * 1024

Item = tuple[str, str, str, str | None]
"""Number (as text), type, text, and the referenced text (None where nothing has that number)."""

SpoolRow = tuple[int | str, int, int | str, str, str, int | None]
"""Group, place within it, number, type, text, number of the reference."""


class Spool:
    """A temporary table of rows that belong to images.

    Args:
        folder: where the temporary file lies; None takes the system's. It is removed at the end.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scaleearth-spool-", dir=folder)
        self._db = sqlite3.connect(Path(self._folder.name) / "spool.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._in_order = True
        self._last: tuple[int | str, int] | None = None
        self._db.execute("CREATE TABLE refs (number INTEGER PRIMARY KEY, text TEXT)")
        self._db.execute('CREATE TABLE abouts ("group" PRIMARY KEY, text TEXT) WITHOUT ROWID')
        self._db.execute('CREATE TABLE rows ("group", place INTEGER, number, kind TEXT, text TEXT, ref INTEGER)')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()

    def references(self, pairs: Iterable[tuple[int, str]]) -> int:
        """Stores what rows may point to; of two with one number the first stays. Returns how many stayed out."""
        return self._fill("INSERT OR IGNORE INTO refs VALUES (?, ?)", pairs)

    def rows(self, rows: Iterable[SpoolRow]) -> int:
        """Stores rows; groups are all numbers or all texts. Returns 0: none stays out."""
        return self._fill("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", map(self._watch, rows))

    def abouts(self, pairs: Iterable[tuple[int | str, str]]) -> int:
        """Stores what is known about groups; of two with one name the first stays. Returns how many stayed out."""
        return self._fill("INSERT OR IGNORE INTO abouts VALUES (?, ?)", pairs)

    def groups(self) -> Iterator[tuple[int | str, str | None, list[Item]]]:
        """Groups with rows in ascending order: name, what is known about it, its items by place."""
        query = (
            'SELECT rows."group", abouts.text, rows.number, rows.kind, rows.text, refs.text FROM rows '
            'LEFT JOIN refs ON refs.number = rows.ref LEFT JOIN abouts ON abouts."group" = rows."group" ORDER BY '
        ) + ("rows.rowid" if self._in_order else 'rows."group", rows.place, rows.rowid')
        with _disk_errors():
            for (group, about), found in groupby(self._db.execute(query), key=lambda row: (row[0], row[1])):
                yield group, about, [(str(number), kind, text, ref) for _, _, number, kind, text, ref in found]

    def groups_without_rows(self) -> Iterator[int | str]:
        """Names that `abouts` has and `rows` has not, in ascending order."""
        query = 'SELECT "group" FROM abouts WHERE "group" NOT IN (SELECT "group" FROM rows) ORDER BY 1'
        yield from (group for (group,) in self._db.execute(query))

    def _watch(self, row: SpoolRow) -> SpoolRow:
        here: Any = row[:2]
        self._in_order = self._in_order and (self._last is None or self._last <= here)
        self._last = here
        return row

    def _fill(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> int:
        n_rows, before = 0, self._db.total_changes

        def counted() -> Iterator[tuple[Any, ...]]:
            nonlocal n_rows
            for row in rows:
                n_rows += 1
                yield row

        with _disk_errors():
            self._db.execute("BEGIN")
            self._db.executemany(statement, counted())
            self._db.execute("COMMIT")
        return n_rows - (self._db.total_changes - before)


class _disk_errors:  # noqa: N801 (a context manager used like a function)
    """A full disk in SQLite's words becomes ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise DiskSpaceError("no room for the temporary table", remedy="set `work` to a larger disk") from error
