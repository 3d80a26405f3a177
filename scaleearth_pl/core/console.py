"""What commands print for people: one width where nobody watches, and errors as they stand."""

import functools
from collections.abc import Callable
from typing import ParamSpec

from rich.console import Console
from rich.markup import escape

from scaleearth_pl.core.errors import ScaleEarthError

P = ParamSpec("P")


def console(*, stderr: bool = False) -> Console:
    """The terminal; 150 columns where the output is a file or a pipe, since a folded table cannot be read."""
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=150)


def print_error(error: ScaleEarthError) -> None:
    """An error on stderr, its text as it stands: a path or an answer may hold "[/x]", which is markup to `rich`."""
    console(stderr=True).print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", soft_wrap=True)


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
