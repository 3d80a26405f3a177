"""`scaleearth compare OURS --twin plain_lora=DIR ... --out comparison.json`: did scale help?

Differences of accuracy on the *same questions*, with intervals over places (`bootstrap.py`): overall, by family (the
headline is scale_specific), by tier, by type. Runs that answered other questions, or grew from another stage 1, are
refused: no number is better than a number about two different things.

A gate-off twin is not told the GSD, so beating it says that GSD helps, not that gating does; that is said by
`gsd_text` and `bucketed`. Several seeds: give several OURS and repeat `--twin NAME=DIR` in the same order. They are
reported one by one, and together as the mean over seeds per question; that interval covers the choice of places, not
the choice of seeds.

Writes comparison.json (summary.json of the first OURS plus `versus`), comparison_details.json (floors and every run's
accuracies) and a chart beside it.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import write_json
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.evaluation.bootstrap import Interval, place_bootstrap
from scaleearth_pl.evaluation.groups import correctness, group_masks, group_means
from scaleearth_pl.evaluation.pairing import in_order, refuse_other_questions
from scaleearth_pl.evaluation.predictions import RunFolder
from scaleearth_pl.evaluation.summary import parse_seconds, summarise
from scaleearth_pl.evaluation.tables import summary_tables, versus_table
from scaleearth_pl.evaluation.versus_figure import save_versus_figure

TWINS = ("plain_lora", "gsd_text", "bucketed")
"""The paper's baselines, which `make compare` trains; a twin of one's own has any other name."""

IMAGE_ONLY_TWIN = "plain_lora"
"""The twin that sees image and question but is not told the GSD: its accuracy is the image-only floor."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`document` is comparison.json, `details` its companion."""

    document: dict[str, Any]
    details: dict[str, Any]


