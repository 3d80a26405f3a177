"""Functions of the RSVQA task files: the image of a row, and the two accuracies RSVQA's authors report.

Overall accuracy counts questions, average accuracy counts question types. The match is exact on lower-cased text, which
suits the categorical answers of both sets. RSVQA-HR's areas and RSVQA-LR's counts are binned by the authors; the official
binning is `scaleearth evaluate`'s, so its figures and these differ on those types: print both with their matcher.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path("data_shards/harness")


def image_lr(doc: dict[str, Any]) -> list[Image.Image]:
    """The image of a row of RSVQA-LR."""
    return [Image.open(ROOT / "rsvqa_lr" / doc["image"]).convert("RGB")]


def image_hr(doc: dict[str, Any]) -> list[Image.Image]:
    """The image of a row of RSVQA-HR."""
    return [Image.open(ROOT / "rsvqa_hr" / doc["image"]).convert("RGB")]


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    """Whether the answer is right, as both metrics want it."""
    right = float(answers[0].strip().lower() == doc["answer"].strip().lower())
    return {"overall_accuracy": right, "average_accuracy": {"type": doc["type"], "right": right}}


def average_accuracy(rows: list[dict[str, Any]]) -> float:
    """Mean over question types."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_type[row["type"]].append(row["right"])
    return sum(sum(values) / len(values) for values in by_type.values()) / len(by_type)
