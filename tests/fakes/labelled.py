"""A small corpus with class labels, as the importers of scene classification sets write it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from fakes.corpus import fake_sample, random_image

from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.write import ShardWriter

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
            sample = fake_sample(number, split=split, gsd_m=gsd_m, size=size, provenance=provenance)
            sigma = 0.5 if provenance is Provenance.IMPRECISE else None
            sample = replace(sample, class_label=CLASSES[number % 3], source="labelled", qas=(own,), place_id=None)
            sample = replace(sample, gsd_sigma_log10=sigma)
            writer.write(sample, random_image(np.random.default_rng(number), *size), "png")
    return root
