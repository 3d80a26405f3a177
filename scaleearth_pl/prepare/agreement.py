"""How often pairs pass each axis of the audit, and whether two auditors agree more than chance.

    kappa = (p_o - p_e) / (1 - p_e),   p_o = share of equal verdicts,   p_e = sum over verdicts v of p_A(v) p_B(v)

(J. Cohen, "A coefficient of agreement for nominal scales", 1960.) Raw agreement flatters: two auditors that pass
everything agree fully and have looked at nothing. There kappa is undefined (p_e = 1), and None says so. Price: kappa is
low where almost all pairs pass, even between careful judges, so the pass rates stand beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.replies import AXES

ALL_AXES = "all four"
"""Name of the row that counts a pair as passed if all its axes are."""

Verdicts = Mapping[str, Mapping[str, bool]]
"""Question id to axis to verdict; `ALL_AXES` among the axes."""


@dataclass(frozen=True, kw_only=True)
class AxisStatistics:
    """One axis: pairs judged by both (or by the one), pass rates in [0, 1], raw agreement, Cohen's kappa."""

    axis: str
    n: int
    pass_rate: float
    pass_rate_second: float | None = None
    agreement: float | None = None
    kappa: float | None = None


def verdicts_of(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Verdicts of an audit ledger by question id; a question judged twice keeps its last verdict."""
    found = {}
    for record in records:
        for verdict in record["verdicts"]:
            axes = {axis: bool(verdict[axis]["passes"]) for axis in AXES}
            found[verdict["question_id"]] = {**axes, ALL_AXES: all(axes.values())}
    return found


def statistics(first: Verdicts, second: Verdicts | None = None) -> list[AxisStatistics]:
    """Pass rate per axis; with a second auditor, both over the pairs that both have judged.

    Raises:
        ConfigError: no pair was judged, or none by both.
    """
    ids = sorted(first.keys() & second.keys() if second is not None else first.keys())
    if not ids:
        raise ConfigError(
            "no pair was judged" if second is None else "no pair was judged by both auditors",
            field="audit",
            remedy="audit the same records with both models, and the same share",
        )
    return [_axis(axis, ids, first, second) for axis in (*AXES, ALL_AXES)]


def cohens_kappa(first: list[bool], second: list[bool]) -> float | None:
    """Agreement beyond chance of two lists of verdicts, equally long; None where chance agreement is certain."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    p_first, p_second = sum(first) / n, sum(second) / n
    expected = p_first * p_second + (1 - p_first) * (1 - p_second)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def statistics_table(rows: list[AxisStatistics]) -> Table:
    """The statistics for people."""
    table = Table(title=f"audit of {rows[0].n:,} pairs")
    table.add_column("axis")
    for name in ("pass rate", "second auditor", "agreement", "kappa"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.axis, *cells(row))
    return table


def cells(row: AxisStatistics) -> list[str]:
    """Numbers of a row as text, a dash where there is none."""
    numbers = (row.pass_rate, row.pass_rate_second, row.agreement, row.kappa)
    return ["-" if x is None else f"{x:.3f}" for x in numbers]


def _axis(axis: str, ids: list[str], first: Verdicts, second: Verdicts | None) -> AxisStatistics:
    a = [first[i][axis] for i in ids]
    if second is None:
        return AxisStatistics(axis=axis, n=len(ids), pass_rate=sum(a) / len(a))
    b = [second[i][axis] for i in ids]
    return AxisStatistics(
        axis=axis,
        n=len(ids),
        pass_rate=sum(a) / len(a),
        pass_rate_second=sum(b) / len(b),
        agreement=sum(x == y for x, y in zip(a, b, strict=True)) / len(a),
        kappa=cohens_kappa(a, b),
    )
