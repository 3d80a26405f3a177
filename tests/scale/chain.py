"""The whole pipeline in one go, under fire: `python tests/scale/chain.py --work DIR [--real ../shared/real]`.

    archives -> prepare -> leakage guard: list of copies -> prepare without them (20 kills) -> generate (20 kills)
             -> filter -> audit (20 kills) -> merge (20 kills) -> report, leakage guard -> make stage2

RSVQA tiles and GeoTIFFs are real ones where `--real` has them, everything else is a generated miniature. The model behind
generation and audit is a fake on localhost that misbehaves (`fakes/chat_server.py`); every other part is what a user runs,
each step a process of its own. Each killed step is compared with an uninterrupted one. One line a step; exit status 0 if
all held; DIR/chain.json holds every figure, also those before a failure. Five to ten minutes on two quiet cores.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from chain_kills import Asking, ask_killed, ask_whole, launch_and_await_writing, write_killed  # noqa: E402
from fakes.archives import edit_json, make_all, make_patternnet, make_xben, picture, put  # noqa: E402
from rich.console import Console  # noqa: E402
from scale.archive import make_archive  # noqa: E402

from scaleearth_pl.data.shard_index import ShardIndex  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
CORPUS, CONCURRENCY, ALL = "geoscale_vqa", 4, "[train, val, test]"
SETTINGS = [
    "kind=pipeline", "tasks=6", "samples_per_shard=16", "sources.rsvqa_xben.splits=" + ALL, "sources.mtsccd.splits=" + ALL,
    "sources.patternnet.splits=" + ALL, "sources.patternnet.shares={val: 0.2, test: 0.2}",
    "sources.geochat_instruct.parents=dota", "sources.vrsbench.parents=dota",
]  # fmt: skip
GENERATE = [
    "--splits", "train", "val", "test", "--coarsen", "2", "--sources", "patternnet", "mtsccd", "geotiffs", "fmow",
]  # fmt: skip
"""RSVQA and the conversation sets bring questions of their own, and RSVQA's test split is scored officially."""
console = Console()


