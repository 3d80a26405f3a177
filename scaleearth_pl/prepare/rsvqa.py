"""RSVQA LR and HR (official layout) into shards: one sample per image with all its questions.

    python -m scaleearth_pl.prepare.rsvqa --root DIR --out data_shards/rsvqa

`--root` holds `rsvqa_lr/` and `rsvqa_hr/`, or the official archives unpacked side by side (`Images_LR/`, `Data/` and
the JSON files). The TIFF's own bytes go into the shard: decoding and writing PNG would triple the size and teach
nothing. Every image is nevertheless decoded once, so that a broken one is found now and not in the middle of a run.

`test_phili` is imported only where `--splits` names it, and as its own source (`rsvqa_hr_phili`). RSVQAxBEN (JSON of
several GB) is not read by this importer. RSVQA holds two GSDs: no evidence about continuity. What was decided about
GSD, families and places: `rsvqa_samples.py`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.settings import refuse_unknown
from scaleearth_pl.prepare.rsvqa_files import (
    KINDS,
    PARTS,
    Part,
    content_hash,
    json_file,
    locate,
    read_split,
)
from scaleearth_pl.prepare.rsvqa_samples import decoded_size, to_sample
from scaleearth_pl.prepare.write import ShardWriter


@dataclass(frozen=True, kw_only=True)
class RsvqaConfig:
    """What to import.

    Args:
        root: folder of the raw files; its `rsvqa_lr/`, `rsvqa_hr/` or the unpacked archives themselves.
        parts: of "lr" and "hr"; None takes those that `root` holds.
        splits: of "train", "val", "test", "test_phili" (HR only).
        min_questions: images with fewer questions are left out and counted.
        samples_per_shard: images in one tar file.
        corpus: name written to the index.
        overwrite: replace a corpus that is already there; otherwise it is refused.
    """

    root: Path
    parts: tuple[str, ...] | None = None
    splits: tuple[str, ...] = ("train", "val", "test")
    min_questions: int = 1
    samples_per_shard: int = 512
    corpus: str = "rsvqa"
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in self.parts or ():
            if name not in PARTS:
                raise ConfigError("unknown part of RSVQA", field="parts", value=name, remedy=f"use {', '.join(PARTS)}")
        known = {s for p in PARTS.values() for s in p.splits}
        for split in self.splits:
            if split not in known:
                raise ConfigError(
                    "unknown split", field="splits", value=split, remedy=f"use {', '.join(sorted(known))}"
                )
        for name in ("min_questions", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name), remedy="give 1 or more")


@dataclass(kw_only=True)
class ImportReport:
    """What was written: images and questions by (source, split), and what was left out."""

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    questions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    orphans: int = 0
    too_few: int = 0


def import_rsvqa(config: RsvqaConfig, out: Path) -> ImportReport:
    """Writes the shards of `config` into the folder `out` and returns the counts.

    Raises:
        ConfigError: nothing to import under `root`, or a file is missing.
        SampleError: a broken JSON file, row or image.
        GsdError: a resolution that is no length.
    """
    jobs = list(_jobs(config))
    files = (json_file(folder, part, split, kind) for part, folder, split in jobs for kind in KINDS)
    report = ImportReport()
    boundaries = TierBoundaries()
    with ShardWriter(
        out,
        corpus=config.corpus,
        boundaries=boundaries,
        samples_per_shard=config.samples_per_shard,
        content_hash=content_hash(files),
        overwrite=config.overwrite,
    ) as writer:
        for part, folder, split in jobs:
            _import_split(writer, boundaries, config.min_questions, part, folder, split, report)
    return report


def build(config: dict[str, Any], out: Path) -> Path:
    """Entry of the corpus registry (`kind: rsvqa`): keys are those of `RsvqaConfig`; returns the folder `out`.

    Raises:
        ConfigError: an unknown key, no `root`, or what `import_rsvqa` raises.
    """
    given = {k: v for k, v in config.items() if k not in ("kind", "out")}
    refuse_unknown(given, RsvqaConfig)
    if not given.get("root"):
        raise ConfigError("RSVQA needs the folder of its raw files", field="root", remedy="set RSVQA_ROOT=DIR")
    given["root"] = Path(given["root"])
    for name in ("parts", "splits"):
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    console(stderr=True).print(report_table(import_rsvqa(RsvqaConfig(**given), out)))
    return out


def report_table(report: ImportReport) -> Table:
    """Counts per source and split, as a table for people."""
    types = sorted({t for _, _, t in report.questions})
    title = f"RSVQA import: left out {report.too_few} images with too few questions, {report.orphans} orphan questions"
    table = Table(title=title)
    for name in ("source", "split", "images", "questions", *types):
        table.add_column(name, justify="left" if name in ("source", "split") else "right")
    for (source, split), n_images in report.images.items():
        by_type = [report.questions[source, split, t] for t in types]
        table.add_row(source, split, str(n_images), str(sum(by_type)), *map(str, by_type))
    return table


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.prepare.rsvqa", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of rsvqa_lr/ and rsvqa_hr/, or unpacked archives"
    )
    parser.add_argument("--out", type=Path, default=Path("data_shards/rsvqa"), help="folder of the shards")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="default: those that the root holds")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "val", "test"],
        choices=list(PARTS["hr"].splits),
        help="splits to import",
    )
    parser.add_argument("--min-questions", type=int, default=1, help="leave out images with fewer questions")
    parser.add_argument("--samples-per-shard", type=int, default=512, help="images in one tar file")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is already there")
    args = parser.parse_args(argv)
    config = RsvqaConfig(
        root=args.root,
        parts=tuple(args.parts) if args.parts else None,
        splits=tuple(args.splits),
        min_questions=args.min_questions,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    console().print(report_table(import_rsvqa(config, args.out)))
    return 0


def _jobs(config: RsvqaConfig) -> Iterator[tuple[Part, Path, str]]:
    found = {name: locate(config.root, part) for name, part in PARTS.items()}
    names = config.parts or tuple(name for name, folder in found.items() if folder is not None)
    missing = [name for name in names if found[name] is None]
    if missing or not names:
        raise ConfigError(
            f"no RSVQA {'/'.join(missing or PARTS).upper()} files under the root",
            field="root",
            value=str(config.root),
            remedy="give a folder that holds rsvqa_lr/ and rsvqa_hr/, or the JSON files beside Images_LR/ and Data/",
        )
    for name in names:
        folder = found[name]
        assert folder is not None
        for split in config.splits:
            if split in PARTS[name].splits:
                yield PARTS[name], folder, split


def _import_split(
    writer: ShardWriter,
    boundaries: TierBoundaries,
    min_questions: int,
    part: Part,
    folder: Path,
    split: str,
    report: ImportReport,
) -> None:
    raw = read_split(folder, part, split)
    report.orphans += raw.orphans
    for image in raw.images:
        questions = raw.questions_of.get(image.id, [])
        if len(questions) < min_questions:
            report.too_few += 1
            continue
        image_bytes = image.path.read_bytes()
        sample = to_sample(part, split, image, questions, decoded_size(image.path, image_bytes), boundaries)
        writer.write(sample, image_bytes, ext="tif")
        report.images[sample.source, split] += 1
        report.questions.update((sample.source, split, q.type) for q in questions)


if __name__ == "__main__":
    raise SystemExit(main())
