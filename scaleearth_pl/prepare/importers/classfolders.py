"""Scene classification sets: images in folders named by their class, one question each.

`<...>/<class>/<file>`: the folder that holds an image is its class; a folder above it may name a split or a city. What
else there is to ask of such an image, `generate.py` asks (the paper's way for PatternNet and MtSCCD).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import Provenance, parse_gsd_text
from scaleearth_pl.core.sample import Question
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.prepare.importers.jsonfiles import rows_of_csv
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.source import scene_question, split_of_folder, words
from scaleearth_pl.prepare.importers.store import FileTree
from scaleearth_pl.prepare.inject import Evidence


@dataclass(frozen=True, kw_only=True)
class ClassImage:
    """What a class folder tells of one image.

    `path` is its name below the folder of classes, splits or cities; `asked` stands for the question of the class, and
    with it `label` may be empty.
    """

    source: str
    path: str
    dataset: str
    split: str
    label: str
    licence: str | None = None
    region_id: str | None = None
    asked: Question | None = None


def class_folder(name: str, not_classes: Collection[str]) -> str | None:
    """The folder that holds an image and so is its class; None where it is a split's or, in lower case, of `not_classes`."""
    folder = ("", *name.split("/"))[-2]
    return None if not folder or split_of_folder(folder) or folder.lower() in not_classes else folder


def split_of_path(name: str) -> str | None:
    """The split that a folder above an image names, or None."""
    return next((split for split in map(split_of_folder, name.split("/")[:-1]) if split), None)


def class_images(tree: FileTree, source: str, *, layout: str, not_classes: Collection[str]) -> Iterator[str | Rejected]:
    """Names of the images in class folders, and a rejection for each that lies elsewhere.

    Raises:
        ConfigError: `tree` holds no image in a class folder (and nothing that was refused and counted instead).
    """
    names = list(tree.names())
    if not tree.refused and not any(class_folder(name, not_classes) for name in names):
        raise ConfigError(
            "no image lies in a class folder", file=tree.path, value=names[:1], remedy=f"expected: {layout}"
        )
    for name in names:
        if class_folder(name, not_classes):
            yield name
        else:
            reason = f"{tree.path}: {name!r} lies in no class folder; expected: {layout}"
            yield Rejected(source=source, item=name, kind="no_questions", reason=reason)


def found_image(tree: FileTree, name: str, about: ClassImage, extra: tuple[Candidate, ...] = ()) -> Found | Rejected:
    """The record of `tree`'s image `name`."""
    image_id = f"{about.source}-{Path(about.path).with_suffix('').as_posix().replace('/', '-')}"
    image = tree.image_or_rejected(name, source=about.source, item=image_id)
    if isinstance(image, Rejected):
        return image
    evidence = Evidence(image_id=image_id, name=image.name, dataset=about.dataset, extra=extra)
    return Found(
        source=about.source,
        split=about.split,
        image_id=image_id,
        image=image,
        qas=(about.asked or scene_question(image_id, about.label),),
        evidence=evidence,
        class_label=words(about.label) or None,
        region_id=about.region_id,
        licence=about.licence,
    )


def read_gsd_table(path: Path) -> dict[str, Candidate]:
    """A user's `class,gsd_m[,gsd_lo,gsd_hi]` by class in words.

    One number is nominal; with an interval it is imprecise, sigma = half-width / sqrt(3), around the number.

    Raises:
        ConfigError: other columns, no such file, or a class twice.
        GsdError: a number that is no length, or an interval that does not rise.
    """
    table: dict[str, Candidate] = {}
    for row in rows_of_csv(path, ("class", "gsd_m")):
        label = words(row["class"] or "")
        if label in table:
            raise ConfigError("GSD table names a class twice", file=path, field="class", value=row["class"])
        table[label] = _candidate(row, path)
    return table


def _candidate(row: Mapping[str, str | None], path: Path) -> Candidate:
    gsd_m = parse_gsd_text(row["gsd_m"], field=f"{row['class']}.gsd_m", file=path)
    low, high = (row.get("gsd_lo") or "").strip(), (row.get("gsd_hi") or "").strip()
    if not low and not high:
        return Candidate(gsd_m=gsd_m, provenance=Provenance.NOMINAL, stage=Stage.RECORD, source="user:class table")
    low_m, high_m = (parse_gsd_text(t, field=f"{row['class']}.gsd_lo, gsd_hi", file=path) for t in (low, high))
    if not low_m <= gsd_m <= high_m:
        raise GsdError(
            "GSD lies outside its interval", file=path, field=str(row["class"]), value=(low_m, gsd_m, high_m)
        )
    interval = Candidate.interval(low_m, high_m, stage=Stage.RECORD, source="user:class table")
    return replace(interval, gsd_m=gsd_m)
