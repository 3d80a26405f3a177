"""`python -m scaleearth_pl.evaluation.rsvqa table EVALUATION... --out FILE.md`: matcher x GSD policy x variant.

EVALUATION is a folder of `scaleearth evaluate` (one evaluation, or any folder above several), whose predictions.jsonl is
scored anew and whose row.json says which variant was told what of the GSD. LR and HR stand apart, since they differ in types,
in bins and in difficulty; every table opens with its majority floor, and what lies above it is bold. Questions that are not
RSVQA's own (`metric.is_official`) are left out. The evaluations of a variant's earlier training stay in their own folder:
where two trainings are given, the fingerprint stands behind the name, so that no curve mixes them. Spoofed GSDs (policies
`spoof-1m`) have one table a source, of OA under the first matcher. All evaluations must have answered the same questions,
else their numbers would not belong side by side.

OA is the share of all questions (micro), AA the unweighted mean over the types that the matcher scores.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import PREDICTIONS, ROW
from scaleearth_pl.evaluation.rsvqa.matchers import MATCHERS
from scaleearth_pl.evaluation.rsvqa.metric import CAVEAT, DATASETS, SOURCES, is_official
from scaleearth_pl.evaluation.rsvqa.rows import Answered, read_table
from scaleearth_pl.evaluation.rsvqa.score import MatcherScore, score_under_all

FLOOR = "*majority floor*"
SPOOF = re.compile(r"spoof-(?P<metres>[\d.e+-]+)m")
MARK = "<!-- below: written by `python -m scaleearth_pl.evaluation.rsvqa table` -->"
_GENERATE = "run `scaleearth evaluate` without --teacher-forced"

Scores = Mapping[str, Mapping[str, MatcherScore]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One variant under one policy: its scores by source and matcher, and which questions they are of.

    `fingerprint` tells two trainings of a variant apart.
    """

    variant: str
    fingerprint: str
    policy: str
    scores: Scores
    questions: Mapping[str, frozenset[tuple[Any, ...]]]
    facts: Mapping[str, Any]


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Every RSVQA evaluation in or below the paths, in the order given.

    Raises:
        ConfigError: none there, one without its row.json or without a source of RSVQA, or two that answered other
            questions.
    """
    folders = [file.parent for path in paths for file in _files(path)]
    evaluations = [_evaluation(folder) for folder in dict.fromkeys(folders)]
    for other in evaluations[1:]:
        if other.questions != evaluations[0].questions:
            raise ConfigError(
                "two evaluations answered other questions",
                field="evaluation",
                value=[f"{e.variant}, {e.policy}" for e in (evaluations[0], other)],
                remedy="evaluate all on one corpus and split, with the same limits",
            )
    return _told_apart(evaluations)


def markdown(evaluations: Sequence[Evaluation], *, split: str) -> str:
    """All tables: by source OA and AA under every matcher, then one a matcher with every type, then spoofed GSDs."""
    told = [e for e in evaluations if not SPOOF.fullmatch(e.policy)]
    spoofed = [e for e in evaluations if SPOOF.fullmatch(e.policy)]
    lines = [f"{CAVEAT} All numbers are per cent; **bold** lies above the majority floor."]
    for source in evaluations[0].scores:
        name = SOURCES[source]
        kept = next(iter(evaluations[0].scores[source].values()))
        types = ", ".join(f"{t.n} {kind}" for kind, t in kept.types.items())
        lines += ["", f"## {name}, {split}: {kept.n} questions ({types})", "", *_overview(evaluations, told, source)]
        for matcher in evaluations[0].scores[source] if told else ():
            lines += ["", f"### {name}, `{matcher}`: {MATCHERS[matcher].what}", ""]
            lines += _by_type(told, source, matcher)
        if spoofed:
            lines += ["", f"### {name}, spoofed GSD: OA under `{kept.matcher}`", "", *_spoofed(spoofed, source)]
    return "\n".join([*lines, "", "## What was evaluated", "", *_facts(evaluations)]) + "\n"


def write_table(paths: Sequence[Path], *, out: Path | None, split: str) -> str:
    """The tables of these evaluations, also written to `out`; an existing file keeps what stands above `MARK`."""
    text = markdown(read_evaluations(paths), split=split)
    if out is None:
        return text
    try:
        before = out.read_text(encoding="utf-8").partition(MARK)[0] if out.exists() else "# RSVQA\n\n"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{before.rstrip()}\n\n{MARK}\n\n{text}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the tables cannot be written: {error}", file=out, field="out", remedy="--out FILE"
        ) from error
    return text


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.glob(f"**/{PREDICTIONS}"))
    if not found:
        raise ConfigError(
            f"no {PREDICTIONS} there", file=path, remedy="name the output folder of `scaleearth evaluate`"
        )
    return found


def _evaluation(folder: Path) -> Evaluation:
    try:
        row = json.loads((folder / ROW).read_text())
        variant, fingerprint, policy = row["subject"], row["fingerprint"], row["configuration"]["view"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"nothing says which variant and policy this is: {error!r}",
            file=folder / ROW,
            remedy="finish the evaluation with `scaleearth evaluate`",
        ) from error
    table = read_table(folder / PREDICTIONS)
    by_source: dict[str, list[Answered]] = defaultdict(list)
    for answered in table.rows:
        if answered.source and is_official(source=answered.source, kind=answered.type, qa_id=answered.id):
            by_source[answered.source].append(answered)
    if all(answered.prediction is None for answered in table.rows):
        raise ConfigError("no text was generated", file=table.path, field="prediction", value=None, remedy=_GENERATE)
    kept = {source: by_source[source] for source in SOURCES if source in by_source}
    if not kept:
        raise ConfigError(
            "no question of RSVQA's own",
            file=table.path,
            field="source",
            value=sorted({str(answered.source) for answered in table.rows}),
            remedy=f"evaluate a corpus of `prepare.rsvqa`: {[*SOURCES]}",
        )
    return Evaluation(
        variant=variant,
        fingerprint=fingerprint,
        policy=policy,
        scores={s: score_under_all(replace(table, rows=rows), dataset=DATASETS[s]) for s, rows in kept.items()},
        questions={s: frozenset((r.id, r.question, r.type, r.target) for r in rows) for s, rows in kept.items()},
        facts=row,
    )


def _told_apart(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations, those of a variant that was trained more than once under name and fingerprint (as its folder)."""
    trainings = Counter(variant for variant, _ in {(e.variant, e.fingerprint) for e in evaluations})
    return [
        replace(e, variant=f"{e.variant}-{e.fingerprint[:8]}") if trainings[e.variant] > 1 else e for e in evaluations
    ]


