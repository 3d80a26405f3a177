"""Throughput and peak memory of the pipeline on RSVQA-shaped archives: `python tests/scale/run.py --work DIR`.

Each step is a process of its own. Memory is sampled ten times a second over all of its processes: the largest resident set
of one process, and the sum over all (shared pages are counted in each). Prints one JSON row a step and appends it to
DIR/results.jsonl; `docs/scale.md` holds the table. 1,500 and 15,000 images take about a quarter of an hour and 2 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from archive import make_archive

PER_IMAGE = 100
RULES = ["format", "length", "leaked_label", "leaked_gsd", "gsd_impossible"]


def step(name: str, command: list[str]) -> dict[str, Any]:
    """Runs one command and measures it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start, cpu = time.perf_counter(), dict[int, float]()
    process = psutil.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL)
    largest = together = 0
    while process.poll() is None:
        found = {p.pid: _usage(p) for p in [process, *_children(process)]}
        sizes = [resident for resident, _ in found.values()]
        largest, together = max(largest, *sizes), max(together, sum(sizes))
        cpu |= {pid: seconds for pid, (_, seconds) in found.items() if seconds}
        time.sleep(0.1)
    return {
        "step": name,
        "status": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(sum(cpu.values()), 1),
        "peak_mib": largest >> 20,
        "peak_mib_all": together >> 20,
    }


def _usage(process: psutil.Process) -> tuple[int, float]:
    try:
        times = process.cpu_times()
        return int(process.memory_info().rss), times.user + times.system
    except psutil.Error:
        return 0, 0.0


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def prepare(archive: Path, out: Path, workers: int) -> list[str]:
    """The command that builds a corpus of the archive with as many tasks as workers."""
    file = out.with_suffix(".yaml")
    sources = {"rsvqa_hr": {}, "rsvqa_lr": {}}
    config = {"root": str(archive), "corpus": "scale", "sources": sources, "rules": RULES}
    file.write_text(json.dumps({**config, "tasks": workers, "workers": workers}))  # JSON is YAML
    code = (
        "import json, sys; from pathlib import Path; from scaleearth_pl.prepare.pipeline import build; "
        "build(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    return ["-c", code, str(file), str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[1500, 15000])
    args = parser.parse_args()
    for n_images in args.images:
        archive = args.work / f"archive-{n_images}"
        if not archive.exists():
            make_archive(archive, n_images, PER_IMAGE)
        one, two = args.work / f"one-{n_images}", args.work / f"two-{n_images}"
        module = "scaleearth_pl.prepare."
        steps = {
            "import, inject, filter, write": prepare(archive, one, 1),
            "the same, 2 datatrove workers": prepare(archive, two, 2),
            "report": ["-m", f"{module}report", str(one), "--out", str(args.work / f"report-{n_images}")],
            "leakage guard, within": ["-m", f"{module}leakage", str(one)],
        }
        for name, command in steps.items():
            row = {"images": n_images, "questions": n_images * PER_IMAGE, **step(name, command)}
            row["questions_per_second"] = round(n_images * PER_IMAGE / row["seconds"])
            row["questions_per_cpu_second"] = round(n_images * PER_IMAGE / row["cpu_seconds"])
            line = json.dumps(row)
            with open(args.work / "results.jsonl", "a") as stream:
                stream.write(line + "\n")
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
