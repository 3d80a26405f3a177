"""`python -m scaleearth_pl.evaluation.rsvqa score FILE --matcher NAME`: what is anybody's RSVQA predictions file worth?

`... table EVALUATION...` sets our own evaluations side by side (`table.py`); the rest is about `score`.

FILE is JSON, JSON lines or CSV, gzip or not (`files.py`), with question, ground truth, prediction and type under their
usual names (`columns.py`). A missing type is read off the question. Prints a table per matcher and then one JSON document,
with what was dropped or repaired, and the majority floor beside every number. `--matcher all` sets the five published rules
side by side: the spread between them is the price of not naming one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import write_json
from scaleearth_pl.evaluation.rsvqa.columns import NAMES
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS, matcher
from scaleearth_pl.evaluation.rsvqa.metric import CAVEAT
from scaleearth_pl.evaluation.rsvqa.rows import DROPS, Table, read_table
from scaleearth_pl.evaluation.rsvqa.score import KNOWN_SIZES, MatcherScore, score_table, score_under_all
from scaleearth_pl.evaluation.rsvqa.table import write_table
from scaleearth_pl.evaluation.tables import percent


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.command == "table":
        text = write_table(args.evaluations, out=args.out, split=args.split)
        console().print(text if args.out is None else f"{args.out}", soft_wrap=True, highlight=False)
        return 0
    table = read_table(args.file, chosen=_chosen(args.column))
    if args.matcher == "all":
        scores = [*score_under_all(table, dataset=args.dataset).values()]
    else:
        scores = [score_table(table, matcher(args.matcher), dataset=args.dataset)]
    document = report(table, scores, split=args.split)
    if args.out:
        _write(args.out, document)
    if args.format != "json":
        for one in tables(document):
            console().print(one)
    if args.format != "table":
        console().print(json.dumps(document, indent=2), soft_wrap=True, highlight=False)
    return 0


def report(table: Table, scores: Sequence[MatcherScore], *, split: str | None = None) -> dict[str, Any]:
    """The whole truth about a file as plain data: what was read, dropped, repaired, and every score."""
    types = frozenset(row.type for row in table.rows)
    return {
        "file": str(table.path),
        "split": split or KNOWN_SIZES.get((len(table.rows), types), "not stated"),
        "types_kept": sorted(types),
        "columns": table.columns.as_json(),
        "counts": {
            "read": table.n_read,
            "scored": len(table.rows),
            "dropped": {reason: table.dropped[reason] for reason in DROPS},
            "notes": {name: n for name, n in sorted(table.notes.items()) if n},
            "examples_of_dropped": table.examples,
        },
        "caveat": CAVEAT,
        "matchers": {score.matcher: score.as_json() for score in scores},
    }


def tables(document: dict[str, Any]) -> list[RichTable]:
    """One table a matcher."""
    return [_table(document, score) for score in document["matchers"].values()]


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_json(path, document)
    except OSError as error:
        raise ConfigError(
            f"the scores cannot be written: {error}", file=path, field="out", remedy="--out FILE"
        ) from error


def _plain(text: object) -> str:
    """A foreign text for a table: nothing that a terminal cannot encode, not endless."""
    return str(text)[:40].encode("utf-8", "backslashreplace").decode()


def _table(document: dict[str, Any], score: dict[str, Any]) -> RichTable:
    name, counts = score["matcher"], document["counts"]
    dropped = sum(counts["dropped"].values())
    skipped = ", ".join(f"{n} {_plain(t)}" for t, n in score["skipped"].items()) or "none"
    table = RichTable(
        title=f"RSVQA, matcher {name} ({MATCHERS[name].what}), %; split: {_plain(document['split'])}",
        caption=f"{counts['read']} rows read, {dropped} dropped; left out by this matcher: {skipped}; binned as "
        f"{score['dataset'].upper()} ({score['dataset_from']}). {document['caveat']}",
    )
    table.add_column("type")
    for column in ("n", "score", "majority floor", "empty answer"):
        table.add_column(column, justify="right")
    for type_, row in score["types"].items():
        floor = f"{percent(row['majority'])} ({_plain(row['majority_class'])})"
        table.add_row(_plain(type_), str(row["n"]), percent(row["score"]), floor, percent(row["empty_answer"]))
    table.add_row("AA", "", percent(score["aa"]), percent(score["majority_aa"]), "", style="bold")
    table.add_row("OA", str(score["n"]), percent(score["oa"]), percent(score["majority_oa"]), "", style="bold")
    return table


def _chosen(pairs: Sequence[str]) -> dict[str, str]:
    chosen = dict(pair.partition("=")[::2] for pair in pairs)
    for meaning in chosen:
        if meaning not in NAMES:
            raise ConfigError(
                "a column is given as MEANING=KEY", field="column", value=meaning, remedy=f"{list(NAMES)}"
            )
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.evaluation.rsvqa", description="Scores RSVQA files.")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score a predictions file")
    score.add_argument("file", type=Path, help="JSON, JSON lines or CSV; gzip is read, too")
    score.add_argument("--matcher", required=True, choices=[*MATCHERS, "all"], help="whose rule")
    score.add_argument(
        "--dataset", choices=["auto", "lr", "hr"], default="auto", help="whose bins; auto: from the file"
    )
    score.add_argument("--split", help="label of the split (test1, test2, ...), printed with the numbers")
    score.add_argument("--column", action="append", default=[], metavar="MEANING=KEY", help=f"meanings: {list(NAMES)}")
    score.add_argument("--format", choices=["both", "table", "json"], default="both", help="what is printed")
    score.add_argument("--out", type=Path, help="writes the JSON document there, too")
    table = commands.add_parser("table", help="matcher x GSD policy x variant of our own evaluations, as Markdown")
    table.add_argument("evaluations", type=Path, nargs="+", help="folders of `scaleearth evaluate`")
    table.add_argument("--split", default="test", help="label of the split")
    table.add_argument("--out", type=Path, help="file; what stands above the tables in an old one is kept")
    return parser
