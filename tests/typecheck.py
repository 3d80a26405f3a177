"""The run-time type checker of the tests: beartype, except where it cannot see the class."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks shapes and types at every call; a method that names `Self` is left alone (beartype needs the class)."""
    try:
        return _CHECK(function)
    except BeartypeDecorHintException:
        return function
