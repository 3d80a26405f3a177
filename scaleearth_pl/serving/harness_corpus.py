"""One of our corpora as a local task of a harness: `questions.jsonl` beside the image files.

    python -m scaleearth_pl.serving.harness_corpus data_shards/rsvqa --source rsvqa_lr --out data_shards/harness/rsvqa_lr

RSVQA is in no harness as its authors publish it; here it comes from shards, whose test split is the official one, so
that the harness scores the very questions that `scaleearth evaluate` scores, told as surely. A row of the table:

    {"image": "images/0000.png", "question": "...", "answer": "...", "type": "...", "gsd_m": 10.0, "gsd_sigma_log10": 0.05}

A question with options lists them, as it does in training. GSD (metres per pixel of the file) and sigma (decades, the
sample's own or its provenance's) are null where unknown. Images are written as they lie in the shard. The task files in
`harness_tasks/` read this folder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import command
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.processor import with_options
from scaleearth_pl.data.shards import ShardIndex, ShardReader

SIGMA_FIELD = "gsd_sigma_log10"
"""Field of a row that says how sure its GSD is, in decades; named as in the samples of a corpus."""


def export_corpus(root: Path, out: Path, *, split: str = "test", source: str | None = None) -> int:
    """Writes table and images; returns the number of questions.

    Args:
        root: folder of the corpus.
        out: folder to write.
        split: of the corpus.
        source: only samples of this source, where a corpus mixes several.

    Raises:
        ConfigError: nothing there to write, or a question that follows others in a dialogue, which no row can hold.
    """
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for row in (row for shard in index.shards if shard.split == split for row in range(shard.start, shard.stop)):
        if source is not None and index.text["source"][row] != source:
            continue
        sample, data = reader.read(row)
        name = f"images/{row:06d}.{index.text['ext'][row]}"
        (out / name).write_bytes(data)
        rows += _rows(sample, name)
    reader.close()
    if not rows:
        found = sorted(set(index.text["source"]))
        raise ConfigError(
            "no such samples", file=root, field="split, source", value=(split, source), remedy=f"sources: {found}"
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "questions.jsonl").write_text(text, encoding="utf-8")
    return len(rows)


def _rows(sample: Sample, image: str) -> list[dict[str, Any]]:
    """One row for each question."""
    scale = {"gsd_m": sample.gsd_m_native, SIGMA_FIELD: sample.sigma_log10}
    return [
        {"image": image, "question": row_text(qa), "answer": qa.answer, "type": qa.type, **scale} for qa in sample.qas
    ]


def row_text(qa: Question) -> str:
    """What a harness asks; `ConfigError` for a question that follows others."""
    if qa.turns:
        remedy = "take another source with --source; `scaleearth evaluate` asks dialogues"
        raise ConfigError("follows other questions of a dialogue", field="turns", value=qa.id, remedy=remedy)
    return with_options(qa.question, qa.options)


@command
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="harness_corpus", description="A corpus as a harness's task.")
    parser.add_argument("root", type=Path, help="folder of the corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--source", help="only samples of this source")
    args = parser.parse_args(argv)
    number = export_corpus(args.root, args.out, split=args.split, source=args.source)
    sys.stdout.write(f"{number} questions in {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
