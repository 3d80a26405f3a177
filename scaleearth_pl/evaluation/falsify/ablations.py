"""`scaleearth ablations`: the paper's Figure 6, from training to figure. It describes; `scaleearth falsify` judges.

    plan (experiments/falsify/ablations.yaml) -> runs (trains what is missing) -> measure ("told") -> effects -> report

Runs are those of `falsify` and `make compare`: a finished one is taken over. Interrupted, it goes on where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.run_files import RUN
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.falsify import measure
from scaleearth_pl.evaluation.falsify.ablation_effects import effects_of
from scaleearth_pl.evaluation.falsify.ablation_report import AblationReport, write_ablations
from scaleearth_pl.evaluation.falsify.options import command_parser, out_of, refuse_mixing, setting_of
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.falsify.runs import Setting, train_missing
from scaleearth_pl.evaluation.falsify.takeover import corpus_hash
from scaleearth_pl.evaluation.predictions import read_run

PLAN, OUT = Path("experiments/falsify/ablations.yaml"), Path("reports/ablations")
TABLES = OUT / "tables"
FAST_LIMIT = 40
"""Test images of a smoke test."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status: 0 whatever comes out, 2 for an error."""
    parser = command_parser("ablations", description="What each component is worth (Figure 6).", plan=PLAN, out=OUT)
    parser.add_argument("--tables", type=Path, default=TABLES, help="answers by variant, kept and read again")
    args = parser.parse_args(argv)
    out = out_of(args, OUT)
    refuse_mixing(out / "ablations.json", fast=args.fast)
    report = ablations(Plan.load(args.plan), setting_of(args), out, tables=args.tables)
    console().print(report.as_table())
    console().print(f"figure and table: {out}")
    return 0


def ablations(plan: Plan, setting: Setting, out: Path, *, tables: Path) -> AblationReport:
    """The whole of it; writes `out`/ablations.png, ablations.json and README.md.

    Raises:
        ConfigError: a plan of something else, or a training that failed (its log is named).
    """
    plan.require("ablation", command="ablations")
    seeds = plan.seeds[:1] if setting.fast else plan.seeds
    folders = train_missing(plan, setting, seeds)
    tables.mkdir(parents=True, exist_ok=True)
    limit = FAST_LIMIT if setting.fast else None
    jobs = [
        measure.Task(variant=v, seed=s, run=run, what="told", corpus=setting.corpus, out=tables, limit=limit)
        for v, runs in folders.items()
        for s, run in zip(seeds, runs, strict=True)
    ]
    files = measure.measure_all(jobs, setting.workers)
    loaded = {v: [ViewTable.load(files["told", v, s]) for s in seeds] for v in folders}
    report = AblationReport(
        plan=plan,
        effects=effects_of(loaded, group=plan.group, n_resamples=plan.n_resamples),
        n_questions=loaded[OURS][0].correct_VN.shape[1],
        n_places=len(set(loaded[OURS][0].place_N.tolist())),
        seeds=tuple(seeds),
        corpus=setting.corpus.name,
        corpus_hash=corpus_hash(setting.corpus),
        commits={v: sorted({read_run(run / RUN).commit for run in runs}) for v, runs in folders.items()},
        fast=setting.fast,
    )
    write_ablations(out, report)
    return report


if __name__ == "__main__":
    raise SystemExit(main())