def compare(
    ours: Sequence[RunFolder],
    twins: Mapping[str, Sequence[RunFolder]],
    *,
    corpus_root: Path | None = None,
    seconds: Mapping[str, float | None] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares runs pairwise by seed.

    Args:
        ours: one run per seed.
        twins: runs of every twin, by name, in the order of `ours`.
        corpus_root: `data_shards/<corpus>`, for the floors that need its questions.
        seconds: figures measured outside, by name.
        seed: of the resampling.

    Raises:
        ConfigError: no twin, unequal numbers of seeds, other questions, or another stage 1.
    """
    if not ours or not twins:
        raise ConfigError("nothing to compare", field="twin", value=list(twins), remedy="give --twin NAME=DIR")
    for name, runs in twins.items():
        _check_pairs(name, ours, runs)
    plain = twins[IMAGE_ONLY_TWIN][0].predictions if IMAGE_ONLY_TWIN in twins else None
    summary = summarise(ours[0], corpus_root=corpus_root, image_only=plain, seconds=seconds)
    versus = {name: _versus(ours, runs, seed) for name, runs in twins.items()}
    accuracies = {name: [_accuracies(run) for run in runs] for name, runs in {"ours": ours, **twins}.items()}
    return Comparison(
        document={**summary.document, "versus": versus},
        details={**summary.details, "accuracies_by_seed": accuracies},
    )


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Writes `out`, `<out stem>_details.json` and `<out stem>.png`."""
    write_json(out, comparison.document)
    write_json(out.with_name(f"{out.stem}_details.json"), comparison.details)
    save_versus_figure(out.with_suffix(".png"), comparison.document["versus"])


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The versus table, then the tables of the first OURS."""
    return [versus_table(comparison.document["versus"]), *summary_tables(comparison.document, comparison.details)]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleearth compare", description="Ours and its twins.")
    parser.add_argument("ours", type=Path, nargs="+", help="run folder of the gated model; several are seeds")
    parser.add_argument(
        "--twin",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"{', '.join(TWINS)}, or a name of yours; repeat for seeds",
    )
    parser.add_argument("--out", type=Path, default=Path("comparison.json"), help="where the document goes")
    parser.add_argument("--corpus", type=Path, help="data_shards/NAME, for the floors that need its questions")
    parser.add_argument("--seconds", nargs="+", default=[], metavar="NAME=S", help="measured outside, as in summary")
    parser.add_argument("--bootstrap-seed", type=int, default=0, help="seed of the resampling")
    args = parser.parse_args(argv)
    comparison = compare(
        [RunFolder.load(path) for path in args.ours],
        parse_twins(args.twin),
        corpus_root=args.corpus,
        seconds=parse_seconds(args.seconds),
        seed=args.bootstrap_seed,
    )
    write_comparison(args.out, comparison)
    for table in comparison_tables(comparison):
        console().print(table)
    return 0


def parse_twins(pairs: Sequence[str]) -> dict[str, list[RunFolder]]:
    """`["plain_lora=runs/plain/latest", ...]` as loaded runs by name; `ConfigError` for one that is nearly a baseline's."""
    twins: dict[str, list[RunFolder]] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not path or name == "ours":
            remedy = f"NAME is {', '.join(TWINS)}, or lower-case letters, digits and _"
            raise ConfigError("a twin is given as NAME=DIR", field="twin", value=pair, remedy=remedy)
        if name not in TWINS and (near := get_close_matches(name, TWINS, n=1, cutoff=0.8)):
            raise ConfigError("misspelt twin", field="twin", value=name, remedy=f"write {near[0]}, or another name")
        twins.setdefault(name, []).append(RunFolder.load(Path(path)))
    return twins


def _versus(ours: Sequence[RunFolder], runs: Sequence[RunFolder], seed: int) -> dict[str, Any]:
    reference = ours[0].predictions
    keys = [row.key for row in reference]
    ours_SN, twin_SN = ([correctness(in_order(run.predictions, keys)) for run in side] for side in (ours, runs))
    difference_SN = [a - b for a, b in zip(ours_SN, twin_SN, strict=True)]
    together = _intervals(np.mean(difference_SN, axis=0), reference, seed)
    seeds = []
    for i, difference_N in enumerate(difference_SN):
        seeds.append(
            {
                **_intervals(difference_N, reference, seed)["overall"].as_json(),
                "accuracy_ours": float(ours_SN[i].mean()),
                "accuracy_twin": float(twin_SN[i].mean()),
                "run_ours": str(ours[i].path),
                "run_twin": str(runs[i].path),
            }
        )
    groups = {name: {**interval.as_json(), "n_places": interval.n_places} for name, interval in together.items()}
    return {**together["overall"].as_json(), "groups": groups, "seeds": seeds}


def _intervals(value_N: NDArray[np.float64], rows: Sequence[Prediction], seed: int) -> dict[str, Interval]:
    return place_bootstrap(value_N, [row.place_id for row in rows], group_masks(rows), seed=seed)


def _accuracies(run: RunFolder) -> dict[str, Any]:
    return {"run": str(run.path), **group_means(correctness(run.predictions), group_masks(run.predictions))}


def _check_pairs(name: str, ours: Sequence[RunFolder], runs: Sequence[RunFolder]) -> None:
    if len(runs) != len(ours):
        raise ConfigError(
            "ours and twin need the same number of seeds",
            field=f"twin {name}",
            value=(len(ours), len(runs)),
            remedy="give one twin run per OURS, in the same order",
        )
    for run in (*ours[1:], *runs):
        remedy = f"test both on the same corpus and split as {ours[0].path}"
        refuse_other_questions(ours[0].predictions, run.predictions, file=run.path, remedy=remedy)
    for mine, other in zip(ours, runs, strict=True):
        first, second = mine.run.stage1, other.run.stage1
        if (first and Path(first).resolve()) != (second and Path(second).resolve()):
            raise ConfigError(
                "the twin grew from another stage 1",
                file=other.path,
                field="stage1",
                value=(first, second),
                remedy="train every variant with the same init_from",
            )


if __name__ == "__main__":
    raise SystemExit(main())
