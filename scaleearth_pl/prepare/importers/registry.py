"""Which importers there are, and how a mapping of the YAML becomes one."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.settings import refuse_unknown
from scaleearth_pl.prepare.importers.dota import Dota
from scaleearth_pl.prepare.importers.fmow import Fmow
from scaleearth_pl.prepare.importers.geotiffs import GeoTiffs
from scaleearth_pl.prepare.importers.llava import Llava
from scaleearth_pl.prepare.importers.mtsccd import MtSCCD
from scaleearth_pl.prepare.importers.patternnet import PatternNet
from scaleearth_pl.prepare.importers.rsvqa_stream import RsvqaHr, RsvqaLr, RsvqaXben
from scaleearth_pl.prepare.importers.source import Shares, Source
from scaleearth_pl.prepare.importers.vrsbench import VrsBench

IMPORTERS: dict[str, type[Source]] = {
    cls.kind: cls for cls in (RsvqaLr, RsvqaHr, RsvqaXben, PatternNet, MtSCCD, Llava, VrsBench, Fmow, Dota, GeoTiffs)
}
"""Importers by `kind`."""


def make_source(name: str, options: Mapping[str, Any], base: Path) -> Source:
    """An importer from its options.

    Args:
        name: key in the YAML; also the kind, unless `options` holds `kind`.
        options: fields of the importer; paths are relative to `base`, which is also the default `root`.
        base: the corpus's root.

    Raises:
        ConfigError: unknown kind or option, or a value of another type.
    """
    given = dict(options)
    kind = given.pop("kind", name)
    cls = IMPORTERS.get(kind)
    if cls is None:
        raise ConfigError("unknown importer", field=name, value=kind, remedy=f"use {', '.join(IMPORTERS)}")
    hints = get_type_hints(cls)
    refuse_unknown(given, cls, where=name, problem=f"{kind} has no such option")
    if "name" in hints:
        given.setdefault("name", name)
    values = {key: _value(f"{name}.{key}", value, hints[key], base) for key, value in given.items()}
    return cls(**{"root": base, **values})


def _value(field: str, value: Any, hint: Any, base: Path) -> Any:
    """`value` as the annotation says; there are only these few."""
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if Path in allowed and isinstance(value, str | Path):
        return base / value
    if Shares in allowed and isinstance(value, Mapping) and set(value) <= {"val", "test"}:
        return Shares(**{key: float(share) for key, share in value.items()})
    if any(get_origin(a) is tuple for a in allowed) and isinstance(value, list | tuple):
        if all(isinstance(v, str) for v in value):
            return tuple(value)
    elif any(isinstance(a, type) and type(value) is a for a in allowed):
        return value
    raise ConfigError("option is of the wrong type", field=field, value=value, remedy=f"give {hint}")
