"""`scaleearth sheets`: the corpus's places and types, or a public benchmark's sub-tasks, with every variant's answers.

    scaleearth sheets                                            finished runs of size tiny, seed 1, on the world
    scaleearth sheets ours=runs/A/latest text=runs/B/latest      these runs
    scaleearth sheets ours=reports/evaluate/A/xlrs/predicted-... --xlrs FILE...

writes places.png, types.png and sheets.html (or xlrs-1.png ... and xlrs.html). The first variant's SSE-U is shown.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks import BENCHMARKS, open_benchmark
from scaleearth_pl.evaluation.falsify.plan import OURS
from scaleearth_pl.evaluation.falsify.runs import Setting
from scaleearth_pl.evaluation.sheets.answers import show_corpus
from scaleearth_pl.evaluation.sheets.choose import (
    Draw,
    Variant,
    draw_places,
    draw_types,
    qualified,
    refuse_unequal,
)
from scaleearth_pl.evaluation.sheets.draw import save_places, save_types
from scaleearth_pl.evaluation.sheets.page import as_page, places_section, types_section
from scaleearth_pl.evaluation.sheets.public import as_reported, show_benchmark
from scaleearth_pl.evaluation.sheets.words import Words, count_types, counts_text, place_rule, type_rule
from scaleearth_pl.model.backbone import silence_loading

STANDARD = {OURS: OURS, "plain LoRA": "plain_lora", "GSD as text": "gsd_text", "bucketed": "bucketed"}
"""Columns of the sheets where none are named: the name to print and the experiment."""

ROWS_A_PAGE = 16
"""Sub-tasks on one PNG; OmniEarth-Bench has a hundred."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of one call."""

    files: tuple[Path, ...]


def corpus_sheets(variants: Sequence[Variant], draw: Draw, *, corpus: Path, out: Path, device: str = "auto") -> Written:
    """places.png, types.png and sheets.html of answers to a corpus of shards.

    Raises:
        ConfigError: variants that do not belong together, no place at so many GSDs, or another corpus.
    """
    refuse_unequal(variants)
    rows = list(variants[0].rows.values())
    places, by_type = draw_places(rows, draw), draw_types(rows, draw)
    in_places = [some for place in places for some in place]
    shown = show_corpus(variants, [*in_places, *by_type], corpus=corpus, device=device)
    types, readings = count_types(variants), variants[0].sse_u
    n_qualified = len(qualified(rows, draw.min_gsds))
    place_words = Words(
        title="The same place at several GSDs",
        rule=place_rule(draw, shown=shown, n_places=len(places), n_qualified=n_qualified),
        counts=counts_text(types, in_places, shown),
    )
    type_words = Words(
        title="One question of every type",
        rule=type_rule(draw, shown=shown),
        counts=counts_text(types, by_type, shown),
    )
    save_places(out / "places.png", places, shown, readings=readings, words=place_words)
    save_types(out / "types.png", by_type, shown, types=types, words=type_words)
    sections = [
        places_section(places, shown, readings=readings, words=place_words),
        types_section(by_type, shown, types=types, words=type_words),
    ]
    return _write(out / "sheets.html", "What the numbers look like", sections, [out / "places.png", out / "types.png"])


