"""A corpus in which every second sample is a change pair: two different images of one size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from fakes.corpus import GSDS_M, fake_sample, random_image

from scaleearth_pl.prepare.write import ShardWriter

Images = dict[str, tuple[bytes, ...]]
"""Encoded images by image id, in order."""


def pair_images(number: int, n_images: int) -> tuple[bytes, ...]:
    """PNG first, JPEG after it: members of one sample may differ in format."""
    rng = np.random.default_rng(number)
    return tuple(random_image(rng, 64, 64 + 32 * (number % 3), "jpg" if k else "png") for k in range(n_images))


def make_pair_corpus(root: Path, n_images: int = 6, *, n_val: int = 2, n_test: int = 2) -> Images:
    """Writes the corpus; odd numbers are pairs. Returns what lies in it."""
    written: Images = {}
    with ShardWriter(root, corpus="pairs", samples_per_shard=4) as writer:
        for offset, (split, count) in enumerate({"train": n_images, "val": n_val, "test": n_test}.items()):
            for number in range(count):
                data = pair_images(100 * offset + number, 1 + number % 2)
                size = (64, 64 + 32 * ((100 * offset + number) % 3))
                sample = fake_sample(number, split=split, gsd_m=GSDS_M[number % 3], size=size)
                sample = replace(sample, n_images=len(data), place_id=sample.image_id)
                writer.write(sample, data[0], "png", later=[(one, "jpg") for one in data[1:]])
                written[sample.image_id] = data
    return written
