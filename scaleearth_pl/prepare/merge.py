r"""Generated questions back into shards, beside the questions that the corpus had.

    python -m scaleearth_pl.prepare.merge --corpus data_shards/patternnet --records work/filtered.jsonl \
        [--audit work/audit.jsonl] --out data_shards/patternnet_qa

An image that was asked about at coarser GSDs becomes several samples `<image_id>@x<factor>` of one place; their questions
are those generated for that very GSD, never the fine image's. With `--audit`, pairs that failed an axis are dropped, and
so are pairs that were not judged unless `--keep-unjudged`. Only splits that have records are written, in index order:
equal inputs give equal bytes, in whatever order the server answered.
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from scaleearth_pl.core.errors import ConfigError, ScaleEarthError
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.agreement import ALL_AXES, verdicts_of
from scaleearth_pl.prepare.filter import in_order
from scaleearth_pl.prepare.ledger import read_records
from scaleearth_pl.prepare.views import coarse_image, coarse_sample, view_of
from scaleearth_pl.prepare.write import ShardWriter

Questions = dict[str, dict[int, list[Question]]]
"""Image id to factor of area averaging to generated questions."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What goes into the new corpus.

    Args:
        corpus: folder that the records were generated from.
        records: what `filter` kept.
        audit: ledger of `audit`; None takes every pair.
        keep_unjudged: with an audit of a share only, keep the pairs that nobody judged.
        keep_own: keep the questions that the corpus had; an image without generated ones is then written too.
    """

    corpus: Path
    records: Path
    audit: Path | None = None
    keep_unjudged: bool = False
    keep_own: bool = True


def read_questions(config: MergeConfig) -> Questions:
    """Generated questions by image and factor, without those that the audit failed."""
    verdicts = verdicts_of(read_records(config.audit)) if config.audit else None
    found: Questions = defaultdict(lambda: defaultdict(list))
    for record in in_order(config.records):
        for qa in record["qas"]:
            verdict = None if verdicts is None else verdicts.get(qa["id"])
            passes = config.keep_unjudged or verdicts is None if verdict is None else verdict[ALL_AXES]
            if passes:
                found[record["image_id"]][record["factor"]].append(_question(record["family"], qa))
    return found


def merged(config: MergeConfig) -> Iterator[tuple[Sample, bytes, str]]:
    """(sample, image bytes, extension) of the new corpus, in index order, finest view first.

    Raises:
        ConfigError: a record speaks of an image that the corpus does not hold.
        SampleError: an image cannot be read.
    """
    index = ShardIndex.load(config.corpus)
    reader, questions = ShardReader(index), read_questions(config)
    strangers = sorted(set(questions) - set(index.text["image_id"]))
    if strangers:
        raise ConfigError("corpus does not hold this image", file=config.corpus, field="image_id", value=strangers[0])
    splits = {shard.split for shard in index.shards for row in range(shard.start, shard.stop)
              if index.text["image_id"][row] in questions}  # fmt: skip
    for row in index.rows(tuple(sorted(splits))).tolist():
        sample, data = reader.read(row)
        of_image = questions.get(sample.image_id, {})
        own = sample.qas if config.keep_own else ()
        if any(factor > 1 for factor in of_image):
            sample = replace(sample, place_id=sample.place_id or sample.image_id)
        if own or 1 in of_image:
            yield replace(sample, qas=(*own, *of_image.get(1, ()))), data, index.text["ext"][row]
        for factor in sorted(set(of_image) - {1}):
            view = view_of(sample, factor, index.boundaries)
            if view is None:
                raise ConfigError("image is too small for this factor", file=index.where(row), value=factor)
            size = (sample.width, sample.height)
            ext, where = index.text["ext"][row], index.where(row)
            image = coarse_image(data, ext, size=size, factor=factor, where=where)
            coarse = replace(coarse_sample(sample, view, factor), qas=tuple(of_image[factor]))
            yield coarse, image.data, image.ext


def merge(config: MergeConfig, out: Path, *, overwrite: bool = False) -> int:
    """Writes the new corpus and returns the number of its samples; raises as `merged` and `ShardWriter` do."""
    index = ShardIndex.load(config.corpus)
    digest = hashlib.sha256(index.hash.encode())
    for path in (config.records, config.audit):
        lines = sorted(path.read_bytes().splitlines()) if path else []
        digest.update(hashlib.sha256(b"\n".join(lines)).digest())
    digest.update(f"{config.keep_unjudged} {config.keep_own}".encode())
    n = 0
    with ShardWriter(
        out,
        corpus=out.name,
        boundaries=index.boundaries,
        content_hash=digest.hexdigest(),
        overwrite=overwrite,
    ) as writer:
        for sample, data, ext in merged(config):
            writer.write(sample, data, ext)
            n += 1
    return n


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
    try:
        n = merge(config, args.out, overwrite=args.overwrite)
    except ScaleEarthError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/red]: {error}", soft_wrap=True)
        return 2
    Console().print(f"{n} samples in {args.out}")
    return 0


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