class Chain:
    """The steps in order; `figures` grows step by step and is written after each."""

    def __init__(self, work: Path, real: Path | None, kills: int, seed: int) -> None:
        self.work, self.real, self.kills, self.rng = work, real, kills, random.Random(seed)
        self.root, self.whole, self.killed = work / "archives", work / "whole", work / "killed"
        self.figures: dict[str, Any] = {"kills_per_step": kills, "seed": seed, "concurrency": CONCURRENCY}

    def step(self, name: str, found: dict[str, Any]) -> None:
        """Keeps and prints what a step found."""
        self.figures[name] = found
        (self.work / "chain.json").write_text(json.dumps(self.figures, indent=1) + "\n")
        text = ", ".join(f"{key} {value}" for key, value in found.items())
        console.print(f"{time.strftime('%H:%M:%S')} [bold]{name}[/bold]: {text}", soft_wrap=True, highlight=False)

    def archives(self) -> None:
        """Miniatures of all sources; the real RSVQA tiles and GeoTIFFs where there are any."""
        make_all(self.root)
        make_patternnet(self.root, per_class=9)
        make_xben(self.root, split="val", first=6, n_images=2)
        make_xben(self.root, split="test", first=8, n_images=2)
        more_conversations(self.root / "rs_gpt4v", 20)
        if self.real is None:
            make_archive(self.root, 32, 8)
        else:
            for name in ("rsvqa_lr", "rsvqa_hr"):
                (self.root / name).symlink_to((self.real / name).resolve())
        rasters = sorted(self.real.glob("geotiff/*.tif")) if self.real else []
        ask_about_rasters(self.root / "geotiffs", rasters)
        self.step("archives", {"real_rsvqa": self.real is not None, "real_geotiffs": len(rasters)})

    def prepare(self) -> None:
        """Import, inject, find copies; import without them, in parts, and join."""
        splits = ALL if self.real else "[train]"
        changes = [*SETTINGS, f"root={self.root}", *(f"sources.rsvqa_{x}.splits={splits}" for x in ("lr", "hr"))]
        command = [scaleearth(), "prepare", str(REPOSITORY / "experiments" / "corpus" / "geoscale_vqa.yaml")]
        command += [word for change in changes for word in ("--set", change)]
        first, drop = self.work / "first", self.work / "copies.txt"
        write_whole([*command, "--out", str(first)], first)
        guard = status([scaleearth(), "leakage", str(first), "--drop", str(drop)])
        self.step("leakage guard", {"status": guard, "copies": drop.read_text().split()})
        command += ["--set", f"drop={drop}"]
        self.write("prepare", "sources", lambda folder: [*command, "--out", str(folder / "sources")])
        self.step("gsd", json.loads((self.whole / "sources" / "import.json").read_text())["gsd"])

    def write(self, what: str, name: str, command: Callable[[Path], list[str]]) -> None:
        """A command that writes a corpus `name`, once in one go and once under fire."""
        whole = self.whole / name
        seconds = write_whole(command(self.whole), whole)
        self.step(what, {"seconds": seconds, **contents(whole)})
        fire = command(self.killed), self.killed / name, whole
        self.step(f"{what}, killed", write_killed(*fire, seconds=seconds, kills=self.kills, rng=self.rng))

    def ask(self, what: str, name: str, key_of: Any, *options: str) -> None:
        """`generate` or `audit`, once in one go and once under fire; each on the files of its own line."""

        def asking(folder: Path) -> Asking:
            module = [sys.executable, "-m", f"scaleearth_pl.prepare.{what}", "--corpus", str(folder / "sources")]
            server = ["--model", "m", "--backoff", "0.01", "--timeout", "2", "--deadline", "60", "--attempts", "4"]
            files = [option.replace("DIR", str(folder)) for option in options]
            command = [*module, *server, *files, "--out", str(folder / name), "--max-failed-share", "0.2"]
            return Asking(command=command, out=folder / name, key_of=key_of, concurrency=CONCURRENCY)

        whole, killed = asking(self.whole), asking(self.killed)
        self.step(what, ask_whole(whole))
        n_requests = self.figures[what]["requests"]
        self.step(f"{what}, killed", ask_killed(killed, whole, n_requests=n_requests, kills=self.kills, rng=self.rng))

    def filter(self) -> None:
        """The rules; the files of both lines must be equal although the ledgers' orders differ."""
        for folder in (self.whole, self.killed):
            files = ["--records", str(folder / "generated.jsonl"), "--out", str(folder / "filtered.jsonl")]
            assert status([sys.executable, "-m", "scaleearth_pl.prepare.filter", *files]) == 0
        for name in ("filtered.jsonl", "filtered.rejected.jsonl"):
            assert (self.whole / name).read_bytes() == (self.killed / name).read_bytes(), f"{name} differs after kills"
        rows = [json.loads(line) for line in (self.whole / "filtered.jsonl").read_text().splitlines()]
        dropped = len((self.whole / "filtered.rejected.jsonl").read_text().splitlines())
        self.step("filter", {"pairs_kept": sum(len(row["qas"]) for row in rows), "dropped": dropped, "identical": True})

    def merge(self) -> None:
        """Generated questions beside the sources' own, into the shards that are trained on."""

        def command(folder: Path) -> list[str]:
            files = [f"--corpus={folder / 'sources'}", f"--records={folder / 'filtered.jsonl'}"]
            module = [sys.executable, "-m", "scaleearth_pl.prepare.merge", *files]
            return [*module, f"--audit={folder / 'audit.jsonl'}", f"--out={folder / CORPUS}"]

        self.write("merge", CORPUS, command)

    def look(self) -> None:
        """Figures and card; the leakage guard on the result, and on a copy that was planted."""
        corpus, report = self.killed / CORPUS, self.work / "report"
        assert status([scaleearth(), "report", str(corpus), "--out", str(report)]) == 0
        pictures = {path.name: path.stat().st_size for path in sorted(report.glob("*.png"))}
        planted = self.work / "evaluation"
        shutil.copytree(self.root / "dota" / "train" / "images", planted, dirs_exist_ok=True)
        clean = status([scaleearth(), "leakage", str(corpus)])
        assert clean == 0, "copies are left in the corpus"
        caught = status([scaleearth(), "leakage", str(corpus), "--no-within", "--against", str(planted)])
        assert caught == 3, "the leakage guard does not see a planted copy"
        self.step("report and leakage", {"pictures": pictures, "leakage_status": clean, "planted_copy_status": caught})

    def train(self, full: bool) -> None:
        """`make stage2`, which runs stage 1 first, and its summary."""
        tag, runs = f"tiny-{CORPUS}{'' if full else '-fast'}", self.work / "runs"
        words = [f"ROOT={self.killed / CORPUS}", f"STAGE1={runs}/stage1-{tag}", f"STAGE2={runs}/stage2-{tag}"]
        words += [f"ARGS=--runs_dir {runs}", *([] if full else ["FAST=1"])]
        start = time.monotonic()
        made = subprocess.run(["make", "stage2", f"CORPUS={CORPUS}", *words], cwd=REPOSITORY, check=False)
        assert made.returncode == 0, f"status {made.returncode}"
        summary = json.loads((runs / f"stage2-{tag}" / "latest" / "summary.json").read_text())
        kept = {"wall_seconds": round(time.monotonic() - start, 1), "summary": summary}
        self.step("make stage2", {"fast": not full, **kept})


