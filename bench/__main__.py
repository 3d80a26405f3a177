"""`make bench`: all sections, or those named, into one JSON file per hardware; then the figure and the tables.

Sections are independent and are merged into the file of an earlier run, each with its own commit. `held_out` trains,
needs the world corpus and its stage 1, and is run only by name.
"""

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import curves, evaluation, held_out, loader, report
from bench.ladder import MICRO_TOKENS, LadderSettings, ladder
from bench.ours import LoraShape
from bench.peers import quiet
from bench.shapes import Bank, Shape, write_corpus
from bench.timing import clock_name
from scaleearth_pl.core.commit import current_commit

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "lightning")


def hardware() -> str:
    """Name of what runs here: the GPU, or processor and cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def sections(scratch: Path, lora: LoraShape, *, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What can be run, by name; each returns entries of the results file."""
    shape = Shape(questions=32 if quick else 100, visual_tokens=64 if quick else 256)
    bank = Bank(write_corpus(scratch / "corpus", shape), shape)
    rounds = 1 if quick else 5
    how = {"rounds": min(rounds, 3), "micro_tokens": MICRO_TOKENS}
    settings = LadderSettings(rounds=1, peer_questions=4, whole_rounds=1, whole_steps=2, grad_questions=16)
    sizes = {"visual_tokens": shape.visual_tokens, "branch_tokens": bank.n_branch_tokens}
    stage1 = ROOT / "runs/stage1-tiny-world/latest/hf"
    return {
        "ladder": lambda: sizes | ladder(bank, scratch, lora, settings if quick else LadderSettings()),
        "gate": lambda: {
            "gate": curves.gate_price(bank, (16, 64), rounds=1 if quick else 9, micro_tokens=MICRO_TOKENS)
        },
        "over_k": lambda: {"over_k": curves.over_k(bank, lora, **how)},
        "visual_tokens": lambda: {"over_visual_tokens": curves.over_visual_tokens(scratch, lora, **how)},
        "length": lambda: {"over_length": curves.over_length(scratch, lora, **how)},
        "memory": lambda: {"memory": curves.memory_over_k(scratch, lora, token_budget=MICRO_TOKENS)},
        "loader": lambda: {"loader": loader.decoding(scratch, rounds=rounds)},
        "waiting": lambda: {"waiting": loader.waiting(lora, n_steps=4 if quick else 60)},
        "evaluation": lambda: {
            "evaluation": evaluation.generation(bank, rounds=min(rounds, 3), n_questions=shape.questions)
        },
        "held_out": lambda: {"held_out": held_out.held_out(ROOT / "data_shards/world", stage1, scratch / "fit", lora)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="sections, comma-separated; default: all but held_out")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/figures/bench.png")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--threads", type=int, default=1, help="1 times by CPU clock, which other processes do not touch"
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = hardware()
    path = arguments.out / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {"schema": "scaleearth-bench/1", "hardware": name, "commit": current_commit(), "rank": arguments.rank}
    results |= {"threads": arguments.threads, "clock": clock_name()}
    results["versions"] = {package: version(package) for package in PACKAGES}
    with tempfile.TemporaryDirectory() as scratch, quiet():
        found = sections(Path(scratch), LoraShape(rank=arguments.rank), quick=arguments.quick)
        chosen = arguments.only.split(",") if arguments.only else [name for name in found if name != "held_out"]
        for number, section in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {section} ...", flush=True)
            start, cpu = time.perf_counter(), time.process_time()
            results |= found[section]()
            took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            took = {name: round(seconds, 1) for name, seconds in took.items()}
            results.setdefault("sections", {})[section] = took | {"commit": results["commit"]}
            for row in results.get("rows", []) if section == "ladder" else ():
                row |= {"hardware": name, "commit": results["commit"]}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"    {took['seconds']} s, {took['cpu_seconds']} s of processor time", flush=True)
    report.draw(results, arguments.figure)
    print(report.markdown(results))


if __name__ == "__main__":
    main()
