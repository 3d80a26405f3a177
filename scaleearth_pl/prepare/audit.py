r"""A second model looks at the image and judges each generated pair on four axes, with reasons.

    python -m scaleearth_pl.prepare.audit --corpus data_shards/patternnet --records work/filtered.jsonl \
        --out work/audit.jsonl --provider anthropic --model MODEL --api-key-env ANTHROPIC_API_KEY [--share 0.05]

Axes (the paper's pipeline C, names ours): answerable from the image, right for the scale, consistent with the facts,
well formed. The auditor sees the same view (the same area averaging) and its GSD, but neither the class label nor the
generator's evidence, which would talk it into agreeing. A pair passes if all four do.

Price: an auditor of the same family as the generator shares its blind spots, so agreement between the two is no proof;
`agreement.py` measures two auditors against each other, and `audit_sheet.py` puts a sample before a person. A record
that was asked under another GSD, image or class than the corpus has now is not paid for: it is counted and left out, as
`merge` does. Resumable like `generate`, same exit status. `--share` takes records by hash of their id: the same ones on
every run.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.chat import ChatConfig
from scaleearth_pl.prepare.job_cli import add_job_arguments, run_command
from scaleearth_pl.prepare.jobs import Job, broken_job, make_job
from scaleearth_pl.prepare.ledger import LedgerError, read_records
from scaleearth_pl.prepare.prompts.compose import audit_prompt
from scaleearth_pl.prepare.replies import AuditVerdicts, parse_verdicts, reply_schema
from scaleearth_pl.prepare.views import EncodedImage, coarse_image, stale_fact, view_of_facts

AUDIT_SCHEMA = "scaleearth-audit/1"
_CARRIED = ("image_id", "source", "split", "image_sha256", "factor", "family", "tier")


class ViewReader:
    """Finds the image of a record in the corpus and encodes the record's view of it."""

    def __init__(self, corpus: Path) -> None:
        self.index = ShardIndex.load(corpus)
        self._reader = ShardReader(self.index)
        self._row_of = {image_id: row for row, image_id in enumerate(self.index.text["image_id"])}

    def bytes_of(self, record: dict[str, Any]) -> tuple[int, bytes]:
        """Row and encoded image of a record.

        Raises:
            LedgerError: the corpus has no such image, or another one under its id.
            SampleError: the image is cut or altered.
        """
        row, _, data = self.find(record)
        if hashlib.sha256(data).hexdigest() != record["image_sha256"]:
            raise LedgerError("image is not the one that was asked about", file=self.index.where(row))
        return row, data

    def find(self, record: dict[str, Any]) -> tuple[int, Sample, bytes]:
        """Row, sample and encoded image that the corpus has now under a record's id; raises as `bytes_of`."""
        row = self._row_of.get(record["image_id"])
        if row is None:
            raise LedgerError(
                "record of an image that the corpus does not hold",
                field="image_id",
                value=record["image_id"],
                remedy="name the corpus that the records were generated from",
            )
        return row, *self._reader.read(row)

    def stale(self, record: dict[str, Any], sample: Sample, data: bytes) -> str | None:
        """What the corpus says otherwise than the record, or None (`views.stale_fact`)."""
        digest = hashlib.sha256(data).hexdigest()
        return stale_fact(record, sample, self.index.boundaries, image_sha256=digest)

    def encode(self, row: int, data: bytes, factor: int) -> EncodedImage:
        """The view as it was sent; raises `SampleError` where the image does not decode."""
        size = (int(self.index.number["width"][row]), int(self.index.number["height"][row]))
        ext, where = self.index.text["ext"][row], self.index.where(row)
        return coarse_image(data, ext, size=size, factor=factor, where=where)


def in_sample(identity: str, share: float) -> bool:
    """True for about this share of ids, the same ones always."""
    return int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) < share * 2**32


def plan(corpus: Path, records: Path, share: float, chat: ChatConfig, stale: Counter[str]) -> Iterator[Job]:
    """One job a record in the file's order; records without pairs have nothing to judge.

    Args:
        corpus: that the records were generated from.
        records: ledger of `generate`, or what `filter` kept.
        share: of the records.
        chat: settings of the client.
        stale: counts, added to: records that the corpus contradicts, by what has changed.

    Raises:
        LedgerError: the records do not belong to this corpus.
    """
    n_fresh = 0
    reader, schema = ViewReader(corpus), reply_schema(AuditVerdicts)
    for record in read_records(records):
        if not record["qas"] or not in_sample(record["id"], share):
            continue
        facts = {name: record[name] for name in _CARRIED} | {"schema": AUDIT_SCHEMA, "record_id": record["id"]}
        try:
            row, sample, data = reader.find(record)
        except (SampleError, GsdError) as error:
            yield broken_job(facts, error)
            continue
        if changed := reader.stale(record, sample, data):
            stale[changed] += 1
            continue
        n_fresh += 1
        pairs = [(qa["question"], qa["answer"], qa["options"]) for qa in record["qas"]]
        prompt = audit_prompt(view_of_facts(record), pairs)
        question_ids = [qa["id"] for qa in record["qas"]]
        image = partial(reader.encode, row, data, record["factor"])
        yield make_job(facts, prompt, image, schema, partial(_parse, question_ids), chat)
    if stale and not n_fresh:
        raise LedgerError(
            "no record agrees with the corpus",
            file=records,
            value=dict(stale),
            remedy="name the corpus that the records were generated from, or generate again",
        )


def plan_size(records: Path, share: float) -> int:
    """Number of jobs of `plan`."""
    return sum(bool(record["qas"]) and in_sample(record["id"], share) for record in read_records(records))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.prepare.audit", description=__doc__.split("\n")[0])
    add_job_arguments(parser)
    parser.add_argument("--records", type=Path, required=True, help="ledger of `generate`, or what `filter` kept of it")
    parser.add_argument("--share", type=float, default=1.0, help="share of the records that is audited")
    args = parser.parse_args(argv)
    stale = Counter[str]()

    def jobs(chat: ChatConfig) -> tuple[Iterator[Job], int]:
        if not 0 < args.share <= 1:
            raise ConfigError("must lie in (0, 1]", field="share", value=args.share, remedy="1 audits everything")
        return plan(args.corpus, args.records, args.share, chat, stale), plan_size(args.records, args.share)

    status = run_command(args, jobs, what="audit")
    for fact, n in sorted(stale.items()):
        console(stderr=True).print(
            f"left out: {n:,} records that were asked under another {fact} than the corpus has now"
        )
    return status


def _parse(question_ids: Sequence[str], identity: str, text: str) -> dict[str, Any]:
    del identity
    return parse_verdicts(question_ids, text)


if __name__ == "__main__":
    raise SystemExit(main())
