"""`scaleearth evaluate RUN... --corpus DIR --split test --policy metadata predicted`: benchmark tables from checkpoints.

Every RUN (stage 2 or stage 1) is evaluated on every benchmark under every policy; what is done already is not repeated (rows
that an earlier commit evaluated are named), and what was cut off is resumed. One folder per evaluation (`run.py`) holds its
answers; `rows.jsonl` in the output folder gathers the result rows. Benchmarks are a corpus of shards (the world, RSVQA), or
local files of XLRS-Bench and OmniEarth-Bench (`--xlrs FILE...`, `--omniearth FILE...`), which have no GSD: there SSE-U
decides, and "metadata" is taken, and written down, as "predicted".
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.run_files import PREDICTIONS, ROW
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.evaluation.benchmarks import BENCHMARKS, open_benchmark
from scaleearth_pl.evaluation.benchmarks.choice import MAX_NEW_TOKENS
from scaleearth_pl.evaluation.evaluator.blind import BlindFloors
from scaleearth_pl.evaluation.evaluator.choice import evaluate_choice
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.model import Subject, load_subject
from scaleearth_pl.evaluation.evaluator.options import check_together, decoding_of, parser, pixels_of, policies_of
from scaleearth_pl.evaluation.evaluator.row import floors_table, harness_table, matcher_table, result_row, results_table
from scaleearth_pl.evaluation.evaluator.run import Decoding, finished_row, run_view
from scaleearth_pl.evaluation.evaluator.views import SPOOF_GRID_M, View, spoof_views
from scaleearth_pl.model.backbone import silence_loading

ROWS = "rows.jsonl"

Row = dict[str, Any]


def evaluate_corpus(
    subject: Subject,
    corpus: CorpusSplit,
    view: View,
    *,
    out: Path,
    decoding: Decoding | None = None,
    trained_on: Sequence[ShardIndex] = (),
    allow_leaks: bool = False,
    floors: BlindFloors | None = None,
) -> Row:
    """Evaluates one subject on one split under one view; returns its row, at once where it is done already.

    Args:
        subject: the model.
        corpus: images and questions.
        view: what the model is told of the GSD.
        out: folder of all results.
        decoding: how answers are made.
        trained_on: other corpora that the subject was trained on, for the leak guard.
        allow_leaks: count leaked images in the row instead of refusing.
        floors: shared with other evaluations of the same questions, which then cost no second reading.

    Raises:
        ConfigError: leaked images, another evaluation in the folder, or a policy that the subject cannot serve.
    """
    decoding = decoding or Decoding()
    leaked = corpus.leaked(*trained_on, trained_splits=subject.trained_splits)
    if not allow_leaks:
        corpus.refuse_leaks(leaked)
    benchmark = corpus.index.corpus
    sources = sorted(corpus.sources or ())
    folder = out / subject.folder / "-".join([benchmark, corpus.split, *sources]) / view.name
    return run_view(
        folder,
        subject=subject,
        stream=lambda done: corpus.images(subject, skip=done),
        view=view,
        plan={
            "fingerprint": subject.fingerprint,
            "corpus": corpus.index.hash,
            "split": corpus.split,
            "rows": len(corpus.rows),
            "sources": sources,
            "types": sorted(corpus.types or ()),
            **({"leaked_images": len(leaked)} if leaked else {}),
        },
        n_images=len(corpus.rows),
        unreadable=corpus.bad,
        decoding=decoding,
        describe=lambda answers: result_row(
            subject=subject,
            view=view,
            decoding=decoding,
            answers=answers,
            benchmark=benchmark,
            split=corpus.split,
            counts={
                "planned_images": len(corpus.rows),
                "unreadable_images": len(corpus.bad),
                "leaked_images": len(leaked),
            },
            floors=(floors or BlindFloors()).of(corpus.index, answers.predictions),
        ),
        boundaries=corpus.index.boundaries,
    )


def finished_rows(out: Path) -> list[Row]:
    """All finished rows below `out`."""
    return [row for file in sorted(out.glob(f"*/*/*/{ROW}")) if (row := finished_row(file.parent)) is not None]


def gather(out: Path) -> list[Row]:
    """The same, also written to rows.jsonl there."""
    rows = finished_rows(out)
    (out / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def views_of(policies: Iterable[str], spoof_grid_m: Sequence[float]) -> list[View]:
    """Views by policy name; "spoof" is one view per pseudo-GSD."""
    views: list[View] = []
    for name in policies:
        if name == "spoof":
            views += spoof_views(spoof_grid_m or SPOOF_GRID_M)
        else:
            views.append(View(policy=name))  # type: ignore[arg-type]  # which refuses what is no policy
    return views


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    args = parser().parse_args(argv)
    check_together(args)
    silence_loading()
    before = finished_rows(args.out)
    rows = _evaluate_all(args)
    console().print(results_table(rows))
    for more in (floors_table(rows), matcher_table(rows), harness_table(rows)):
        if more is not None:
            console().print(more)
    if unreadable := sum(len(row.get("unreadable", ())) for row in rows):
        console().print(f"{unreadable} could not be read and are in no number: reasons in each {ROW}")
    for line in told_of_earlier(rows, before, current_commit()):
        console().print(line)
    console().print(f"rows: {args.out / ROWS}; answers: {args.out}/<subject>/<benchmark>/<view>/{PREDICTIONS}")
    return 0


def told_of_earlier(rows: Sequence[Row], before: Sequence[Row], commit: str) -> list[str]:
    """What is to be said of answers that this call has read and not made.

    Args:
        rows: of this call.
        before: that were there when it began.
        commit: of the code that runs. One with `-dirty` is that of no particular code, and equal to none, itself included.
    """
    read = {
        (row["subject"], row["benchmark"], row["configuration"]["view"]): set(
            row.get("answered_at", [row["commit"]]) if row in before else row.get("resumed_from", [])
        )
        for row in rows
    }
    lines = []
    if earlier := sorted({c for commits in read.values() for c in commits if c != commit or _is_dirty(c)}):
        lines.append(f"read, not repeated: evaluated at {', '.join(earlier)} (this is {commit}); remove to repeat")
    if unsure := ["/".join(name) for name, commits in read.items() if any(map(_is_dirty, commits))]:
        lines.append(f"of these, uncommitted code made answers of {', '.join(unsure)}: nobody can say which")
    return lines


def _is_dirty(commit: str) -> bool:
    return commit.endswith("-dirty")


def _evaluate_all(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    floors = BlindFloors()
    for path in args.runs:
        subject = load_subject(path, base=args.base, device=args.device)
        rows += _on_corpus(subject, args, floors) if args.corpus else ()
        for name in BENCHMARKS:
            rows += _on_files(subject, name, getattr(args, name), args) if getattr(args, name) else ()
    gather(args.out)
    return rows


def _on_corpus(subject: Subject, args: argparse.Namespace, floors: BlindFloors) -> Iterable[Row]:
    trained_on = [ShardIndex.load(root) for root in args.trained_on or ()]
    for split in args.split or ("test",):
        for view in views_of(policies_of(args), args.spoof_gsd_m or ()):
            corpus = CorpusSplit.open(
                args.corpus, split, limit_images=args.limit_images, sources=args.source, types=args.type
            )
            yield evaluate_corpus(
                subject,
                corpus,
                view,
                out=args.out,
                decoding=decoding_of(args, 24),
                trained_on=trained_on,
                allow_leaks=args.allow_leaks,
                floors=floors,
            )


def _on_files(subject: Subject, name: str, files: Sequence[Path], args: argparse.Namespace) -> Iterable[Row]:
    policies = dict.fromkeys(policy if policy != "metadata" else "predicted" for policy in policies_of(args))
    every = open_benchmark(name, files, pixels=pixels_of(args))
    some = every if args.limit_images is None else every.limited(args.limit_images)
    for view in views_of(policies, args.spoof_gsd_m or ()):
        yield evaluate_choice(
            subject,
            replace(some),  # books of unreadable images of its own
            view,
            out=args.out,
            decoding=decoding_of(args, MAX_NEW_TOKENS),
            vlmevalkit_compat=args.vlmevalkit_compat,
        )
