"""The options that `scaleearth falsify` and `scaleearth ablations` share: which plan, of which runs, into which folder."""

import argparse
import json
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.falsify.runs import WORKERS, Setting


def command_parser(name: str, *, description: str, plan: Path, out: Path) -> argparse.ArgumentParser:
    """A parser of the shared options.

    Args:
        name: of the command.
        description: one line for `--help`.
        plan: the default plan.
        out: the default folder of results.
    """
    parser = argparse.ArgumentParser(prog=f"scaleearth {name}", description=description)
    add = parser.add_argument
    add("--plan", type=Path, default=plan, help=f"what is trained and asked (default {plan})")
    add("--size", default="tiny", help="experiments/size/NAME.yaml")
    add("--corpus", type=Path, default=Path("data_shards/world"), help="folder of shards")
    add("--runs", type=Path, default=Path("runs"), help="where runs are, and go")
    add("--out", type=Path, help=f"results and figures (default {out}; of a smoke test, {smoke_test(out)})")
    add("--workers", type=int, default=WORKERS, help=f"processes at a time (default {WORKERS})")
    add("--fast", action="store_true", help="one seed, forty steps: does everything run? Nothing is concluded")
    return parser


def setting_of(args: argparse.Namespace) -> Setting:
    """What all runs share."""
    return Setting(size=args.size, corpus=args.corpus, runs=args.runs, workers=args.workers, fast=args.fast)


def out_of(args: argparse.Namespace, default: Path) -> Path:
    """Where results go. A smoke test has a folder of its own, so that it never lies over a real result."""
    folder: Path = args.out or (smoke_test(default) if args.fast else default)
    return folder


def refuse_mixing(record: Path, *, fast: bool) -> None:
    """`ConfigError` where the folder of `record` holds a full result and this is a smoke test, or the other way round.

    Args:
        record: the result's JSON document, which says what it is of.
        fast: what this run is.
    """
    try:
        found = json.loads(record.read_text())["fast"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found != fast:
        raise ConfigError(
            f"the folder holds the result of a {'smoke test' if found else 'full run'}",
            file=record,
            field="out",
            value=str(record.parent),
            remedy="give another folder with --out, or remove this one",
        )


def smoke_test(out: Path) -> Path:
    """The folder of a smoke test: always under reports/, which git does not keep."""
    return Path("reports") / f"{out.name}-fast"
