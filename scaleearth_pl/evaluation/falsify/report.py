"""`verdict.json`, and the same for people: report.md and report.html with the figures beside them.

The report says what came out, in the order in which it matters: the headline, all verdicts with their intervals and
seeds, then the figures. A refuted hypothesis is printed like a supported one.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from scaleearth_pl.core.files import write_json
from scaleearth_pl.evaluation.evaluator.table import ViewTable
from scaleearth_pl.evaluation.falsify import figures
from scaleearth_pl.evaluation.falsify.accuracy import CAPTION, READING, accuracy_rows, save_accuracy_figure
from scaleearth_pl.evaluation.falsify.plan import OURS, Plan
from scaleearth_pl.evaluation.falsify.verdicts import Statistic, Verdict
from scaleearth_pl.evaluation.floors import compute_floors
from scaleearth_pl.evaluation.predictions import RunFolder
from scaleearth_pl.evaluation.protocols.referee import referee_report
from scaleearth_pl.evaluation.protocols.referee_figures import save_noise_figure, save_sse_u_figure
from scaleearth_pl.evaluation.protocols.spoofing import smoothness, spoofing_curve
from scaleearth_pl.evaluation.protocols.spoofing_figure import save_spoofing_figure

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.92rem}td,th{border-bottom:1px solid #ddd;padding:.35rem .7rem;"
    "text-align:left;vertical-align:top}img{max-width:100%}.supported{color:#00664b;font-weight:600}"
    ".refuted{color:#a33c00;font-weight:600}.undecided,.described{color:#555;font-weight:600}"
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that a report is made of. `files` are those of `measure`, by (what, variant, seed)."""

    plan: Plan
    corpus: Path
    corpus_hash: str
    runs: Mapping[str, Sequence[RunFolder]]
    files: Mapping[tuple[str, str, int], Path]
    seeds: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    fast: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with text, a table (first row: its head) and pictures with their captions."""

    title: str
    text: str = ""
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[tuple[str, str]] = ()


def write_report(out: Path, evidence: Evidence) -> None:
    """Writes figures, report.md and report.html, and verdict.json (of a smoke test: without a word in it)."""
    sections = [verdict_section(evidence), accuracy_section(out, evidence), *figure_sections(out, evidence)]
    (out / "report.md").write_text(as_markdown("Does the gate help?", sections))
    (out / "report.html").write_text(as_html(sections))
    write_json(out / "verdict.json", verdict_document(evidence))


def verdict_document(evidence: Evidence) -> dict[str, object]:
    """verdict.json: per hypothesis as in contracts.md, and what was judged."""
    commits = sorted({run.run.commit for of_seeds in evidence.runs.values() for run in of_seeds})
    return {
        "schema": "scaleearth-verdict/1",
        "plan_sha256": evidence.plan.digest,
        "corpus_hash": evidence.corpus_hash,
        "commits": commits,
        "seeds": list(evidence.seeds),
        "fast": evidence.fast,
        "hypotheses": {v.name: v.as_json() for v in evidence.verdicts},
    }


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts for a terminal."""
    table = Table(title="verdicts (95 % intervals; p after Holm)")
    for row in (rows := verdict_rows(verdicts))[:1]:
        for name in row:
            table.add_column(name)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def verdict_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Head and one row a statistic."""
    rows = [["", "claim", "verdict", "measured", "estimate (95 %)", "seeds", "p"]]
    for v in verdicts:
        for i, s in enumerate(v.statistics or (None,)):
            head = [v.name + (" *" if v.headline else ""), v.claim, v.verdict] if i == 0 else ["", "", ""]
            p = "" if v.p_adjusted is None or i else f"{v.p_adjusted:.3g}"
            rows.append([*head, *(["", "not measured", ""] if s is None else _numbers(s)), p])
    return rows


def verdict_section(evidence: Evidence) -> Section:
    """The words first."""
    headline = [v for v in evidence.verdicts if v.headline]
    said = "; ".join(f"{v.name} ({v.claim}): {v.verdict}" for v in headline)
    notes = [f"{v.name}: {note}." for v in evidence.verdicts for note in v.notes]
    text = f"Headline: {said}. Corpus {evidence.corpus_hash[:8]}, seeds {list(evidence.seeds)}. {' '.join(notes)}"
    if evidence.fast:
        text = "A smoke test of one seed and forty steps: these are no verdicts. " + text
    return Section(title="Verdict", text=text, rows=verdict_rows(evidence.verdicts))


def accuracy_section(out: Path, evidence: Evidence) -> Section:
    """The paper's Figure 5: accuracy by variant, a number a seed, over the floors of the questions that ours answered."""
    floors = compute_floors(evidence.runs[OURS][0].predictions, corpus_root=evidence.corpus)
    save_accuracy_figure(out / "accuracy.png", evidence.runs, floors)
    return Section(
        title="Accuracy on the test split, % by seed",
        text=READING,
        rows=accuracy_rows(evidence.runs, floors),
        pictures=[("accuracy.png", CAPTION)],
    )


