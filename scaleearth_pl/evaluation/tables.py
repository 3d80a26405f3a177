"""Summary and comparison as tables for people; nothing is computed here.

A floor stands beside every accuracy, and every accuracy carries its interval over places. A dash is a figure that was
not measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.evaluation.rsvqa.metric import CAVEAT, SOURCES
from scaleearth_pl.evaluation.sse_u import NUMBERS

FLOORS = ("majority", "question_only", "question_gsd", "image_only")


def summary_tables(document: Mapping[str, Any], details: Mapping[str, Any]) -> Iterator[Table]:
    """Accuracy with floors, SSE-U, gates, RSVQA (each where there is one) and the facts of the run."""
    yield _accuracy_table(document, details)
    if details["sse_u_by_cue"]:
        yield _sse_u_table(details["sse_u_by_cue"])
    if document["gates"]:
        yield _gates_table(document["gates"])
    if details["rsvqa"]:
        yield _rsvqa_table(details["rsvqa"])
    yield _facts_table(document)


def versus_table(versus: Mapping[str, Any]) -> Table:
    """Difference to every twin in percentage points: all seeds together, by group, and the seeds one by one."""
    table = Table(title="ours minus twin, percentage points [95 % over places]")
    table.add_column("questions")
    for twin in versus:
        table.add_column(twin, justify="right")
    shared = [name for name in next(iter(versus.values()))["groups"] if not name.startswith("by_type/")]
    for name in shared:
        style = "bold" if name in ("overall", "by_family/scale_specific") else None
        table.add_row(_title(name), *(_difference(entry["groups"][name]) for entry in versus.values()), style=style)
    n_seeds = max(len(entry["seeds"]) for entry in versus.values())
    for i in range(n_seeds if n_seeds > 1 else 0):
        cells = [_difference(e["seeds"][i]) if i < len(e["seeds"]) else "-" for e in versus.values()]
        table.add_row(f"seed run {i + 1}", *cells)
    return table


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy_table(document: Mapping[str, Any], details: Mapping[str, Any]) -> Table:
    counts = details["counts"]
    where = f"{counts['questions']} questions, {counts['images']} images, {counts['places']} places"
    table = Table(title=f"{document['experiment']} ({document['size']}) on {document['corpus']}: accuracy, %; {where}")
    table.add_column("questions")
    for name in ("n", "accuracy", "95 % over places", "majority", "question only", "question + GSD", "image only"):
        table.add_column(name, justify="right")
    for group, interval in details["accuracy"].items():
        floors = [(details["floors"][name] or {}).get(group) for name in FLOORS]
        low, high = interval["ci95"]
        table.add_row(
            _title(group),
            str(counts["by_group"][group]),
            percent(interval["estimate"]),
            f"{percent(low)} to {percent(high)}",
            *map(percent, floors),
            style="bold" if group == "overall" else None,
        )
    gain = details["floors"]["scale_specific_from_gsd"]
    if gain is not None:
        table.caption = f"scale-specific questions won by the GSD alone: {percent(gain)} points"
    return table


def _sse_u_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="SSE-U (decades; calibrated: ratio 0.798, coverage90 0.90)")
    table.add_column("images with")
    for name in ("images", "mean_sigma", *NUMBERS):
        table.add_column(name, justify="right")
    for group, row in groups.items():
        numbers = [row[name] for name in ("mean_sigma", *NUMBERS)]
        table.add_row(group, str(row["images"]), *("-" if x is None else f"{x:.3f}" for x in numbers))
    return table


def _gates_table(gates: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="mean gate h(s)")
    table.add_column("GSD, m per pixel", justify="right")
    for tier in RANK_TIERS:
        table.add_column(tier, justify="right")
    for gsd, row in gates.items():
        table.add_row(gsd, *(f"{row[tier]:.3f}" for tier in RANK_TIERS))
    return table


def _rsvqa_table(scores: list[Mapping[str, Any]]) -> Table:
    table = Table(title="RSVQA, official binning on both sides, %", caption=CAVEAT)
    table.add_column("source")
    table.add_column("type")
    for name in ("n", "official", "exact", "majority floor"):
        table.add_column(name, justify="right")
    for score in scores:
        label = SOURCES[score["source"]]
        for name, row in score["types"].items():
            shares = (percent(row["official"]), percent(row["exact"]), percent(row["majority"]))
            table.add_row(label, name, str(row["n"]), shares[0], shares[1], f"{shares[2]} ({row['majority_class']})")
        table.add_row(label, "AA", "", percent(score["aa"]), "", percent(score["majority_aa"]), style="bold")
        totals = (percent(score["oa"]), percent(score["exact_oa"]), percent(score["majority_oa"]))
        table.add_row(label, "OA", str(score["n"]), *totals, style="bold", end_section=True)
    return table


def _facts_table(document: Mapping[str, Any]) -> Table:
    table = Table(title="cost", caption=f"commit {document['commit']}")
    for name in document["seconds"]:
        table.add_column(f"{name}, s", justify="right")
    table.add_column("questions per s", justify="right")
    cells = ["-" if s is None else f"{s:.1f}" for s in document["seconds"].values()]
    table.add_row(*cells, f"{document['qas_per_second']:.1f}")
    return table


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{100 * row['estimate']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _title(group: str) -> str:
    kind, _, name = group.partition("/")
    return f"{kind.removeprefix('by_')}: {name}" if name else group
