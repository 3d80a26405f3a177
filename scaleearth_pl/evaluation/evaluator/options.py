"""Options of `scaleearth evaluate`, and which of them need each other: one that would do nothing is refused, not ignored."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks import BENCHMARKS
from scaleearth_pl.evaluation.benchmarks.choice import MAX_NEW_TOKENS
from scaleearth_pl.evaluation.benchmarks.pixels import PixelPolicy
from scaleearth_pl.evaluation.evaluator.run import Decoding
from scaleearth_pl.evaluation.evaluator.views import POLICIES

FILES = " or ".join(f"--{name}" for name in BENCHMARKS)


def parser() -> argparse.ArgumentParser:
    """Of the command line; options that belong to some benchmarks only have no default here, so that a use is seen."""
    made = argparse.ArgumentParser(prog="scaleearth evaluate", description="Checkpoints x benchmarks x GSD policies.")
    add = made.add_argument
    add("runs", type=Path, nargs="+", help="run folders, such as runs/stage2-tiny-world/latest")
    add("--policy", nargs="+", help=f"of {POLICIES}; default: metadata, or spoof with --spoof-gsd-m")
    add("--spoof-gsd-m", type=float, nargs="+", help="grid of policy spoof, metres per pixel")
    add("--out", type=Path, default=Path("reports/evaluate"), help="where results go")
    add("--base", type=Path, help="folder of the backbone, where it has moved")
    add("--teacher-forced", action="store_true", help="right or wrong only, no text (several times faster)")
    add("--limit-images", type=int, help="evenly spaced over the split, or over the files of a benchmark")
    add("--max-new-tokens", type=int, help=f"default 24; {MAX_NEW_TOKENS} for benchmarks of local files")
    add("--budget-tokens", type=int, default=8192, help="tokens of one packed forward")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    _add_corpus(made.add_argument_group("a corpus of shards"))
    _add_files(made.add_argument_group("benchmarks of local files"))
    return made


def _add_corpus(group: Any) -> None:
    group.add_argument("--corpus", type=Path, help="data_shards/NAME")
    group.add_argument("--split", nargs="+", help="splits of the corpus; default: test")
    group.add_argument("--source", nargs="+", help="only these sources, such as rsvqa_hr (test1) or rsvqa_hr_phili")
    group.add_argument("--type", nargs="+", help="only questions of these types")
    group.add_argument("--trained-on", type=Path, nargs="+", help="other corpora trained on, for the guard")
    group.add_argument("--allow-leaks", action="store_true", help="count leaked images instead of refusing")


def _add_files(group: Any) -> None:
    for name, benchmark in BENCHMARKS.items():
        group.add_argument(f"--{name}", type=Path, nargs="+", default=[], help=f"files of {benchmark.title}")
    group.add_argument("--pixels", choices=["budget", "tiles"], help="policy for very large images; default: budget")
    group.add_argument("--max-pixels", type=int, help="of an image or tile; default: as in training")
    group.add_argument("--max-tiles", type=int, help="with --pixels tiles; default: 9")
    group.add_argument("--vlmevalkit-compat", action="store_true", help="OmniEarth's Overall macro as computed there")


def check_together(args: argparse.Namespace) -> None:
    """`ConfigError` for an option that would do nothing, before a model is loaded."""
    files = any(getattr(args, name) for name in BENCHMARKS)
    if args.corpus is None and not files:
        raise ConfigError("no benchmark named", remedy=f"give --corpus data_shards/NAME, {FILES} FILE...")
    _need(args, ("split", "source", "type", "trained_on", "allow_leaks"), "--corpus", there=args.corpus is not None)
    _need(args, ("pixels", "max_pixels", "max_tiles"), FILES, there=files)
    _need(args, ("max_tiles",), "--pixels tiles", there=args.pixels == "tiles")
    _need(args, ("vlmevalkit_compat",), "--omniearth", there=bool(args.omniearth))
    _need(args, ("spoof_gsd_m",), "--policy spoof", there=args.policy is None or "spoof" in args.policy)


def _need(args: argparse.Namespace, names: Sequence[str], what: str, *, there: bool) -> None:
    for name in names:
        if getattr(args, name) not in (None, False) and not there:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} says something of {what}, which is not asked for",
                field=option,
                value=getattr(args, name),
                remedy=f"leave it out, or give {what}",
            )


def policies_of(args: argparse.Namespace) -> Sequence[str]:
    """The policies that are named, or meant by the other options."""
    return tuple(args.policy or (("metadata",) if args.spoof_gsd_m is None else ("spoof",)))


def pixels_of(args: argparse.Namespace) -> PixelPolicy:
    """How very large images are seen."""
    tiles = {} if args.max_tiles is None else {"max_tiles": args.max_tiles}
    return PixelPolicy(kind=args.pixels or "budget", max_pixels=args.max_pixels, **tiles)


def decoding_of(args: argparse.Namespace, max_new_tokens: int) -> Decoding:
    """How answers are made; `max_new_tokens` where the command line says nothing."""
    return Decoding(
        generate=not args.teacher_forced,
        max_new_tokens=max_new_tokens if args.max_new_tokens is None else args.max_new_tokens,
        budget_tokens=args.budget_tokens,
    )
