"""What commands print for people: one width where nobody watches, progress on stderr, and errors as they stand."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from scaleearth_pl.core.errors import ScaleEarthError

P = ParamSpec("P")


def console(*, stderr: bool = False, highlight: bool = True) -> Console:
    """The terminal; 150 columns where the output is a file or a pipe, since a folded table cannot be read.

    What is printed stands as it is: a path or an answer may hold "[/x]", which `rich` would take for markup.
    """
    plain = Console(stderr=stderr, highlight=highlight, markup=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=highlight, markup=False, width=150)


def progress_bar(*more: ProgressColumn, transient: bool = False) -> Progress:
    """A bar on stderr without tasks: name, items done and wanted, `more`, time taken and left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console(stderr=True), transient=transient)


@contextmanager
def progress(title: str, total: int, *, done: int = 0, transient: bool = False) -> Iterator[functools.partial[None]]:
    """A bar of one task; yields what moves it on, by one item or by as many as it is told."""
    with progress_bar(transient=transient) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield functools.partial(bar.advance, task)


def print_error(error: ScaleEarthError) -> None:
    """An error on stderr, its name in red."""
    console(stderr=True).print(Text.assemble((type(error).__name__, "red"), f": {error}"), soft_wrap=True)


def command(main: Callable[P, int]) -> Callable[P, int]:
    """The `main` of a command: an error made on purpose is one line on stderr and its exit status, not a traceback."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except ScaleEarthError as error:
            print_error(error)
            return error.exit_status

    return guarded
