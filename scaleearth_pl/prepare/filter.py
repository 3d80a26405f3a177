"""Drops generated questions that break a rule, counts each rule, keeps what was dropped beside what was kept.

    python -m scaleearth_pl.prepare.filter --records work/generated.jsonl --out work/filtered.jsonl

Records come out in the order (image, factor, family, id) whatever the order in which a server answered, so that the
same set of results gives the same bytes after any number of kills, and of two equal questions the same one is kept.
Only that order is held in memory, about 200 bytes a record. A pair may break several rules: each is counted, and the
first in `RULES` is the reason on file in `<out>.rejected.jsonl`. A record is judged by its own GSD: one that was asked
under an older GSD of its image may pass here; it takes no question from those asked since, and `audit` and `merge`
leave it out. Exit status: 0, or 2 where nothing is left or the input is bad.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import QuarantineLimitError
from scaleearth_pl.prepare.filter_rules import RULES, PairInView, pair_of
from scaleearth_pl.prepare.ledger import LedgerError, open_records, read_records, whole_file
from scaleearth_pl.prepare.prompts.compose import GENERATED_FAMILIES
from scaleearth_pl.prepare.views import VIEW_FACTS, view_of_facts

DUPLICATE = "duplicate"
"""Name under which repeated questions of one view are counted; the one rule that needs a memory."""


@dataclass(kw_only=True)
class FilterReport:
    """Counts: pairs seen and kept, by rule how many broke it (a pair may break several), records without any pair."""

    seen: int = 0
    kept: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    empty_records: int = 0


def reasons(pair: PairInView) -> dict[str, str]:
    """Rules that a pair breaks, each with why, in the order of `RULES`; empty for a good pair."""
    found = {name: rule(pair) for name, rule in RULES.items()}
    return {name: why for name, why in found.items() if why is not None}


def filter_records(
    records: Iterable[dict[str, Any]],
    report: FilterReport,
    reject: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """The same records with the good pairs only; a record that loses all its pairs is left out.

    Args:
        records: of `generate`, all of one view together (`in_order`), or duplicates across families are missed.
        report: counts, added to.
        reject: gets one row {id, record_id, image_id, rule, reason, question, answer} per dropped pair.
    """
    view_key, asked = None, set[tuple[object, ...]]()
    for record in records:
        if view_key != (view_key := (record["image_id"], record["factor"])):
            asked = set()
        of_view = tuple(record.get(name) for name in VIEW_FACTS)
        report.empty_records += not record["qas"]
        kept = []
        for qa in record["qas"]:
            why = reasons(pair_of(record, qa, view_of_facts(record)))
            question = re.sub(r"\W+", " ", qa["question"].casefold()).strip()
            if (question, *of_view) in asked:
                why[DUPLICATE] = "this view has the question already"
            report.seen += 1
            report.broken.update(list(why))
            if why:
                rule, reason = next(iter(why.items()))
                facts = {"id": qa["id"], "record_id": record["id"], "image_id": record["image_id"]}
                reject({**facts, "rule": rule, "reason": reason, "question": qa["question"], "answer": qa["answer"]})
                continue
            asked.add((question, *of_view))
            kept.append(qa)
        report.kept += len(kept)
        if kept:
            yield {**record, "qas": kept}


def in_order(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a ledger by (image, factor, family, id), read twice instead of held.

    Raises:
        LedgerError: the file cannot be read, or a record lacks these fields.
    """
    order, offset = [], 0
    with open_records(path) as stream:
        for record, line in zip(read_records(path), stream, strict=False):
            try:
                key = (record["image_id"], record["factor"], GENERATED_FAMILIES.index(record["family"]), record["id"])
            except (KeyError, ValueError) as error:
                raise LedgerError(
                    f"record is none of `generate`: {error!r}", file=path, field="id", value=record["id"]
                ) from error
            order.append((key, offset, len(line)))
            offset += len(line)
        order.sort()
        for _, start, length in order:
            stream.seek(start)
            yield json.loads(stream.read(length))


def filter_file(records: Path, out: Path) -> FilterReport:
    """Filters a ledger into `out` and `<out>.rejected.jsonl`, both written whole or not at all.

    Raises:
        LedgerError: broken input.
        QuarantineLimitError: no pair is left.
    """
    report = FilterReport()
    with whole_file(out) as keep, whole_file(rejected_path(out)) as reject:
        for record in filter_records(in_order(records), report, reject):
            keep(record)
    if not report.kept:
        raise QuarantineLimitError(
            f"none of {report.seen} pairs is left {dict(report.broken)}",
            file=rejected_path(out),
            remedy="read the reasons there: a prompt or the class labels may be wrong",
        )
    return report


def rejected_path(out: Path) -> Path:
    """Where the dropped pairs of `out` lie."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.rejected.jsonl")


def report_table(report: FilterReport) -> Table:
    """Counts for people."""
    table = Table(title=f"kept {report.kept:,} of {report.seen:,} pairs; {report.empty_records:,} records were empty")
    table.add_column("rule")
    table.add_column("pairs that break it", justify="right")
    for rule in (*RULES, DUPLICATE):
        table.add_row(rule, f"{report.broken[rule]:,}")
    return table


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.prepare.filter", description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=Path, required=True, help="ledger of `generate`")
    parser.add_argument("--out", type=Path, required=True, help="file of what is kept")
    args = parser.parse_args(argv)
    console().print(report_table(filter_file(args.records, args.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
