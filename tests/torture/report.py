"""reports/torture.json and its table: the cases, the five figures, and which code they are of."""

import hashlib
import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]

Row = dict[str, Any]


def identity(*, quick: bool) -> Row:
    """What a result is of: the commit, a digest over every file that takes part, and the extent of the run."""
    patterns = ("scaleearth_pl/**/*.py", "tests/torture/*.py", "tests/fakes/*.py", "experiments/**/*.yaml")
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = done.stdout.strip() or "unknown"
    return {"commit": commit, "code": digest.hexdigest()[:16], "quick": quick, "cores": os.cpu_count()}


def finished(path: Path, about: Row) -> list[Row]:
    """Cases of an earlier report that passed with the same code and extent."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    same = all(report.get(name) == about[name] for name in ("commit", "code", "quick"))
    return [row for row in report["cases"] if row["passed"]] if same else []


def write(path: Path, rows: list[Row], about: Row) -> None:
    """Replaces the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.tmp")
    waiting.write_text(json.dumps(about | {"seconds": total(rows), "cases": rows, "figures": figures(rows)}, indent=1))
    os.replace(waiting, path)


def total(rows: list[Row]) -> int:
    """Seconds of all cases; the fork server's start is not in it."""
    return round(sum(row["seconds"] for row in rows))


def figures(rows: list[Row]) -> Row:
    """The figures of all cases; the times of clean stops become one distribution."""
    found: Row = {}
    stops: list[float] = []
    for row in rows:
        stops += row["figures"].get("clean_stops", [])
        found |= {name: value for name, value in row["figures"].items() if name != "clean_stops"}
    if len(stops) > 1:
        p95 = statistics.quantiles(stops, n=20, method="inclusive")[-1]
        found["clean_stop"] = {
            "stops": len(stops),
            "median_s": round(statistics.median(stops), 2),
            "p95_s": round(p95, 2),
            "max_s": max(stops),
        }
    return found


def show(rows: list[Row], about: Row) -> None:
    """The table, and the figures below it."""
    cases = [row for row in rows if row["id"][0] != "O"]
    passed = sum(row["passed"] for row in cases)
    title = f"{passed} of {len(cases)} in {total(rows)} s, commit {about['commit']}"
    table = Table(title=title, title_justify="left")
    for name in ("id", "fault", "", "seconds", "what was found"):
        table.add_column(name)
    for row in rows:
        verdict = "passed" if row["passed"] else "FAILED"
        table.add_row(row["id"], row["title"], verdict, f"{row['seconds']:.0f}", row["detail"].splitlines()[0][:200])
    console = Console(width=180)
    console.print(table)
    for name, value in figures(rows).items():
        console.print(f"{name}: {json.dumps(value)}", highlight=False)