def benchmark_sheets(
    variants: Sequence[Variant], draw: Draw, *, name: str, files: Sequence[Path], out: Path
) -> Written:
    """One row a sub-task of the benchmark of that name, `ROWS_A_PAGE` rows a PNG.

    Raises:
        ConfigError: variants that do not belong together, answers without text, or files of other questions.
    """
    refuse_unequal(variants)
    benchmark = open_benchmark(name, files)
    choices = benchmark.choices()
    variants = [as_reported(variant, choices, benchmark) for variant in variants]
    drawn = draw_types(list(variants[0].rows.values()), draw)
    shown, types = show_benchmark(variants, drawn, benchmark), count_types(variants)
    words = Words(
        title=f"{benchmark.title}: one question of every sub-task",
        rule=type_rule(draw, shown=shown, marked=" Marked by the benchmark's official extractor."),
        counts=counts_text(types, drawn, shown),
    )
    pages = [drawn[k : k + ROWS_A_PAGE] for k in range(0, len(drawn), ROWS_A_PAGE)]
    pictures = [out / f"{name}-{k}.png" for k in range(1, len(pages) + 1)]
    for path, page in zip(pictures, pages, strict=True):
        save_types(path, page, shown, types=types, words=words)
    section = types_section(drawn, shown, types=types, words=words)
    return _write(out / f"{name}.html", "What the numbers look like", [section], pictures)


def named_variants(words: Sequence[str], setting: Setting, seed: int) -> list[Variant]:
    """NAME=FOLDER words to variants; without words the standard ones of `setting` and `seed`.

    Raises:
        ConfigError: a word without "=", a name twice, or a folder without predictions.
    """
    if not words:
        return [Variant.load(name, setting.run(run, seed) / "latest") for name, run in STANDARD.items()]
    pairs = [word.partition("=") for word in words]
    for word, (name, sign, folder) in zip(words, pairs, strict=True):
        if not (name and sign and folder) or [p[0] for p in pairs].count(name) > 1:
            raise ConfigError(
                "a variant is NAME=FOLDER, and each name stands once",
                field="variants",
                value=word,
                remedy="such as ours=runs/stage2-tiny-world/latest",
            )
    return [Variant.load(name, Path(folder)) for name, _, folder in pairs]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    args = _parser().parse_args(argv)
    silence_loading()
    for file in _sheets(args).files:
        console().print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
    return 0


def _sheets(args: argparse.Namespace) -> Written:
    named = [name for name in BENCHMARKS if getattr(args, name)]
    if len(named) > 1:
        raise ConfigError(
            "one benchmark at a time has sheets",
            field="benchmarks",
            value=[f"--{name}" for name in named],
            remedy="call it once for each, with the answers to its questions",
        )
    setting = Setting(size=args.size, corpus=args.corpus, runs=args.runs)
    draw = Draw(places=args.places, questions=args.questions, min_gsds=args.min_gsds, seed=args.draw)
    variants = named_variants(args.variants, setting, args.seed)
    if named:
        return benchmark_sheets(variants, draw, name=named[0], files=getattr(args, named[0]), out=args.out)
    return corpus_sheets(variants, draw, corpus=args.corpus, out=args.out, device=args.device)


def _write(file: Path, title: str, sections: Sequence[str], pictures: Sequence[Path]) -> Written:
    file.write_text(as_page(title, sections), encoding="utf-8")
    return Written(files=(*pictures, file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaleearth sheets", description="Images, questions and everybody's answers.")
    add = parser.add_argument
    add(
        "variants",
        nargs="*",
        metavar="NAME=FOLDER",
        help="runs, or answers of `scaleearth evaluate`; default: ours and its baselines",
    )
    add("--size", default="tiny", help="of the default runs")
    add("--seed", type=int, default=1, help="of the default runs")
    add("--runs", type=Path, default=Path("runs"), help="where the default runs are")
    add("--corpus", type=Path, default=Path("data_shards/world"), help="folder of shards that was evaluated")
    for name, benchmark in BENCHMARKS.items():
        add(f"--{name}", type=Path, nargs="+", default=[], help=f"files of {benchmark.title} that were evaluated")
    add("--places", type=int, default=3, help="places on the sheet")
    add("--questions", type=int, default=3, help="questions of an image")
    add("--min-gsds", type=int, default=3, help="GSDs at which a place must have been seen")
    add("--draw", type=int, default=0, help="seed of the draw: another one is another sheet")
    add("--out", type=Path, default=Path("reports/sheets"), help="where PNG and HTML go")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser
