r"""Generated questions back into shards, beside the questions that the corpus had.

    python -m scaleearth_pl.prepare.merge --corpus data_shards/patternnet --records work/filtered.jsonl \
        [--audit work/audit.jsonl] --out data_shards/patternnet_qa

An image that was asked about at coarser GSDs becomes several samples `<image_id>@x<factor>` of one place; their
questions are those generated for that very GSD, never the fine image's. A record of another image, size, GSD or class
than the corpus has now under that id is left out and counted by what has changed: its answers ("6 m") were true at the
GSD of then. `generate` asks such views anew, so a ledger may well hold both.

With `--audit`, pairs that failed an axis are dropped, and so are pairs that were not judged unless `--keep-unjudged`.
Images that end without a question are left out, unreadable ones are counted and fatal past a share. Samples come in
index order: equal inputs give equal bytes, in whatever order the server answered. Exit status: 0, 3 where images were
unreadable or records stale, 2 where an error stopped it.
"""

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError, GsdError, QuarantineLimitError, SampleError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.images import StoredImage
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.agreement import ALL_AXES, verdicts_of
from scaleearth_pl.prepare.filter import in_order
from scaleearth_pl.prepare.ledger import read_records
from scaleearth_pl.prepare.views import VIEW_FACTS, coarse_image, coarse_sample, stale_fact, view_of
from scaleearth_pl.prepare.write import ShardWriter

Facts = tuple[Any, ...]
"""What a record says of its view, as `VIEW_FACTS` names it."""

Asked = dict[str, dict[Facts, list[Question]]]
"""Image id to facts of a view to the questions that were generated under these facts."""

Questions = dict[int, list[Question]]
"""Factor of area averaging to the generated questions of one image."""

Written = tuple[Sample, bytes, str, tuple[tuple[bytes, str], ...]]
"""What `ShardWriter.write` takes: sample, image, extension, and the further images of a pair."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What goes into the new corpus.

    Args:
        corpus: folder that the records were generated from.
        records: what `filter` kept.
        audit: ledger of `audit`; None takes every pair.
        keep_unjudged: with an audit of a share only, keep the pairs that nobody judged.
        keep_own: keep the questions that the corpus had; an image without generated ones is then written too.
        max_bad_share: share of unreadable images that is tolerated.
    """

    corpus: Path
    records: Path
    audit: Path | None = None
    keep_unjudged: bool = False
    keep_own: bool = True
    max_bad_share: float = 0.01


@dataclass(kw_only=True)
class MergeReport:
    """Samples written, generated questions among theirs, stale ones by what has changed, and why images were left out."""

    samples: int = 0
    generated: int = 0
    stale: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def read_questions(config: MergeConfig) -> Asked:
    """Generated questions by image and view, without those that the audit failed."""
    verdicts = verdicts_of(read_records(config.audit)) if config.audit else None
    found: Asked = defaultdict(lambda: defaultdict(list))
    for record in in_order(config.records):
        facts = tuple(record.get(name) for name in VIEW_FACTS)
        for qa in record["qas"]:
            verdict = None if verdicts is None else verdicts.get(qa["id"])
            passes = config.keep_unjudged or verdicts is None if verdict is None else verdict[ALL_AXES]
            if passes:
                found[record["image_id"]][facts].append(_question(record["family"], qa))
    return found


def merged(index: ShardIndex, questions: Asked, *, keep_own: bool, report: MergeReport) -> Iterator[Written]:
    """The samples of the new corpus, in index order, finest view first; change pairs go through as they are.

    Raises:
        ConfigError: a question belongs to an image that the corpus does not hold.
        ShardError: a shard is missing or cut.
    """
    strangers = sorted(set(questions) - set(index.text["image_id"]))
    if strangers:
        raise ConfigError("corpus does not hold this image", file=index.root, field="image_id", value=strangers[0])
    reader = ShardReader(index)
    for row in range(len(index)):
        asked = questions.get(index.text["image_id"][row], {})
        if not asked and not keep_own:
            continue
        try:
            sample, images = reader.read_all(row)
            of_image = _fresh(sample, images[0], asked, index.boundaries, report)
            views = _views(sample, images, of_image, keep_own, index.boundaries)
        except (SampleError, GsdError) as error:
            report.unreadable.append(str(error))
            continue
        report.samples += len(views)
        report.generated += sum(len(of_view) for of_view in of_image.values())
        yield from views


