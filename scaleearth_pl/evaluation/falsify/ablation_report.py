"""Figure 6 for people and programs: ablations.png, README.md, ablations.json.

One row a variant, in the order of the plan: what it lacks, and what that costs in points with its interval over places.
A gain is printed like a loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from scaleearth_pl.core.files import write_json
from scaleearth_pl.evaluation.falsify.ablation_effects import Effect
from scaleearth_pl.evaluation.falsify.ablation_figure import save_ablation_figure
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.falsify.report import Section, as_markdown

TOLD = {"metadata": "told the true GSD", "predicted": "told what SSE-U reads"}
FIGURE, DOCUMENT, PAGE = "ablations.png", "ablations.json", "README.md"
CAPTION = (
    "Accuracy of each variant minus that of ours, in points, with 95 % intervals over places (the paper's Figure 6)."
)
READING = (
    "Both models are asked the same questions and told the same. Intervals resample places; with one seed they do not cover "
    "the luck of a training. Told what SSE-U reads, each model is gated by its own; one without SSE-U has no such number. "
    "The rows of ours and of the model trained on predicted GSDs, told what SSE-U reads, are the referee's protocol "
    '"trained on oracle or predicted, evaluated on predicted". "No stage 1" is left out: at tiny size that is random weights.'
)


@dataclass(frozen=True, kw_only=True)
class AblationReport:
    """Everything that the page is made of.

    Attributes:
        plan: variants and their labels.
        effects: of every variant, group and view.
        n_questions: answered by each model under each view.
        n_places: they are about.
        seeds: trainings of every variant.
        corpus: its name.
        corpus_hash: its content hash.
        commits: that trained the runs, by variant.
        fast: a smoke test, of which nothing is concluded.
    """

    plan: Plan
    effects: Sequence[Effect]
    n_questions: int
    n_places: int
    seeds: tuple[int, ...]
    corpus: str
    corpus_hash: str
    commits: Mapping[str, Sequence[str]]
    fast: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of questions, all of them first."""
        return tuple(dict.fromkeys(effect.group for effect in self.effects))

    @property
    def labels(self) -> dict[str, str]:
        """What to call each variant, in the order of the plan."""
        return {h.bars["twin"]: str(h.bars["label"]) for h in self.plan.hypotheses}

    def effect(self, variant: str, told: str, group: str) -> Effect | None:
        """One effect; None where the variant cannot be told that."""
        found = (e for e in self.effects if (e.variant, e.told, e.group) == (variant, told, group))
        return next(found, None)

    def columns(self) -> list[tuple[str, str]]:
        """(told, group) of every column."""
        return [(told, group) for told in TOLD for group in self.groups]

    def as_table(self) -> Table:
        """The differences for a terminal."""
        rows = difference_rows(self)
        table = Table(title="variant minus ours, points (95 % over places)" + (" · a smoke test" if self.fast else ""))
        for name in rows[0]:
            table.add_column(name)
        for row in rows[1:]:
            table.add_row(*row)
        return table

    def as_json(self) -> dict[str, Any]:
        """The numbers: `variants.NAME.told.GROUP = {accuracy, estimate, ci95, seeds}`."""
        return {
            "schema": "scaleearth-ablations/1",
            "plan_sha256": self.plan.digest,
            "corpus_hash": self.corpus_hash,
            "seeds": list(self.seeds),
            "questions": self.n_questions,
            "places": self.n_places,
            "fast": self.fast,
            "variants": {
                name: {"label": label, "commits": list(self.commits[name]), **self._numbers(name)}
                for name, label in {OURS: OURS, **self.labels}.items()
            },
        }

    def _numbers(self, variant: str) -> dict[str, dict[str, Any]]:
        told: dict[str, dict[str, Any]] = {}
        for effect in (e for e in self.effects if e.variant == variant):
            numbers = {"accuracy": effect.accuracy, **effect.difference.as_json()}
            told.setdefault(effect.told, {})[effect.group] = numbers
        return told


def write_ablations(out: Path, report: AblationReport) -> None:
    """Writes figure, page and numbers into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    save_ablation_figure(out / FIGURE, report.effects, labels=report.labels, told=TOLD)
    (out / PAGE).write_text(as_markdown("What each component is worth", sections(report)))
    write_json(out / DOCUMENT, report.as_json())


def sections(report: AblationReport) -> list[Section]:
    """The page: what was done, differences with the figure, accuracies."""
    commits = sorted({commit for of_variant in report.commits.values() for commit in of_variant})
    made = (
        f"`scaleearth ablations` on {report.corpus} ({report.corpus_hash[:8]}), seed{'s' * (len(report.seeds) > 1)} "
        f"{', '.join(map(str, report.seeds))}: {report.n_questions:,} test questions about {report.n_places} places, "
        f"exact match. Trained at {', '.join(commits)}."
    )
    if report.fast:
        made = "A smoke test of forty steps: nothing follows from these numbers. " + made
    return [
        Section(
            title="Variant minus ours, points",
            text=f"{made}\n\n{READING}",
            rows=difference_rows(report),
            pictures=[(FIGURE, CAPTION)],
        ),
        Section(title="Accuracy, %", rows=accuracy_rows(report)),
    ]


def difference_rows(report: AblationReport) -> list[list[str]]:
    """Head, then a row a variant: its label, what it leaves out, and a difference a column."""
    rows = [["variant", "is without this:", *(f"{group}, {TOLD[told]}" for told, group in report.columns())]]
    claims = {h.bars["twin"]: h.claim for h in report.plan.hypotheses}
    for name, label in report.labels.items():
        cells = [_difference(report.effect(name, told, group)) for told, group in report.columns()]
        rows.append([label, claims[name], *cells])
    return rows


def accuracy_rows(report: AblationReport) -> list[list[str]]:
    """Head, then accuracies of ours and of every variant."""
    rows = [["variant", *(f"{group}, {TOLD[told]}" for told, group in report.columns())]]
    for name, label in {OURS: OURS, **report.labels}.items():
        effects = [report.effect(name, told, group) for told, group in report.columns()]
        rows.append([label, *("no SSE-U" if e is None else f"{100 * e.accuracy:.1f}" for e in effects)])
    return rows


def _difference(effect: Effect | None) -> str:
    if effect is None:
        return "no SSE-U"
    low, high = effect.difference.interval(0.05)
    return f"{100 * effect.difference.estimate:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
