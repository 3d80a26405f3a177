"""Grounding boxes of OmniEarth-Bench: read from a reply, compared by overlap under the best of four scalings.

The truth is (x1, y1, x2, y2) in parts of the image. A reply's first four numbers in [..], (..) or as two pairs are a box in
unknown units, so the best overlap of {as it is, over the image's size, / 1000, / 100} counts; a model that answers in pixels of
a resized image still loses. No box reads as (0, 0, 0, 0), which overlaps nothing. The authors' JSON states the truth in
pixels, "<12><34><56><78>", their parquet in parts with the image's size beside it.

The authors' aggregation re-uses its variable `metric` in an inner loop, so that *every* metric that it reports, the IoU
too, is Acc@0.9. `authors_reported` is that number; the others are what was meant.
"""

import re
from collections.abc import Sequence
from typing import Any

from scaleearth_pl.evaluation.benchmarks.choice import Reply

Box = tuple[float, float, float, float]

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)

_PIXELS = re.compile(r"<([\d.]+)>")
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]",
        rf"\({_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\)",
        rf"\({_NUMBER},{_NUMBER}\),\s*\({_NUMBER},{_NUMBER}\)",
    )
)


def read_box(reply: str) -> Box:
    """The first box of a reply; zeros where there is none."""
    match = next((m for form in _FORMS if (m := form.search(reply))), None)
    if match is None:
        return 0.0, 0.0, 0.0, 0.0
    a, b, c, d = map(float, match.groups())
    return a, b, c, d


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 where the union is empty."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = _area(one) + _area(other) - width * height
    return width * height / union if union else 0.0


def best_overlap(truth: Box, box: Box, size: tuple[int, int] | None) -> float:
    """The best of the four scalings; without the image's (width, height) of three."""
    scales = [
        (1.0, 1.0),
        (1000.0, 1000.0),
        (100.0, 100.0),
        *([] if size is None else [(float(size[0]), float(size[1]))]),
    ]
    return max(overlap(truth, (box[0] / w, box[1] / h, box[2] / w, box[3] / h)) for w, h in scales)


def true_box(answer: Any, size: tuple[int, int] | None) -> Box | None:
    """The truth in parts of the image: four numbers, a box as in replies, or "<x><y><x><y>" in pixels; else None."""
    in_pixels = _PIXELS.findall(str(answer))
    if in_pixels and (size is None or len(in_pixels) != 4):
        return None
    if in_pixels and size is not None:
        a, b, c, d = map(float, in_pixels)
        return a / size[0], b / size[1], c / size[0], d / size[1]
    if isinstance(answer, list | tuple) and len(answer) == 4:
        a, b, c, d = map(float, answer)
        return a, b, c, d
    box = read_box(str(answer))
    return box if any(box) else None


def grounding_scores(replies: Sequence[Reply]) -> dict[str, Any]:
    """Mean IoU and share above each threshold."""
    ious = [best_overlap(read_box(r.choice.answer), read_box(r.text), r.choice.size) for r in replies]
    accuracy = {f"acc@{t}": sum(iou >= t for iou in ious) / len(ious) for t in THRESHOLDS}
    return {
        "n": len(ious),
        "iou": sum(ious) / len(ious),
        **accuracy,
        "authors_reported": accuracy["acc@0.9"],
        "sizes_known": sum(reply.choice.size is not None for reply in replies),
    }


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
