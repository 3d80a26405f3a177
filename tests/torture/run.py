"""The reliability scoreboard: 28 faults as real processes with real signals, in at most an hour on two quiet cores.

python tests/torture/run.py                 all of them, reports/torture.json and a table
python tests/torture/run.py --resume        the same, without the cases that passed before with the same code
python tests/torture/run.py --only R C      groups: D data, R resume, P processes, C checkpoints, S security, O overhead
python tests/torture/run.py --quick C3 P4   the named ones, fewer repetitions
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import cases_checkpoint  # noqa: E402, F401 (each registers its cases)
import cases_process  # noqa: E402, F401
import cases_reading  # noqa: E402, F401
import cases_resume  # noqa: E402, F401
import cases_samples  # noqa: E402, F401
import cases_security  # noqa: E402, F401
import cases_shards  # noqa: E402, F401
import overhead  # noqa: E402, F401
from harness import CASES, Bench, make_bench  # noqa: E402
from report import finished, identity, show, write  # noqa: E402

ORDER = ("D", "R", "P", "C", "S", "O")


def main(argv: list[str] | None = None) -> int:
    """Runs the cases; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="cases to run (default all)")
    parser.add_argument("--only", nargs="+", choices=ORDER, metavar="GROUP", default=[], help="groups to run")
    parser.add_argument("--resume", action="store_true", help="keep the cases that passed before with the same code")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=Path("reports/torture.json"), help="the report")
    parser.add_argument("--work", type=Path, help="workspace to keep (default a temporary one)")
    args = parser.parse_args(argv)
    about = identity(quick=args.quick)
    kept = finished(args.out, about) if args.resume else []
    chosen = [i for i in sorted(CASES, key=place) if not (args.ids or args.only) or i in args.ids or i[0] in args.only]
    if unknown := set(args.ids) - set(CASES):
        parser.error(f"no such case: {sorted(unknown)}; there are {sorted(CASES, key=place)}")
    rows = run_cases([i for i in chosen if i not in {row["id"] for row in kept}], kept, about, args)
    show(rows, about)
    return int(not all(row["passed"] for row in rows))


def run_cases(ids: list[str], kept: list[dict[str, Any]], about: dict[str, Any], args: Any) -> list[dict[str, Any]]:
    """Kept and new rows in order; the report is written after every case, so that a kill loses one case."""
    rows = list(kept)
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        Path(scratch).chmod(0o755)  # C2 becomes nobody, who must still be able to say what happened
        bench = make_bench(args.work or Path(scratch), full=not args.quick)
        try:
            for id in ids:
                rows = sorted([*rows, run_case(bench, id)], key=lambda row: place(row["id"]))
                write(args.out, rows, about)
        finally:
            bench.zygote.close()
    return rows


def run_case(bench: Bench, id: str) -> dict[str, Any]:
    """One row of the report; `figures` are the numbers that the case found."""
    title, function = CASES[id]
    started, bench.figures = time.time(), {}
    try:
        detail, passed = function(bench), True
    except Exception as error:
        detail, passed = f"{type(error).__name__}: {error}", False
        traceback.print_exc()
    seconds = round(time.time() - started, 1)
    print(f"{id:4} {'ok' if passed else 'FAILED':6} {seconds:7.1f} s  {detail.splitlines()[0][:150]}", flush=True)
    row = {"id": id, "title": title, "passed": passed, "seconds": seconds, "detail": detail}
    return row | {"figures": bench.figures}


def place(id: str) -> tuple[int, int]:
    """Order of the scoreboard."""
    return ORDER.index(id[0]), int(id[1:])


if __name__ == "__main__":
    sys.exit(main())