def _overview(evaluations: Sequence[Evaluation], told: Sequence[Evaluation], source: str) -> Iterator[str]:
    first = evaluations[0].scores[source]
    yield from _head(["variant", "GSD policy", *(f"{name} {what}" for name in first for what in ("OA", "AA"))])
    floors = [x for score in first.values() for x in (score.majority_oa, score.majority_aa)]
    yield _line([FLOOR, "", *map(_percent, floors)])
    for one in told:
        values = [x for score in one.scores[source].values() for x in (score.oa, score.aa)]
        yield _line([one.variant, one.policy, *map(_above, values, floors)])


def _by_type(evaluations: Sequence[Evaluation], source: str, matcher: str) -> Iterator[str]:
    first = evaluations[0].scores[source][matcher]
    yield from _head(["variant", "GSD policy", *first.types, "AA", "OA"])
    floors = [*(t.majority for t in first.types.values()), first.majority_aa, first.majority_oa]
    yield _line([FLOOR, "", *map(_percent, floors)])
    if matcher == "lhrs":
        silent = [t.empty_answer for t in first.types.values()]
        yield _line(["*empty answer*", "", *map(_percent, silent), "", ""])
    for one in evaluations:
        score = one.scores[source][matcher]
        values = [*(t.score for t in score.types.values()), score.aa, score.oa]
        yield _line([one.variant, one.policy, *map(_above, values, floors)])


def _spoofed(spoofed: Sequence[Evaluation], source: str) -> Iterator[str]:
    """A line a variant, a column a GSD that the model was told."""
    cells: dict[str, dict[float, Evaluation]] = defaultdict(dict)
    for one in spoofed:
        if match := SPOOF.fullmatch(one.policy):
            cells[one.variant][float(match["metres"])] = one
    grid = sorted({metres for row in cells.values() for metres in row})
    yield from _head(["variant", "told", *(f"{metres:g} m" for metres in grid)])
    for variant, row in cells.items():
        scores = [next(iter(row[m].scores[source].values())) if m in row else None for m in grid]
        yield _line([variant, "this GSD", *(_above(s.oa, s.majority_oa) if s else "-" for s in scores)])


def _facts(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    yield from _head(["variant", "GSD policy", "images", "questions", "seconds", "trained at", "evaluated at"])
    for one in evaluations:
        row, counts = one.facts, one.facts.get("counts", {})
        cells = [counts.get("images"), counts.get("questions"), row.get("seconds")]
        commits = [str(row.get(key) or "-")[:12] for key in ("trained_commit", "commit")]
        yield _line([one.variant, one.policy, *map(str, cells), *commits])


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _line(names)
    yield _line(["---", "---", *["---:"] * (len(names) - 2)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _above(value: float | None, floor: float | None) -> str:
    bold = value is not None and floor is not None and value > floor + 1e-9
    return f"**{_percent(value)}**" if bold else _percent(value)