def figure_sections(out: Path, evidence: Evidence) -> list[Section]:
    """The paper's figures, from these runs."""
    ours = [run.path for run in evidence.runs[OURS]]
    stage1 = [Path(run.run.stage1 or "").parent for run in evidence.runs[OURS]]
    figures.save_training_figure(out / "stage1.png", stage1, figures.STAGE1)
    figures.save_training_figure(out / "stage2.png", ours, figures.STAGE2)
    figures.save_gates_figure(out / "gates.png", evidence.runs[OURS])
    reports = {str(s): referee_report(ViewTable.load(evidence.files["policies", OURS, s])) for s in evidence.seeds}
    first = reports[str(evidence.seeds[0])]
    save_noise_figure(out / "noise.png", {f"ours, seed {evidence.seeds[0]}": first}, group="cue")
    save_sse_u_figure(out / "sse_u.png", first["sse_u"])
    return [
        spoofing_section(out, evidence),
        referee_section(reports),
        Section(
            title="Training",
            pictures=[
                ("stage1.png", "Stage 1 (the paper's Figure 7), a line a seed."),
                ("stage2.png", "Stage 2 (Figures 8 and 9), a line a seed."),
                ("gates.png", "Learned gates by rank tier (Figure 8d), a line a seed."),
            ],
        ),
        probe_section(out, evidence),
    ]


def spoofing_section(out: Path, evidence: Evidence) -> Section:
    """Figure 10, all variants that were measured at the first seed, relative to each image's truth."""
    seed = evidence.seeds[0]
    tables = {v: ViewTable.load(f) for (what, v, s), f in evidence.files.items() if what == "shifts" and s == seed}
    curves = {v: spoofing_curve(t, relative=True) for v, t in sorted(tables.items()) if len(t.views) > 1}
    untold = {v: float(t.correct_VN.mean()) for v, t in sorted(tables.items()) if len(t.views) == 1}
    title = f"seed {seed}, {evidence.plan.group.rpartition('/')[2]}"
    save_spoofing_figure(out / "spoofing.png", curves, untold=untold, title=title)
    rows = [["variant", "largest jump between neighbouring points", "accuracy at the truth"]]
    for name, curve in curves.items():
        jump = smoothness(curve)["largest_jump"]
        at_truth = curve.mean_K[int(np.argmin(np.abs(curve.log10_K)))]
        rows.append([name, f"{100 * float(jump):.1f} points", f"{100 * float(at_truth):.1f} %"])
    rows += [[name, "not told the GSD", f"{100 * accuracy:.1f} %"] for name, accuracy in untold.items()]
    caption = "Told a GSD that is off by so many decades (Figure 10). Plain LoRA is flat: it is not told."
    return Section(title="Spoofing", rows=rows, pictures=[("spoofing.png", caption)])


def referee_section(
    reports: Mapping[str, Mapping[str, Mapping[str, dict[str, dict[str, dict[str, float]]]]]],
) -> Section:
    """Oracle, predicted, fused and noisy GSD on scenes with cues, a number a seed."""
    views = list(next(iter(reports.values()))["groups"]["cue"]["views"])
    rows = [["told", "accuracy with cues, % by seed"]]
    for view in views:
        values = [r["groups"]["cue"]["views"][view]["estimate"] for r in reports.values()]
        rows.append([view, " / ".join(f"{100 * float(v):.1f}" for v in values)])  # type: ignore[arg-type]
    pictures = [
        ("noise.png", "Noise on the GSD, in decades; the dotted line is SSE-U's own word."),
        ("sse_u.png", "SSE-U: coverage, probability integral transform, error against sigma."),
    ]
    return Section(title="What if the GSD is predicted, or wrong?", rows=rows, pictures=pictures)


def probe_section(out: Path, evidence: Evidence) -> Section:
    """Figure 11, first seed."""
    file = evidence.files["probes", OURS, evidence.seeds[0]].with_suffix(".png")
    (out / "probes.png").write_bytes(file.read_bytes())
    found = json.loads(file.with_suffix(".json").read_text())
    text = f"Block-diagonality {found['block_diagonality']:.3f}; permuted tiers give {found['null_mean']:.3f}."
    return Section(
        title="What the ranks know", text=text, pictures=[("probes.png", "Linear probes on ungated A x (Figure 11).")]
    )


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """A report as Markdown."""
    parts = [f"# {title}"]
    for s in sections:
        parts += [f"## {s.title}", *([s.text] if s.text else [])]
        if s.rows:
            lines = ["| " + " | ".join(row) + " |" for row in s.rows]
            parts.append("\n".join([lines[0], "|" + "---|" * len(s.rows[0]), *lines[1:]]))
        parts += [f"![{caption}]({name})\n\n*{caption}*" for name, caption in s.pictures]
    return "\n\n".join(parts) + "\n"


def as_html(sections: Sequence[Section]) -> str:
    """The report as one page; pictures lie beside it."""
    body = ["<h1>Does the gate help?</h1>"]
    for s in sections:
        body += [f"<h2>{html.escape(s.title)}</h2>", f"<p>{html.escape(s.text)}</p>" if s.text else ""]
        body += [_html_table(s.rows)] if s.rows else []
        body += [
            f'<figure><img src="{n}" alt="{html.escape(c)}"><figcaption>{html.escape(c)}</figcaption></figure>'
            for n, c in s.pictures
        ]
    head = f'<meta charset="utf-8"><title>ScaleEarth: the verdict</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    lines = [f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows[1:]]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _cell(text: str) -> str:
    word = f' class="{text}"' if text in ("supported", "refuted", "undecided", "described") else ""
    return f"<td{word}>{html.escape(text)}</td>"


def _numbers(s: Statistic) -> list[str]:
    low, high = s.interval(0.05)
    return [s.name, f"{s.estimate:+.3f} ({low:+.3f} to {high:+.3f})", " ".join(f"{x:+.3f}" for x in s.seeds)]
