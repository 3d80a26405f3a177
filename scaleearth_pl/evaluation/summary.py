"""`python -m scaleearth_pl.evaluation.summary RUN_DIR [--corpus ROOT] [--image-only DIR]`: what came out of a run.

Reads the files of a run folder (`predictions.py`) and writes beside them

- `summary.json`: exactly the document of docs/contracts.md, so that tools may rely on it;
- `summary_details.json`: what the document has no room for: intervals, the four floors, SSE-U with and without scale
  cues, the official RSVQA scores.

`accuracy.majority` is the floor of the commonest answer per source and type. A figure that was not measured (seconds of
a stage that somebody else ran, SSE-U of a run without one) is null, never 0; `gates` is empty where there is no gate.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import console, print_error
from scaleearth_pl.core.errors import ConfigError, ScaleEarthError
from scaleearth_pl.evaluation.bootstrap import place_bootstrap
from scaleearth_pl.evaluation.floors import Floors, compute_floors
from scaleearth_pl.evaluation.groups import correctness, group_masks, group_means, nested
from scaleearth_pl.evaluation.predictions import RUN, Prediction, RunFolder, RunInfo, read_run, write_json
from scaleearth_pl.evaluation.rsvqa.ours import score_rsvqa
from scaleearth_pl.evaluation.sse_u import sse_u_by_cue, sse_u_numbers
from scaleearth_pl.evaluation.tables import summary_tables

SECONDS = ("install", "corpus", "stage1", "stage2")
SUMMARY, DETAILS = "summary.json", "summary_details.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`document` is summary.json, `details` is summary_details.json."""

    document: dict[str, Any]
    details: dict[str, Any]


def summarise(
    run: RunFolder,
    *,
    corpus_root: Path | None = None,
    image_only: Sequence[Prediction] | None = None,
    seconds: Mapping[str, float | None] | None = None,
) -> Summary:
    """Computes both documents; touches no file but the corpus' shards and stage 1's run.json.

    Args:
        run: the run.
        corpus_root: `data_shards/<corpus>`; without it question only and question + GSD are null.
        image_only: predictions of a run that is not told the GSD (plain LoRA, stage 1) on the same questions.
        seconds: figures by name of `SECONDS` that win over what run.json and make have left.
    """
    floors = compute_floors(run.predictions, corpus_root=corpus_root, image_only=image_only)
    masks = group_masks(run.predictions)
    accuracy = nested(group_means(correctness(run.predictions), masks))
    measured = {**_seconds(run.run), **_seconds_of_tools(corpus_root), **(seconds or {})}
    document = {
        **{name: getattr(run.run, name) for name in ("experiment", "stage", "size", "corpus", "commit")},
        "versions": dict(run.run.versions),
        "seconds": {name: measured.get(name) for name in SECONDS},
        "qas_per_second": run.run.qas_per_second,
        "accuracy": {**accuracy, "majority": floors.majority["overall"]},
        "sse_u": sse_u_numbers(run.sse_u),
        "gates": {name: dict(row) for name, row in run.gates.items()},
    }
    return Summary(document=document, details=_details(run, floors))


def write_summary(folder: Path, summary: Summary) -> None:
    """Writes summary.json and summary_details.json into `folder`."""
    write_json(folder / SUMMARY, summary.document)
    write_json(folder / DETAILS, summary.details)


def parse_seconds(pairs: Sequence[str]) -> dict[str, float]:
    """`["install=12.5", ...]` as a mapping; `ConfigError` for another name than `SECONDS` or no number."""
    values = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = -1.0
        if name not in SECONDS or not 0 <= values[name] < float("inf"):
            raise ConfigError(
                "seconds are given as NAME=NUMBER", field="seconds", value=pair, remedy=f"NAME is one of {SECONDS}"
            )
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.evaluation.summary", description="Summary of a run.")
    parser.add_argument("run", type=Path, help="run folder, such as runs/stage2/latest")
    parser.add_argument("--corpus", type=Path, help="data_shards/NAME, for the floors that need its questions")
    parser.add_argument("--image-only", type=Path, help="run folder of a model that is not told the GSD")
    parser.add_argument("--stage1", type=Path, help="stage 1's run folder; default: the one that run.json names")
    parser.add_argument("--seconds", nargs="+", default=[], metavar="NAME=S", help=f"measured outside: {SECONDS}")
    args = parser.parse_args(argv)
    try:
        run = RunFolder.load(args.run)
        image_only = RunFolder.load(args.image_only).predictions if args.image_only else None
        stage1 = {"stage1": read_run(args.stage1 / RUN).seconds.get("fit")} if args.stage1 else {}
        seconds = {**stage1, **parse_seconds(args.seconds)}
        summary = summarise(run, corpus_root=args.corpus, image_only=image_only, seconds=seconds)
        write_summary(args.run, summary)
    except ScaleEarthError as error:
        print_error(error)
        return 2
    for table in summary_tables(summary.document, summary.details):
        console().print(table)
    return 0


def _details(run: RunFolder, floors: Floors) -> dict[str, Any]:
    rows = run.predictions
    masks = group_masks(rows)
    intervals = place_bootstrap(correctness(rows), [r.place_id for r in rows], masks)
    return {
        "counts": {
            "questions": len(rows),
            "images": len({r.image_id for r in rows}),
            "places": len({r.place_id for r in rows}),
            "by_group": {name: int(mask.sum()) for name, mask in masks.items()},
        },
        "accuracy": {name: interval.as_json() for name, interval in intervals.items()},
        "floors": asdict(floors),
        "sse_u_by_cue": sse_u_by_cue(run.sse_u),
        "rsvqa": score_rsvqa(rows),
    }


def _seconds(run: RunInfo) -> dict[str, float | None]:
    known: dict[str, float | None] = {name: run.seconds[name] for name in SECONDS if name in run.seconds}
    known.setdefault(run.stage, run.seconds.get("fit"))
    if run.stage == "stage2" and run.stage1 and known.get("stage1") is None:
        record = Path(run.stage1).parent / RUN  # stage 1 ends in <run folder>/hf
        known["stage1"] = read_run(record).seconds.get("fit") if record.is_file() else None
    return known


def _seconds_of_tools(corpus_root: Path | None) -> dict[str, float | None]:
    """What make left: whole seconds in `.installed` of the environment and in `.seconds` of the corpus."""
    files = {"install": Path(sys.prefix) / ".installed"}
    if corpus_root is not None:
        files["corpus"] = corpus_root / ".seconds"
    texts = {name: file.read_text().strip() for name, file in files.items() if file.is_file()}
    return {name: float(text) for name, text in texts.items() if text.isdigit()}


if __name__ == "__main__":
    raise SystemExit(main())
