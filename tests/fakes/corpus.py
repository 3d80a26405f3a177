"""A corpus of random images with questions, written by the real `ShardWriter`."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.prepare.write import ShardWriter

GSDS_M = (0.3, 3.0, 20.0)
"""Native GSDs, one a tier; images cycle through them."""


def random_image(rng: np.random.Generator, width: int, height: int, ext: Literal["png", "jpg"] = "png") -> bytes:
    """Encoded RGB image: smooth noise, so that JPEG and resizing have something to keep."""
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image.save(stream, format={"png": "PNG", "jpg": "JPEG"}[ext])
    return stream.getvalue()


def fake_questions(rng: np.random.Generator, n_questions: int) -> tuple[Question, ...]:
    """Questions of the three families, of ragged length."""
    rows = []
    for k in range(n_questions):
        family = ("identification", "scale_specific", "discriminative")[k % 3]
        words = " and".join(f" roads of {int(rng.integers(2, 40))} metres" for _ in range(1 + k % 4))
        options = ("yes", "no") if k % 5 == 0 else None
        answer = str(rng.choice(["yes", "no", "forest", f"{int(rng.integers(1, 90))} m"]))
        rows.append(
            Question(
                id=f"q{k}",
                type=f"type_{k % 3}",
                family=family,
                question=f"Are there{words}?",
                answer=answer,
                options=options,
            )
        )
    return tuple(rows)


def fake_sample(
    number: int,
    *,
    split: str = "train",
    gsd_m: float | None = 0.3,
    provenance: Provenance = Provenance.EXACT,
    size: tuple[int, int] = (64, 64),
    n_questions: int = 4,
    seed: int = 0,
) -> Sample:
    """One sample; `size` is (width, height). `gsd_m=None` gives provenance unknown."""
    rng = np.random.default_rng([seed, number])
    return Sample(
        source="fake",
        split=split,
        image_id=f"{split}-{number:05d}",
        place_id=f"{split}-place-{number // 2:05d}",
        region_id=f"{split}-region",
        width=size[0],
        height=size[1],
        gsd_m_native=gsd_m,
        gsd_provenance=Provenance.UNKNOWN if gsd_m is None else provenance,
        tier=TierBoundaries().tier_of(gsd_m),
        has_scale_cue=number % 3 != 0,
        qas=fake_questions(rng, n_questions),
    )


def make_fake_corpus(
    root: Path,
    n_images: int = 12,
    *,
    n_val: int = 4,
    n_test: int = 4,
    n_stage1: int = 0,
    size: tuple[int, int] = (64, 64),
    n_questions: int = 4,
    samples_per_shard: int = 4,
    ragged: bool = True,
    with_unknown: bool = False,
    ext: Literal["png", "jpg"] = "png",
    seed: int = 0,
) -> Path:
    """Writes a corpus and returns `root`, the folder that holds `index.json`.

    Args:
        root: new folder.
        n_images: images of split train; likewise `n_val`, `n_test`, `n_stage1`.
        size: (width, height) of the even images; odd ones are 32 pixels wider where `ragged`.
        n_questions: questions of the even images; odd ones have between 1 and twice as many where `ragged`.
        samples_per_shard: small, so that there are several shards a tier.
        ragged: vary sizes and question counts.
        with_unknown: every seventh image has no GSD.
        ext: encoding of the images.
        seed: equal seeds give equal bytes.
    """
    counts = {"train": n_images, "val": n_val, "test": n_test, "stage1": n_stage1}
    with ShardWriter(root, corpus="fake", samples_per_shard=samples_per_shard, content_hash=f"fake-{seed}") as writer:
        for split_number, (split, count) in enumerate(counts.items()):
            for number in range(count):
                rng = np.random.default_rng([seed, split_number, number])
                odd = ragged and number % 2 == 1
                width, height = size[0] + 32 * odd, size[1]
                n = int(rng.integers(1, 2 * n_questions + 1)) if odd else n_questions
                unknown = with_unknown and number % 7 == 6
                gsd_m = None if unknown else GSDS_M[number % len(GSDS_M)]
                provenance = Provenance.NOMINAL if number % 4 == 1 else Provenance.EXACT
                sample = fake_sample(
                    number,
                    split=split,
                    gsd_m=gsd_m,
                    provenance=provenance,
                    size=(width, height),
                    n_questions=n,
                    seed=seed + split_number,
                )
                writer.write(sample, random_image(rng, width, height, ext), ext)
    return root
