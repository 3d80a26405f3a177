"""`scaleearth falsify`: trains what is missing, measures, judges, writes `reports/falsify/`.

    scaleearth falsify                 the registered plan, three seeds: an hour on two cores, from nothing
    scaleearth falsify --fast          one seed, forty steps, no verdict: does everything run? (reports/falsify-fast)

Interrupted, it goes on where it stopped: finished runs and tables are files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.console import command, console
from scaleearth_pl.evaluation.bootstrap import Places
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.falsify import findings, measure
from scaleearth_pl.evaluation.falsify.options import command_parser, out_of, refuse_mixing, setting_of
from scaleearth_pl.evaluation.falsify.plan import OURS, Hypothesis, Plan
from scaleearth_pl.evaluation.falsify.report import Evidence, verdict_table, write_report
from scaleearth_pl.evaluation.falsify.runs import Setting, train_missing
from scaleearth_pl.evaluation.falsify.takeover import corpus_hash
from scaleearth_pl.evaluation.falsify.verdicts import Finding, judge, withheld
from scaleearth_pl.evaluation.predictions import RunFolder

PLAN, OUT = Path("experiments/falsify/hypotheses.yaml"), Path("reports/falsify")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status: 0 whatever the verdict, 2 for an error."""
    parser = command_parser("falsify", description="What could prove the idea wrong.", plan=PLAN, out=OUT)
    args = parser.parse_args(argv)
    out = out_of(args, OUT)
    refuse_mixing(out / "verdict.json", fast=args.fast)
    evidence = falsify(Plan.load(args.plan), setting_of(args), out, fast=args.fast)
    if args.fast:
        console().print(f"everything runs; forty steps and one seed allow no verdict. Figures: {out}")
    else:
        console().print(verdict_table(evidence.verdicts))
        console().print(f"report: {out / 'report.html'}")
    return 0


def falsify(plan: Plan, setting: Setting, out: Path, *, fast: bool) -> Evidence:
    """The whole of it; writes `out`/verdict.json, report.md, report.html and the figures. `fast` withholds the words."""
    plan.require("spoofing", "probes", command="falsify")
    seeds = plan.seeds[:1] if fast else plan.seeds
    folders = train_missing(plan, setting, seeds)
    (tables := out / "tables").mkdir(parents=True, exist_ok=True)
    asked = measure.tasks(plan, folders, seeds, corpus=setting.corpus, out=tables, limit=40 if fast else None)
    files = measure.measure_all(asked, setting.workers)
    runs = {name: [RunFolder.load(path) for path in paths] for name, paths in folders.items()}
    places = Places(_asked_places(runs, files), n_resamples=plan.n_resamples, at_least=2)
    found = [finding_of(h, plan, runs, files, seeds, places) for h in plan.hypotheses]
    verdicts = judge(found, level=plan.level)
    evidence = Evidence(
        plan=plan,
        corpus=setting.corpus,
        corpus_hash=corpus_hash(setting.corpus),
        runs=runs,
        files=files,
        seeds=tuple(seeds),
        verdicts=tuple(withheld(verdicts) if fast else verdicts),
        fast=fast,
    )
    write_report(out, evidence)
    return evidence


def finding_of(
    hypothesis: Hypothesis,
    plan: Plan,
    runs: Mapping[str, Sequence[RunFolder]],
    files: Mapping[tuple[str, str, int], Path],
    seeds: Sequence[int],
    places: Places,
) -> Finding:
    """Runs the test that a hypothesis names on what was measured."""
    bars = hypothesis.bars
    answers = {name: [run.predictions for run in of_seeds] for name, of_seeds in runs.items()}
    if hypothesis.kind == "difference":
        return findings.difference(hypothesis, answers[OURS], answers[bars["twin"]], plan.group, places)
    if hypothesis.kind == "edges":
        return findings.edges(hypothesis, answers[OURS], answers[bars["twin"]], places)
    if hypothesis.kind == "calibration":
        return findings.calibration(hypothesis, [run.sse_u for run in runs[OURS]], places)
    if hypothesis.kind == "probes":
        return _probes(hypothesis, [files["probes", OURS, seed] for seed in seeds])
    if hypothesis.kind == "policy":
        return _policy(hypothesis, [files["policies", OURS, seed] for seed in seeds], places)
    return _spoofing(hypothesis, [files["spoof", OURS, seed] for seed in seeds], places)


def _asked_places(runs: Mapping[str, Sequence[RunFolder]], files: Mapping[tuple[str, str, int], Path]) -> list[str]:
    """Every place of ours that a test asks about: the tables of `--fast` hold other images than its runs answered."""
    places = {row.place_id for run in runs[OURS] for row in run.predictions}
    for (what, variant, _), file in files.items():
        if variant == OURS and what in ("spoof", "policies"):
            places.update(ViewTable.load(file).place_N.tolist())
    return sorted(places)


def _policy(hypothesis: Hypothesis, files: Sequence[Path], places: Places) -> Finding:
    tables = _tables(files)
    keep_N = tables[0].mask(cue=hypothesis.bars["cue"])
    difference_SN = np.stack(
        [
            t.correct_VN[t.row(hypothesis.bars["policy"])].astype(float) - t.correct_VN[t.row("metadata")].astype(float)
            for t in tables
        ]
    )
    return findings.policy(hypothesis, difference_SN[:, keep_N], tables[0].place_N[keep_N].tolist(), places)


def _spoofing(hypothesis: Hypothesis, files: Sequence[Path], places: Places) -> Finding:
    tables = _tables(files)
    rows = [v for v, view in enumerate(tables[0].views) if view.policy == "spoof"]
    grid_m = [float(tables[0].views[v].spoof_gsd_m or 0) for v in rows]
    correct_SGN = np.stack([t.correct_VN[rows].astype(float) for t in tables])
    first = tables[0]
    return findings.spoofing(hypothesis, grid_m, correct_SGN, first.log10_gsd_N, first.place_N.tolist(), places)


def _tables(files: Sequence[Path]) -> list[ViewTable]:
    """One table a seed, all on the same questions; `ConfigError` if they are not."""
    tables = [ViewTable.load(file) for file in files]
    for table in tables:
        tables[0].same_questions(table)
    return tables


def _probes(hypothesis: Hypothesis, files: Sequence[Path]) -> Finding:
    found: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    return findings.probes(hypothesis, [f["block_diagonality"] for f in found], np.array([f["null"] for f in found]))


if __name__ == "__main__":
    raise SystemExit(main())
