"""A small corpus with class labels, as the importers of scene classification sets write it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fakes.chat_server import ChatServer
from fakes.corpus import fake_sample, random_image

from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare import audit, generate
from scaleearth_pl.prepare import filter as filtering
from scaleearth_pl.prepare.write import ShardWriter

QUICK = ["--model", "m", "--backoff", "0.01", "--timeout", "10", "--deadline", "30"]
"""Options of `generate` and `audit` for a local server that answers at once."""

CLASSES = ("parking_lot", "forest", "beach")


def make_labelled_corpus(
    root: Path,
    n_images: int = 6,
    *,
    gsds_m: Sequence[float | None] = (0.3, 3.0, 20.0),
    size: tuple[int, int] = (64, 64),
    provenance: Provenance = Provenance.EXACT,
    n_val: int = 0,
) -> Path:
    """Writes `n_images` training images of cycling class and GSD, each with one question; returns `root`."""
    own = Question(id="own", type="scene", family="identification", question="What is shown?", answer="land")
    with ShardWriter(root, corpus="labelled", samples_per_shard=4) as writer:
        for number in range(n_images + n_val):
            split = "train" if number < n_images else "val"
            gsd_m = gsds_m[number % len(gsds_m)]
            sample = fake_sample(number, split=split, gsd_m=gsd_m, size=size)
            sample = replace(sample, class_label=CLASSES[number % 3], source="labelled", qas=(own,), place_id=None)
            if provenance is Provenance.IMPRECISE:
                sample = replace(sample, gsd_provenance=provenance, gsd_sigma_log10=0.5)
            writer.write(sample, random_image(np.random.default_rng(number), *size), "png")
    return root


def make_chain(root: Path) -> Path:
    """Runs generate (with coarse views), filter and audit into `root`: corpus/ and {generated,filtered,audit}.jsonl."""
    corpus = make_labelled_corpus(root / "corpus", 6, gsds_m=(0.3, 3.0), size=(128, 128), n_val=2)
    with ChatServer() as server:
        where = ["--corpus", str(corpus), "--base-url", server.base_url, *QUICK]
        assert generate.main([*where, "--out", str(root / "generated.jsonl"), "--coarsen", "4"]) == 0
        files = ["--records", str(root / "generated.jsonl"), "--out", str(root / "filtered.jsonl")]
        assert filtering.main(files) == 0
        files = ["--records", str(root / "filtered.jsonl"), "--out", str(root / "audit.jsonl")]
        assert audit.main([*where, *files]) == 0
    return root


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as a ledger holds them."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
