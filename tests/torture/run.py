"""The reliability scoreboard: 28 faults as real processes with real signals, in at most an hour on two cores.

python tests/torture/run.py                 all of them, reports/torture.json and a table
python tests/torture/run.py --quick C3 P4   the named ones, fewer repetitions
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import cases_checkpoint  # noqa: E402, F401 (each registers its cases)
import cases_data  # noqa: E402, F401
import cases_process  # noqa: E402, F401
import cases_resume  # noqa: E402, F401
import cases_security  # noqa: E402, F401
import overhead  # noqa: E402
from harness import CASES, Bench, make_bench  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

ORDER = ("D", "R", "P", "C", "S")


def main(argv: list[str] | None = None) -> int:
    """Runs the cases; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="cases to run (default all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=Path("reports/torture.json"), help="the report")
    parser.add_argument("--work", type=Path, help="workspace to keep (default a temporary one)")
    args = parser.parse_args(argv)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        bench = make_bench(args.work or Path(scratch), full=not args.quick)
        try:
            ids = args.ids or sorted(CASES, key=lambda i: (ORDER.index(i[0]), int(i[1:])))
            rows = [run_case(bench, id) for id in ids]
            bench.figures |= {} if args.ids else overhead.measure(bench)
        finally:
            bench.zygote.close()
    report = {"cases": rows, "figures": figures(bench), "seconds": round(time.time() - started), "commit": commit()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))
    show(report)
    return int(not all(row["passed"] for row in rows))


def run_case(bench: Bench, id: str) -> dict[str, Any]:
    """One row of the report."""
    title, function = CASES[id]
    started = time.time()
    try:
        detail, passed = function(bench), True
    except Exception as error:
        detail, passed = f"{type(error).__name__}: {error}", False
        traceback.print_exc()
    row = {"id": id, "title": title, "passed": passed, "seconds": round(time.time() - started, 1), "detail": detail}
    print(
        f"{id:4} {'ok' if passed else 'FAILED':6} {row['seconds']:7.1f} s  {detail.splitlines()[0][:150]}", flush=True
    )
    return row


def figures(bench: Bench) -> dict[str, Any]:
    """The five figures, and what the guarantees cost."""
    found = dict(bench.figures)
    stops = sorted(found.pop("clean_stops", []))
    if stops:
        found["clean_stop"] = {
            "stops": len(stops),
            "median_s": statistics.median(stops),
            "p95_s": stops[min(len(stops) - 1, int(0.95 * len(stops)))],
            "max_s": stops[-1],
        }
    return found


def show(report: dict[str, Any]) -> None:
    """The table."""
    passed = sum(row["passed"] for row in report["cases"])
    table = Table(title=f"{passed} of {len(report['cases'])} in {report['seconds']} s", title_justify="left")
    for name in ("id", "fault", "", "seconds", "what was found"):
        table.add_column(name)
    for row in report["cases"]:
        verdict = "passed" if row["passed"] else "FAILED"
        table.add_row(row["id"], row["title"], verdict, f"{row['seconds']:.0f}", row["detail"].splitlines()[0][:200])
    Console(width=180).print(table)
    for name, value in report["figures"].items():
        print(f"{name}: {json.dumps(value)}")


def commit() -> str:
    """The code under test."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
