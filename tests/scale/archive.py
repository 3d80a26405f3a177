"""RSVQA-shaped archives of any size, written in a stream: official JSON layout, small procedural tiles.

15 of 16 images go to HR (0.1524 m), the rest to LR (10 m), 100 questions each, as in the real sets; tiles are as large as
theirs, and JPEG-in-TIFF, so that 15,000 of them fit on a small disk. Every image differs.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OBJECTS = ("building", "road", "water area", "parking lot", "farmland", "forest", "residential area", "commercial area")


@dataclass(frozen=True, kw_only=True)
class Set:
    folder: str
    prefix: str
    images: str
    res: str
    gsd_m: float
    corner_m: tuple[float, float]
    side: int


SETS = (
    Set(
        folder="rsvqa_hr", prefix="USGS", images="Data", res=".1524m", gsd_m=0.1524, corner_m=(-8146817.4, 4988008.6),
        side=512,
    ),
    Set(
        folder="rsvqa_lr", prefix="LR", images="Images_LR", res="10m", gsd_m=10.0, corner_m=(578000.0, 6800000.0),
        side=256,
    ),
)  # fmt: skip


def make_archive(root: Path, n_images: int, per_image: int = 100, seed: int = 0) -> Path:
    """Both sets, split train; `n_images` in all."""
    n_low = max(1, n_images // 16)
    for found, count in zip(SETS, (n_images - n_low, n_low), strict=True):
        folder = root / found.folder
        (folder / found.images).mkdir(parents=True)
        for number in range(count):
            (folder / found.images / f"{number}.tif").write_bytes(
                tile(np.random.default_rng([seed, len(found.prefix), number]), found.side)
            )
        for kind, rows in (("images", _images), ("questions", _questions), ("answers", _answers)):
            with open(folder / f"{found.prefix}_split_train_{kind}.json", "w") as stream:
                stream.write(f'{{"{kind}":[')
                for k, row in enumerate(rows(found, count, per_image)):
                    stream.write(("," if k else "") + json.dumps(row))
                stream.write("]}")
    return root


def tile(rng: np.random.Generator, side: int) -> bytes:
    """Structure at three scales: cheap to draw, and no two look alike to a perceptual hash."""
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side)), np.uint16)
        for n in (4, 8, 32)
    ]
    stream = io.BytesIO()
    Image.fromarray((sum(layers) // 3).astype(np.uint8)).save(stream, "TIFF", compression="jpeg", quality=85)
    return stream.getvalue()


def _images(found: Set, count: int, per_image: int) -> Iterator[dict[str, Any]]:
    x, y = found.corner_m
    for number in range(count):
        step = number * found.side * found.gsd_m
        yield {
            "id": number, "date_added": 0.0, "original_name": f"{number}.png",
            "sensor": "S2" if found.gsd_m > 1 else "ULTRACAM_EAGLE_FALCON",
            "upperleft_map_x": x + step % 2e5, "upperleft_map_y": y + step // 2e5 * found.side * found.gsd_m,
            "res_x": found.res, "res_y": found.res, "people_id": 0, "type": "0", "active": True,
            "questions_ids": list(range(number * per_image, (number + 1) * per_image)),
        }  # fmt: skip


def _qa(found: Set, number: int) -> tuple[str, str, str]:
    a, b = OBJECTS[number % 8], OBJECTS[(number // 8 + 3) % 8]
    scale = number % 7
    if number % 4 == 0:
        return "presence", f"Is there a {a} next to a {b}?", ("yes", "no")[number % 3 == 0]
    if number % 4 == 1:
        return "comp", f"Are there more {a}s than {b}s in the image?", ("no", "yes")[number % 3 == 0]
    if number % 4 == 2 or found.gsd_m > 1:
        return "count", f"What is the number of small {a}s at the top of a {b}?", str(number % 29)
    return "area", f"What is the area covered by {a}s?", f"{scale * 37}m2"


def _questions(found: Set, count: int, per_image: int) -> Iterator[dict[str, Any]]:
    for number in range(count * per_image):
        kind, question, _ = _qa(found, number)
        yield {
            "id": number, "date_added": 0.0, "img_id": number // per_image, "people_id": 0, "type": kind,
            "question": question, "answers_ids": [number], "active": True,
        }  # fmt: skip


def _answers(found: Set, count: int, per_image: int) -> Iterator[dict[str, Any]]:
    for number in range(count * per_image):
        answer = _qa(found, number)[2]
        yield {"id": number, "date_added": 0.0, "question_id": number, "people_id": 0, "answer": answer, "active": True}
