"""The run-time type checker of the tests: beartype, except where it cannot see the class."""

from collections.abc import Callable
from functools import wraps
from itertools import count
from types import FunctionType, ModuleType
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


def sparingly(function: Callable[..., Any], *, first: int = 200, then: int = 20) -> Callable[..., Any]:
    """A checked function with its checks on the `first` calls and, after them, on one call of every `then`.

    For what every layer calls in every pass: a check takes longer there than the product of a tiny model.
    """
    calls, bare = count(), function.__wrapped__  # type: ignore[attr-defined]

    @wraps(function)
    def spared(*args: Any, **kwargs: Any) -> Any:
        n = next(calls)
        return (function if n < first or n % then == 0 else bare)(*args, **kwargs)

    return spared


def spare(module: ModuleType) -> None:
    """Makes the checked functions and methods of a module, constructors excepted, `sparingly` checked ones."""
    classes = [
        found for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__
    ]
    for owner in (module, *classes):
        for name, found in list(vars(owner).items()):
            function = found.__func__ if isinstance(found, staticmethod) else found
            checks = isinstance(function, FunctionType) and function.__code__.co_name == "wrapped_fn"  # jaxtyping's
            if checks and not name.startswith("__"):
                spared = sparingly(function)
                setattr(owner, name, staticmethod(spared) if isinstance(found, staticmethod) else spared)
