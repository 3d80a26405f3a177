"""`kind: archives`: every source that a YAML lists, from its archive to shards.

    sources -> records -> finish -> ShardWriter          rejections -> quarantine.jsonl, counted, fatal past a share

The YAML's keys: `root` (of the archives), `sources` (name -> options of the importer, `kind` where it is not the name,
`optional: true` where it may be missing; null leaves it out), `drop` (ids of images to leave out, as `leakage --drop`
wrote them), `max_bad_share`, `max_pixels`, `samples_per_shard`, `corpus`. Beside the shards: `import.json` (counts),
`quarantine.jsonl` (each rejection with its reason; the exit status is then 3), `notes.jsonl` (what was done to single
images, and what was stated of their GSD and not used).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import console, progress_bar
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import sha256_of
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.settings import refuse_unknown
from scaleearth_pl.data.images import MAX_IMAGE_PIXELS
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.prepare.corpus import QUARANTINE_NAME
from scaleearth_pl.prepare.drop_list import read_drop, warn_of_unmatched
from scaleearth_pl.prepare.importers.books import open_books, write_counts
from scaleearth_pl.prepare.importers.finish import finish
from scaleearth_pl.prepare.importers.picture import MAX_PIXELS
from scaleearth_pl.prepare.importers.record import Found, Imported, Rejected
from scaleearth_pl.prepare.importers.registry import make_source
from scaleearth_pl.prepare.importers.source import Source
from scaleearth_pl.prepare.importers.tally import Tally, check_share, dropped
from scaleearth_pl.prepare.write import ShardWriter

QUESTION_TABLES = ("questions.jsonl", "questions.json", "questions.csv")
"""Tables that users write themselves, and change."""

MAX_DIGESTED_BYTES = 64 * 2**20
"""A tenth of a second of hashing."""


@dataclass(frozen=True, kw_only=True)
class ArchivesConfig:
    """What to import.

    Args:
        root: folder of the archives; paths of the sources are relative to it.
        sources: name to options.
        drop: file of the ids of images to leave out (`drop_list.py`); they are counted, and no failures.
        max_bad_share: share of failures that is tolerated in each source.
        max_pixels: larger images are averaged down and their GSD follows.
        samples_per_shard: images in one tar file.
        corpus: name written to the index.
    """

    root: Path
    sources: dict[str, Any] = field(default_factory=dict)
    drop: Path | None = None
    max_bad_share: float = 0.01
    max_pixels: int = MAX_PIXELS
    samples_per_shard: int = 512
    corpus: str = "geoscale_vqa"

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ConfigError("folder of the archives does not exist", field="root", value=str(self.root))
        if not isinstance(self.sources, dict) or not self.sources:
            raise ConfigError("no source to import", field="sources", value=self.sources)
        if not isinstance(self.max_pixels, int) or self.max_pixels < 1024:
            raise ConfigError("must be at least 1024", field="max_pixels", value=self.max_pixels)
        if self.max_pixels > MAX_IMAGE_PIXELS:
            raise ConfigError(
                "no shard holds images of so many pixels",
                field="max_pixels",
                value=self.max_pixels,
                remedy=f"at most {MAX_IMAGE_PIXELS}; larger images are averaged down",
            )
        check_share(self.max_bad_share)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ArchivesConfig":
        """Reads the YAML's mapping; raises `ConfigError` for unknown keys and a missing root."""
        given = {key: value for key, value in config.items() if key not in ("kind", "out")}
        refuse_unknown(given, cls)
        if not given.get("root"):
            raise ConfigError("the folder of the archives must be given", field="root", remedy="--set root=DIR")
        paths = {name: _path(name, given[name]) for name in ("root", "drop") if given.get(name) is not None}
        return cls(**{**given, **paths})


def find_sources(config: ArchivesConfig) -> tuple[dict[str, Source], list[str]]:
    """The importers whose data is there, and the names of optional ones that are not.

    Raises:
        ConfigError: a source that is not optional is missing, or its options are wrong.
    """
    found: dict[str, Source] = {}
    missing: list[str] = []
    for name, options in config.sources.items():
        if options is None:
            continue
        if not isinstance(options, dict):
            raise ConfigError("options of a source are a mapping", field=f"sources.{name}", value=options)
        optional = options.get("optional", False)
        source = make_source(name, {k: v for k, v in options.items() if k != "optional"}, config.root)
        if source.present():
            found[name] = source
        elif optional is True:
            missing.append(name)
        else:
            raise ConfigError(
                "source is not there",
                file=source.root,
                field=f"sources.{name}",
                remedy="fetch and unpack it, write `optional: true`, or leave it out with null",
            )
    return found, missing


