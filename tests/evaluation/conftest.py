"""Factories of run folders and corpora for the evaluation tests."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.run_files import Prediction, SseuReading
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.evaluation.predictions import write_rows
from scaleearth_pl.prepare.write import ShardWriter


@pytest.fixture
def prediction() -> Callable[..., Prediction]:
    """Builds one prediction; every field may be overridden."""

    def make(**changes: Any) -> Prediction:
        row = {
            "image_id": "i0", "place_id": "p0", "source": "world", "qa_id": "q0", "type": "presence",
            "family": "identification", "question": "Is there a road?", "answer": "yes", "prediction": "yes",
            "correct": True, "gsd_m": 0.5, "tier": "high", "has_scale_cue": True,
        }  # fmt: skip
        return Prediction(**{**row, **changes})

    return make


@pytest.fixture
def predictions(prediction) -> Callable[..., list[Prediction]]:
    """Ten places with two images of four questions each; `right(i, q)` says which are answered correctly."""

    def make(right: Callable[[int, int], bool] = lambda i, q: True, n_images: int = 20) -> list[Prediction]:
        kinds = [("presence", "identification"), ("width_m", "scale_specific")] * 2
        scales = [(0.3, "high"), (3.0, "mid"), (30.0, "low")]
        return [
            prediction(
                image_id=f"i{i}",
                place_id=f"p{i // 2}",
                qa_id=f"q{q}",
                type=kinds[q][0],
                family=kinds[q][1],
                answer="yes" if (i + q) % 3 else "no",
                gsd_m=scales[i % 3][0],
                tier=scales[i % 3][1],
                correct=right(i, q),
                prediction=None,
                has_scale_cue=bool(i % 4),
            )
            for i in range(n_images)
            for q in range(4)
        ]

    return make


@pytest.fixture
def run_folder(tmp_path) -> Callable[..., Path]:
    """Writes a run folder and returns it."""

    def make(name: str, rows: Sequence[Prediction], **run: Any) -> Path:
        folder = tmp_path / "runs" / name / "version_0"
        write_rows(folder / "predictions.jsonl", rows)
        record = {
            "experiment": name, "stage": "stage2", "size": "tiny", "corpus": "world", "commit": "abc123",
            "versions": {"torch": "2.13"}, "seconds": {"fit": 12.5}, "qas_per_second": 321.0,
            "stage1": "runs/stage1/latest/hf", "steps": 100,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps({**record, **run}))
        return folder

    return make


@pytest.fixture
def readings() -> list[SseuReading]:
    """Two hundred images whose errors are exactly as large as sigma says; no cue means a sigma five times larger."""
    rng = np.random.default_rng(0)
    rows = []
    for i, z in enumerate(rng.standard_normal(200)):
        cue, s = bool(i % 4), float(rng.uniform(-1, 1.5))
        sigma = float((0.1 if cue else 0.5) * rng.uniform(0.5, 1.5))
        rows.append(
            SseuReading(
                image_id=f"i{i}",
                place_id=f"p{i}",
                gsd_m=10**s,
                provenance_weight=1.0,
                mu=s + float(z) * sigma,
                sigma=sigma,
                has_scale_cue=cue,
                tier=str(TierBoundaries().tier_of(10**s)),
            )
        )
    return rows


@pytest.fixture
def corpus(tmp_path) -> Callable[..., Path]:
    """Writes a corpus of grey images; `qas(split, i, gsd_m)` gives the questions of an image."""

    def make(qas: Callable[[str, int, float], Sequence[Question]], sizes: dict[str, int] | None = None) -> Path:
        root, boundaries = tmp_path / "corpus", TierBoundaries()
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, format="PNG")
        rng = np.random.default_rng(1)
        with ShardWriter(root, corpus="fake", boundaries=boundaries) as writer:
            for split, n in (sizes or {"train": 120, "val": 40, "test": 60}).items():
                for i in range(n):
                    gsd_m = float(10 ** rng.uniform(-1, 1.5))
                    sample = Sample(
                        source="fake",
                        split=split,
                        image_id=f"{split}-{i}",
                        place_id=f"{split}-{i}",
                        width=16,
                        height=16,
                        gsd_m_native=gsd_m,
                        gsd_provenance=Provenance.EXACT,
                        tier=boundaries.tier_of(gsd_m),
                        qas=tuple(qas(split, i, gsd_m)),
                    )
                    writer.write(sample, buffer.getvalue(), "png")
        return root

    return make
