"""`scaleearth prepare FILE.yaml [--out FOLDER] [--set key=value ...]`: builds a corpus under data_shards/.

The YAML's `kind` selects a builder, `out` (default `data_shards/<name of the file>`) the folder; all other keys go to
the builder, and `--set` replaces them (`images.train=100` reaches inside). A corpus is built by one process at a time,
in `<out>.partial`, and renamed when it is complete, so that a killed build leaves nothing that looks finished.
`corpus.json` remembers the settings and, of a corpus that is made and not converted, the digest of the generator's
source; of one that is imported, which sources were there and the digests of the small files that decide (the drop list,
tables of GSD, pairs and questions). The same find the work done, others are refused instead of mixed. So an edited
generator never passes for the one that made the corpus, and no image that was put on the drop list afterwards stays in.
"""

import argparse
import hashlib
import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import locked
from scaleearth_pl.core.processes import children_keep_memory
from scaleearth_pl.data.shard_index import INDEX_NAME

RECORD_NAME = "corpus.json"
QUARANTINE_NAME = "quarantine.jsonl"
EXIT_LEFT_OUT = 3
NOT_CONTENT = ("out", "processes", "workers", "executor", "slurm")
"""Keys that change no byte of a corpus."""


@dataclass(frozen=True)
class Builder:
    """A module with `build(config: dict[str, Any], out: Path) -> Path`.

    If its output is `versioned`, it also has `VERSION: str` and `generator() -> str`, the digest of its source; if it
    `reads` files, `inputs(config) -> dict[str, str]`: what else than the settings decides, by name.
    """

    module: str
    versioned: bool = False
    reads: bool = False


BUILDERS = {
    "world": Builder("scaleearth_pl.prepare.world.build", versioned=True),
    "rsvqa": Builder("scaleearth_pl.prepare.rsvqa"),
    "archives": Builder("scaleearth_pl.prepare.importers.build", reads=True),
    "pipeline": Builder("scaleearth_pl.prepare.pipeline", reads=True),
}


def prepare(file: Path, changes: Sequence[str] = (), *, out: Path | None = None) -> Path:
    """Builds the corpus that `file` describes, unless it is there; returns its folder.

    Args:
        file: YAML with `kind` and the builder's keys.
        changes: "key=value", the value in YAML; dots reach inside.
        out: folder to build, instead of the file's `out`.

    Raises:
        ConfigError: the file, a key or a value is wrong, or the folder holds something else.
    """
    config = read_config(file, changes)
    builder = BUILDERS[config.pop("kind")]
    out = _folder(config.pop("out", None), out, file)
    module = importlib.import_module(builder.module)
    version = module.VERSION if builder.versioned else "1"
    record = {"config": {k: v for k, v in config.items() if k not in NOT_CONTENT}, "builder": builder.module}
    record = {**record, "version": version, "config_hash": config_hash(record, version)}
    if builder.versioned:
        record["generator"] = module.generator()
    if builder.reads:
        record["inputs"] = module.inputs(config)
    screen = console(stderr=True)
    if is_there(out, record, file):
        return _nothing_to_do(out, screen)
    with alone(out):
        if is_there(out, record, file):  # another build ended meanwhile
            return _nothing_to_do(out, screen)
        partial = out.with_name(out.name + ".partial")
        if partial.exists():
            screen.print(f"{partial}: removing what an interrupted build left")
            shutil.rmtree(partial)
        with children_keep_memory():
            module.build(config, partial)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    screen.print(f"{out}: done")
    return out


def _nothing_to_do(out: Path, screen: Console) -> Path:
    screen.print(f"{out}: corpus is there, built from the same settings by the same generator; nothing to do")
    return out


def alone(out: Path) -> AbstractContextManager[None]:
    """Holds the lock of a corpus folder, `.<name>.lock` beside it; `ConfigError` where another process builds into it."""
    remedy = "wait for it, or build into another folder with --out"
    busy = ConfigError("another process is building this corpus", file=out, remedy=remedy)
    return locked(out.with_name(f".{out.name}.lock"), busy)


