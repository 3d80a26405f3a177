"""Mappings that become dataclasses: a key that nobody reads is refused, or a typing error would keep a default."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from scaleearth_pl.core.errors import ConfigError


def refuse_unknown(given: Mapping[str, Any], cls: type, *, where: str = "", problem: str = "unknown key") -> None:
    """`ConfigError` for the first key of `given`, itself found under `where`, that is no field of the dataclass `cls`."""
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        name = unknown[0]
        field = f"{where}.{name}" if where else name
        raise ConfigError(problem, field=field, value=given[name], remedy=f"use {', '.join(known)}")