def inputs(config: dict[str, Any]) -> dict[str, str]:
    """What decides the corpus beside the YAML; `ConfigError` as `find_sources`."""
    return inputs_of(ArchivesConfig.from_dict(config))


def inputs_of(config: ArchivesConfig) -> dict[str, str]:
    """The sources that are there, and digests of the small files that say what is made of them.

    Small files are those that options name (`drop`, `gsd_table`, `pairs`, ...) and tables of questions. Of a file of
    more than `MAX_DIGESTED_BYTES` the size stands for its content. Price: images and the publishers' own tables, which no
    option names, are not looked at, since to read them all would take as long as the import.
    """
    sources, _ = find_sources(config)
    files = {f"sources.{name}.{key}": path for name, source in sources.items() for key, path in _tables(source)}
    if config.drop is not None:
        files["drop"] = config.drop
    return {f"sources.{name}": "present" for name in sources} | {name: _digest(path) for name, path in files.items()}


def _tables(source: Source) -> Iterator[tuple[str, Path]]:
    for option in (f.name for f in fields(source) if f.name not in ("root", "work")):
        value = getattr(source, option)
        if isinstance(value, Path) and value.is_file():
            yield option, value
    for name in QUESTION_TABLES:
        if (source.root / name).is_file():
            yield name, source.root / name


def _digest(path: Path) -> str:
    if not path.is_file():
        return "absent"
    size = path.stat().st_size
    return sha256_of(path) if size <= MAX_DIGESTED_BYTES else f"{size} bytes"


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | Path):
        raise ConfigError("is a path, as text", field=name, value=value, remedy="put it in quotes")
    return Path(value)


def imported(
    records: Iterable[Found | Rejected],
    *,
    boundaries: TierBoundaries,
    max_pixels: int = MAX_PIXELS,
    drop: frozenset[str] = frozenset(),
) -> Iterator[tuple[Imported | Rejected, Resolution | None]]:
    """Finishes a stream of records one by one, in order; those of an image in `drop` become rejections."""
    for record in records:
        if isinstance(record, Found) and record.image_id in drop:
            record = dropped(record)
        yield (
            (record, None)
            if isinstance(record, Rejected)
            else finish(record, boundaries=boundaries, max_pixels=max_pixels)
        )


def import_archives(config: ArchivesConfig, out: Path) -> Tally:
    """Writes the corpus into the folder `out` and returns the counts.

    Raises:
        ConfigError: a source is missing or wrong, or nothing was written.
        SampleError: a table breaks off.
        QuarantineLimitError: too large a share of a source failed.
    """
    sources, skipped = find_sources(config)
    drop = read_drop(config.drop) if config.drop else frozenset[str]()
    out.mkdir(parents=True, exist_ok=True)
    tally = Tally(max_bad_share=config.max_bad_share, quarantine=out / QUARANTINE_NAME, skipped=skipped)
    boundaries = TierBoundaries()
    with (
        ShardWriter(
            out, corpus=config.corpus, boundaries=boundaries, samples_per_shard=config.samples_per_shard
        ) as writer,
        open_books(out, tally) as books,
        progress_bar(transient=True) as progress,
    ):
        for name, source in sources.items():
            task = progress.add_task(name, total=None)
            stream = imported(source.records(), boundaries=boundaries, max_pixels=config.max_pixels, drop=drop)
            for entry, resolution in stream:
                filed = books.file(writer, entry)
                if isinstance(filed, Rejected):
                    tally.judge(filed.source, filed.reason, final=False)
                elif resolution is not None:
                    tally.inject.add(filed.sample.image_id, resolution)
                progress.advance(task)
            progress.update(task, total=progress.tasks[task].completed)
        tally.close()
    write_counts(out, tally.as_dict())
    warn_of_unmatched(drop, out / QUARANTINE_NAME)
    return tally


def build(config: dict[str, Any], out: Path) -> Path:
    """Entry of the corpus registry; prints the summary and returns the folder `out`."""
    tally = import_archives(ArchivesConfig.from_dict(config), out)
    screen = console(stderr=True)
    screen.print(tally.table())
    if tally.n_rejected:
        screen.print(f"{tally.n_rejected} left out: reasons in {QUARANTINE_NAME} beside the shards", soft_wrap=True)
    return out