def config_hash(record: Mapping[str, Any], version: str) -> str:
    """SHA-256 of settings and version, independent of the order of keys."""
    text = json.dumps([record, version], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(file: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The YAML's mapping with `changes` applied; `kind` is one of `BUILDERS`."""
    if not file.is_file():
        raise ConfigError("corpus file does not exist", file=file, remedy="see experiments/corpus/")
    try:
        config = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"corpus file is not YAML: {error}", file=file) from error
    if not isinstance(config, dict):
        raise ConfigError("corpus file is not a mapping", file=file, value=type(config).__name__)
    for change in changes:
        apply_change(config, change)
    kind = config.get("kind")
    if kind not in BUILDERS:
        raise ConfigError(
            "unknown kind of corpus", file=file, field="kind", value=kind, remedy=f"use {', '.join(BUILDERS)}"
        )
    return config


def apply_change(config: dict[str, Any], change: str) -> None:
    """Sets one "a.b=value" in place; the value is read as YAML."""
    path, separator, text = change.partition("=")
    *parents, last = path.split(".")
    if not separator or not all((*parents, last)):
        raise ConfigError("change is not key=value", value=change, remedy="write --set images.train=100")
    for name in parents:
        below = config.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError("change reaches into something that is not a mapping", field=path, value=below)
        config = below
    config[last] = yaml.safe_load(text)


def is_there(out: Path, record: Mapping[str, Any], file: Path) -> bool:
    """Whether `out` is this corpus of `file`, finished; False if there is nothing; raises for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    remedy = f"delete {out}, or build into another folder with --out"
    if not (out / INDEX_NAME).is_file():
        raise ConfigError("folder holds something that is not a finished corpus", file=out, remedy=remedy)
    found = read_record(out)
    for field, problem, way_out in (
        ("version", "corpus was made by another generator", rebuild(out, file)),
        ("config_hash", "folder holds a corpus that was built from other settings", remedy),
        ("generator", "corpus was made by another generator", rebuild(out, file)),
    ):
        if found.get(field) != record.get(field):
            raise ConfigError(problem, file=out / RECORD_NAME, field=field, value=found.get(field), remedy=way_out)
    if changes := changed_inputs(found.get("inputs"), record.get("inputs")):
        raise ConfigError(
            f"what the corpus was built from has changed since: {', '.join(changes)}",
            file=out / RECORD_NAME,
            field="inputs",
            remedy=rebuild(out, file),
        )
    return True


def changed_inputs(before: object, now: Mapping[str, str] | None) -> list[str]:
    """What has come, gone or changed among the inputs of a build; of a corpus that recorded none, that it did not."""
    if now is None:
        return []
    if not isinstance(before, dict):
        return ["its sources and tables were not recorded"]
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name} {'came' if name not in before else 'changed' if name in now else 'is gone'}" for name in names]


def read_record(out: Path) -> dict[str, Any]:
    """What `corpus.json` remembers; nothing, where it is absent or no mapping."""
    try:
        found = json.loads((out / RECORD_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _folder(of_file: object, given: Path | None, file: Path) -> Path:
    if given is not None:
        return given
    if of_file is not None and not isinstance(of_file, str):
        raise ConfigError("is a folder, as text", file=file, field="out", value=of_file, remedy="put it in quotes")
    return Path(of_file or Path("data_shards") / file.stem)


def rebuild(out: Path, file: Path) -> str:
    """The remedy for a stale corpus, as a command."""
    return f"rebuild with: rm -r {out} && scaleearth prepare {file} --out {out} (results on the old one do not compare)"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 3 where the importer left something out."""
    parser = argparse.ArgumentParser(prog="scaleearth prepare", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="YAML of experiments/corpus/")
    parser.add_argument("--out", type=Path, help="folder to build, instead of the file's `out`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a setting")
    given = parser.parse_args(argv)
    out = prepare(given.file, given.set, out=given.out)
    left_out = out / QUARANTINE_NAME
    return EXIT_LEFT_OUT if left_out.is_file() and left_out.stat().st_size else 0


if __name__ == "__main__":
    raise SystemExit(main())
