r"""Questions from images and class labels by a vision-language model, conditioned on what the GSD shows.

    python -m scaleearth_pl.prepare.generate --corpus data_shards/patternnet --out work/generated.jsonl \
        --base-url http://localhost:8000/v1 --model Qwen/Qwen3-VL-32B-Instruct --concurrency 64

One request = one view of an image and one family (identification, scale_specific, discriminative). Three short requests
instead of one long: each is validated, repeated and quarantined for itself, and the long rules are in the server's
prefix cache. A view is the image, or its area average by a whole factor (`--coarsen 4 16`): the same place at a coarser
GSD, asked what can be seen there. Images of unknown GSD get no scale-specific questions and no coarse views.

Results are a ledger (`ledger.py`): run the same command again after a kill, a crash or a full disk, and only what is
missing is asked. Failures lie beside it in `<out>.failed.jsonl`. Exit status: 0 all there, 3 done but some items were
quarantined, 2 stopped by an error. `filter`, `audit` and `merge` turn the file into shards.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scaleearth_pl.core.console import command
from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.chat import ChatConfig
from scaleearth_pl.prepare.job_cli import add_job_arguments, run_command
from scaleearth_pl.prepare.jobs import Job, broken_job, make_job
from scaleearth_pl.prepare.prompts.compose import GENERATED_FAMILIES, generation_prompt
from scaleearth_pl.prepare.replies import GeneratedPairs, parse_pairs, reply_schema
from scaleearth_pl.prepare.views import check_factors, coarse_image, facts_of, view_of

GENERATED_SCHEMA = "scaleearth-generated/1"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to ask.

    Args:
        corpus: folder of `index.json`; a sample without a class label is asked about too, and the prompt says so.
        splits: splits of that corpus.
        sources: sources of that corpus, () for all; those that bring questions of their own need none.
        families: of "identification", "scale_specific", "discriminative".
        questions: pairs per request at most.
        coarsen: factors of area averaging, beside the image itself.
        limit: first images only, for trials.
    """

    corpus: Path
    splits: tuple[str, ...] = ("train",)
    sources: tuple[str, ...] = ()
    families: tuple[str, ...] = GENERATED_FAMILIES
    questions: int = 2
    coarsen: tuple[int, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        check_factors(self.coarsen)
        if not 1 <= self.questions <= 8:
            raise ConfigError("pairs per request lie in 1 to 8", field="questions", value=self.questions)
        if self.limit is not None and self.limit < 1:
            raise ConfigError("must be at least 1", field="limit", value=self.limit, remedy="leave it out for all")
        for family in self.families:
            if family not in GENERATED_FAMILIES:
                raise ConfigError("unknown family", field="families", value=family, remedy=f"use {GENERATED_FAMILIES}")


def plan_size(config: GenerateConfig) -> int:
    """Requests at most: small images and those of unknown GSD have fewer."""
    return len(_rows(ShardIndex.load(config.corpus), config)) * len(config.families) * (1 + len(config.coarsen))


def plan(config: GenerateConfig, chat: ChatConfig) -> Iterator[Job]:
    """Jobs in index order, read lazily; the same for the same corpus, prompts and settings.

    A sample that cannot be read gives one job that fails with the reason.

    Raises:
        ShardError: a shard is missing or cut.
        IndexSchemaError: the corpus has no index, or no such split.
        ConfigError: it has no such source.
    """
    index = ShardIndex.load(config.corpus)
    reader = ShardReader(index)
    for row in _rows(index, config):
        try:
            sample, data = reader.read(row)
        except (SampleError, GsdError) as error:
            facts = {"schema": GENERATED_SCHEMA, "image_id": index.text["image_id"][row], "where": index.where(row)}
            yield broken_job(facts, error)
            continue
        yield from _jobs_of(sample, data, index, row, config, chat)


def _rows(index: ShardIndex, config: GenerateConfig) -> list[int]:
    """Rows to ask about: samples of one image, as the prompts have it; change pairs keep their own questions."""
    source = index.text["source"]
    if unknown := sorted(set(config.sources) - set(source)):
        known = ", ".join(sorted(set(source)))
        raise ConfigError("corpus has no such source", file=index.root, field="sources", value=unknown[0], remedy=known)
    rows = (row for row in index.rows(config.splits).tolist() if row not in index.later)
    return [row for row in rows if not config.sources or source[row] in config.sources][: config.limit]


def _jobs_of(
    sample: Sample, data: bytes, index: ShardIndex, row: int, config: GenerateConfig, chat: ChatConfig
) -> Iterator[Job]:
    digest, size = hashlib.sha256(data).hexdigest(), (sample.width, sample.height)
    schema = reply_schema(GeneratedPairs)
    for factor in (1, *config.coarsen):
        view = view_of(sample, factor, index.boundaries)
        if view is None:
            continue
        image = partial(coarse_image, data, index.text["ext"][row], size=size, factor=factor, where=index.where(row))
        for family in config.families:
            if family == "scale_specific" and view.gsd_m is None:
                continue
            prompt = generation_prompt(view, family, n_questions=config.questions)
            facts = facts_of(sample, view, factor=factor, image_sha256=digest)
            facts |= {"schema": GENERATED_SCHEMA, "family": family}
            yield make_job(facts, prompt, image, schema, parse_pairs, chat)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scaleearth_pl.prepare.generate", description=__doc__.split("\n")[0]
    )
    add_job_arguments(parser)
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits to ask about")
    parser.add_argument(
        "--sources", nargs="+", default=[], help="sources to ask about, such as patternnet; default all"
    )
    parser.add_argument(
        "--families", nargs="+", default=list(GENERATED_FAMILIES), choices=GENERATED_FAMILIES, help="kinds of questions"
    )
    parser.add_argument("--questions", type=int, default=2, help="pairs per request at most")
    parser.add_argument("--coarsen", type=int, nargs="*", default=[], help="factors of area averaging, such as 4 16")
    parser.add_argument("--limit", type=int, help="first images only")
    args = parser.parse_args(argv)

    def jobs(chat: ChatConfig) -> tuple[Iterator[Job], int]:
        config = GenerateConfig(
            corpus=args.corpus,
            splits=tuple(args.splits),
            sources=tuple(args.sources),
            families=tuple(args.families),
            questions=args.questions,
            coarsen=tuple(args.coarsen),
            limit=args.limit,
        )
        return plan(config, chat), plan_size(config)

    return run_command(args, jobs, what="generate")


if __name__ == "__main__":
    raise SystemExit(main())