def more_conversations(folder: Path, count: int) -> None:
    """Enough images for stage 1 to read more than one batch."""
    turns = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A field."}]
    for number in range(count):
        put(folder / "images" / f"more{number}.png", picture(2000 + number, 64, 64))
    rows = [{"id": f"more{k}", "image": f"more{k}.png", "conversations": turns} for k in range(count)]
    edit_json(folder / f"{folder.name}.json", lambda table: table.extend(rows))


def ask_about_rasters(folder: Path, rasters: list[Path]) -> None:
    """Links the rasters and gives each a question that needs no expert; drops the row that no single split can hold."""
    table = folder / "questions.jsonl"
    lines = [line for line in table.read_text().splitlines() if '"split": "test"' not in line]
    for path in rasters:
        (folder / path.name).symlink_to(path.resolve())
        lines.append(json.dumps({"image": path.name, "question": "Is this seen from above?", "answer": "yes"}))
    table.write_text("\n".join(lines) + "\n")


def contents(corpus: Path) -> dict[str, Any]:
    """Images and questions by split."""
    index = ShardIndex.load(corpus)
    rows = {split: index.rows((split,)) for split in index.splits}
    questions = {split: int(index.number["n_questions"][of_split].sum()) for split, of_split in rows.items()}
    return {"shards": len(index.shards), "images": {s: len(r) for s, r in rows.items()}, "questions": questions}


def write_whole(command: list[str], out: Path) -> float:
    """Runs a command that writes `out`; seconds from its first byte to its end."""
    process, begun = launch_and_await_writing(command, out)
    found = process.wait()
    assert found in (0, 3), f"status {found}: {' '.join(command)}"
    return round(time.monotonic() - begun, 2)


def scaleearth() -> str:
    """The program beside this interpreter."""
    return str(Path(sys.executable).parent / "scaleearth")


def status(command: list[str]) -> int:
    """Exit status of a command that says nothing here."""
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def main() -> int:
    """Runs all steps; 0 if every assertion held."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--real", type=Path, help="folder of rsvqa_lr, rsvqa_hr and geotiff; else miniatures")
    parser.add_argument("--kills", type=int, default=20, help="of each step")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--full", action="store_true", help="stage 1 and 2 at their full number of steps")
    parser.add_argument("--no-train", action="store_true", help="stop before make stage2")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}
    if args.work.exists() and any(args.work.iterdir()):
        parser.error(f"{args.work} is not empty")
    chain = Chain(args.work.resolve(), args.real, args.kills, args.seed)
    try:
        chain.archives()
        chain.prepare()
        evidence = lambda r: r["qas"][0]["evidence"]  # noqa: E731
        chain.ask("generate", "generated.jsonl", evidence, *GENERATE)
        chain.filter()
        verdict = lambda r: r["verdicts"][0]["answerable"]["reason"].rsplit(" ", 1)[1]  # noqa: E731
        chain.ask("audit", "audit.jsonl", verdict, "--records", "DIR/filtered.jsonl")
        chain.merge()
        chain.look()
        if not args.no_train:
            chain.train(args.full)
    except Exception:
        chain.step("failed", {"error": traceback.format_exc()})
    return int("failed" in chain.figures)


if __name__ == "__main__":
    raise SystemExit(main())