def merge(config: MergeConfig, out: Path, *, overwrite: bool = False) -> MergeReport:
    """Writes the new corpus.

    Raises:
        QuarantineLimitError: more than `max_bad_share` of the images cannot be read; the corpus is not finished then.
        ConfigError, ShardError: as `merged`; `DiskSpaceError` as `ShardWriter`.
    """
    index, questions, report = ShardIndex.load(config.corpus), read_questions(config), MergeReport()
    text = json.dumps([index.hash, config.keep_own, _plain(questions)], sort_keys=True)
    with ShardWriter(
        out,
        corpus=out.name,
        boundaries=index.boundaries,
        content_hash=hashlib.sha256(text.encode()).hexdigest(),
        overwrite=overwrite,
    ) as writer:
        for sample, data, ext, later in merged(index, questions, keep_own=config.keep_own, report=report):
            writer.write(sample, data, ext, later=later)
        if len(report.unreadable) > config.max_bad_share * len(index):
            raise QuarantineLimitError(
                f"{len(report.unreadable)} of {len(index)} images cannot be read, the first: {report.unreadable[0]}",
                file=config.corpus,
                field="max_bad_share",
                value=config.max_bad_share,
            )
    return report


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.prepare.merge", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder that the records were generated from")
    parser.add_argument("--records", type=Path, required=True, help="what `filter` kept")
    parser.add_argument("--audit", type=Path, help="ledger of `audit`: what failed is dropped")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new corpus")
    parser.add_argument("--keep-unjudged", action="store_true", help="keep pairs that the audit did not judge")
    parser.add_argument("--only-generated", action="store_true", help="drop the questions that the corpus had")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is already there")
    args = parser.parse_args(argv)
    config = MergeConfig(
        corpus=args.corpus,
        records=args.records,
        audit=args.audit,
        keep_unjudged=args.keep_unjudged,
        keep_own=not args.only_generated,
    )
    report = merge(config, args.out, overwrite=args.overwrite)
    screen = console()
    screen.print(f"{report.samples:,} samples with {report.generated:,} generated questions in {args.out}")
    for fact, n in sorted(report.stale.items()):
        screen.print(f"  left out: {n:,} questions that were asked under another {fact} than the corpus has now")
    for reason in report.unreadable:
        screen.print(f"  left out: {reason}", soft_wrap=True)
    return 3 if report.unreadable or report.stale else 0


def _fresh(
    sample: Sample,
    image: StoredImage,
    asked: dict[Facts, list[Question]],
    boundaries: TierBoundaries,
    report: MergeReport,
) -> Questions:
    """Questions that were asked of the image as it is now, under the GSD that it has now; the others are counted."""
    digest = hashlib.sha256(image.data).hexdigest() if asked else ""
    found: Questions = defaultdict(list)
    for facts, questions in asked.items():
        record = dict(zip(VIEW_FACTS, facts, strict=True))
        changed = stale_fact(record, sample, boundaries, image_sha256=digest)
        if changed is None:
            found[record["factor"]] += questions
        else:
            report.stale[changed] += len(questions)
    return found


def _views(
    sample: Sample,
    images: Sequence[StoredImage],
    of_image: Questions,
    keep_own: bool,
    boundaries: TierBoundaries,
) -> list[Written]:
    for image in images:
        image.rgb()
    data, ext, size, where = images[0].data, images[0].ext, images[0].size, images[0].where
    later = tuple((image.data, image.ext) for image in images[1:])
    if later and of_image:
        raise SampleError("questions were generated for a sample of several images", file=where, field="n_images")
    place_id = sample.place_id or (sample.image_id if any(k > 1 for k in of_image) else None)
    qas = (*(sample.qas if keep_own else ()), *of_image.get(1, ()))
    found = [(replace(sample, qas=qas, place_id=place_id), data, ext, later)] if qas else []
    for factor in sorted(set(of_image) - {1}):
        view = view_of(sample, factor, boundaries)
        if view is None:
            raise SampleError("image is too small for this factor", file=where, field="factor", value=factor)
        averaged = coarse_image(data, ext, size=size, factor=factor, where=where)
        coarse = replace(coarse_sample(sample, view, factor), qas=tuple(of_image[factor]))
        found.append((coarse, averaged.data, averaged.ext, ()))
    return found


def _plain(questions: Asked) -> list[Any]:
    return [
        [image_id, facts, [asdict(question) for question in of_view]]
        for image_id, asked in sorted(questions.items())
        for facts, of_view in asked.items()  # in the order of `in_order`
    ]


def _question(family: str, qa: dict[str, Any]) -> Question:
    return Question(
        id=qa["id"],
        type=qa["type"],
        family=family,
        question=qa["question"],
        answer=qa["answer"],
        options=tuple(qa["options"]) if qa["options"] else None,
    )


if __name__ == "__main__":
    raise SystemExit(main())
