"""Where an adapter and its base lie, and whether they belong together.

- the adapter: a run (which holds `adapter/`) or the adapter folder itself;
- the base: the caller's, else the recorded path inside the folder, or as it is, or under a parent of the folder (runs
  are moved as a whole), else another version of the same stage 1, if `latest` has moved on. Local weights must have
  the recorded hash, or be what `export-base` made of those, so a wrong base is an error and not a slightly
  different model.
"""

from collections.abc import Iterator
from pathlib import Path

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.model.adapter_files import base_hash, read_json
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterMeta

BASE_ORIGIN = "scaleearth_base.json"
"""Beside a dequantised base: the hash of the weights that it was made of (`serving/export_base.py`)."""

NEWEST_RUN = "runs/stage2-*/latest"
"""Where a model is looked for if none is named."""

FAST = "-fast"
"""Ends the names of the Makefile's smoke tests, whose forty steps are no model."""


def find_adapter(folder: Path | str | None) -> Path:
    """The adapter folder of a run, or the folder itself; None takes the newest run of `NEWEST_RUN`, whole ones first.

    Raises:
        CheckpointError: none there.
    """
    if folder is None:
        return _newest_run()
    path = Path(folder)
    if (found := adapter_in(path)) is None:
        raise CheckpointError(
            "no trained model there",
            file=path,
            field="model",
            remedy=f"name a run of stage 2 or its adapter/ folder, which holds {OUR_CONFIG}; `make stage2` makes one",
        )
    return found


def adapter_in(folder: Path) -> Path | None:
    """The folder or its `adapter/`, whichever is an adapter folder; None if neither is."""
    return next((path.resolve() for path in (folder, folder / "adapter") if (path / OUR_CONFIG).is_file()), None)


def _newest_run() -> Path:
    found = [run / "adapter" for run in Path().glob(NEWEST_RUN) if (run / "adapter" / OUR_CONFIG).is_file()]
    if not found:
        raise CheckpointError(
            "no trained model found",
            file=NEWEST_RUN,
            field="model",
            remedy="name one with --model RUN_OR_FOLDER, or train one: `make stage2`",
        )
    whole = [path for path in found if not path.parents[1].name.endswith(FAST)]
    return max(whole or found, key=lambda path: (path / OUR_CONFIG).stat().st_mtime).resolve()


def find_base(adapter_path: Path, meta: AdapterMeta) -> str:
    """Folder or hub name of the backbone that the adapter was trained on; see the module's docstring."""
    existing = [path for path in _base_candidates(adapter_path, meta.base_path) if path.is_dir()]
    if not existing:
        return meta.base_path  # a hub name, or a folder whose absence `build_backbone` reports
    if meta.base_hash == "hub":
        return str(existing[0])
    return str(next((path for path in existing if base_hash(path) == meta.base_hash), existing[0]))


def _base_candidates(adapter_path: Path, recorded: str) -> Iterator[Path]:
    roots = [adapter_path, Path(), *adapter_path.resolve().parents]
    places = list(dict.fromkeys(root / recorded for root in roots))
    yield from places
    for place in places:  # runs/<stage 1>/latest/hf has moved on: the other versions; a hub's name has none
        if place.name == "hf" and place.parent.parent.is_dir():
            yield from sorted(place.parent.parent.glob(f"*/{place.name}"))


def check_base(source: str, meta: AdapterMeta, file: Path) -> None:
    """Raises `CheckpointError` for local weights that the adapter in `file` was not trained on; a name is believed."""
    if not Path(source).is_dir():
        return
    origin = Path(source) / BASE_ORIGIN
    found = read_json(origin)["weights_hash"] if origin.is_file() else base_hash(source)
    if meta.base_hash not in ("hub", found):
        raise CheckpointError(
            f"the adapter was trained on other weights ({meta.base_path}, hash {meta.base_hash[:12]})",
            file=file,
            field="base_hash",
            value=f"{source}: {found[:12]}",
            remedy="name the folder that stage 2 started from: --base, or init_from of `fit` and `test`",
        )
