"""Images of a corpus for the viewer: a few of every tier, with their questions and true answers; change pairs not."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.geo.candidates import Candidate, Resolution, Stage
from scaleearth_pl.serving.images import OpenedImage, open_image

QUESTIONS = 8
"""Questions offered with an image, the families in turn: a page, not an exam."""


class CorpusImages:
    """`count` images of one split, spread evenly over it, first and last included; none where there is no such corpus.

    Args:
        root: folder of the corpus.
        split: of which.
        count: how many.
        max_read_pixels: as in `open_image`.
    """

    def __init__(self, root: Path, *, split: str = "val", count: int = 48, max_read_pixels: int) -> None:
        if count < 1:
            raise ConfigError("a page of no images", field="images", value=count, remedy="give a positive number")
        self._max_read_pixels = max_read_pixels
        self._samples: list[tuple[Sample, bytes]] = []
        if (root / "index.json").is_file():
            index = ShardIndex.load(root)
            reader = ShardReader(index)
            rows = [row for s in index.shards if s.split == split for row in range(s.start, s.stop)]
            rows = [row for row in rows if row not in index.later]  # the page shows one image
            places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int).tolist()
            self._samples = [reader.read(rows[place]) for place in places]
            reader.close()
        self.rows = [self._row(number, sample) for number, (sample, _) in enumerate(self._samples)]

    def open(self, number: int) -> OpenedImage:
        """Pixels and GSD of an image, as `ask` would have them from a file that says what the corpus knows."""
        if not 0 <= number < len(self._samples):
            raise SampleError("no such image", field="image", value=number, remedy="/api/images lists them")
        sample, data = self._samples[number]
        opened = open_image(data, name=sample.image_id, max_read_pixels=self._max_read_pixels)
        chosen = None
        if sample.gsd_m_native is not None:
            chosen = Candidate(
                gsd_m=sample.gsd_m_native,
                provenance=sample.gsd_provenance,
                stage=Stage.PIXEL_RECORD,
                source="corpus",
                sigma_log10=math.nan if sample.sigma_log10 is None else sample.sigma_log10,
            )
        gsd = Resolution(chosen=chosen, candidates=() if chosen is None else (chosen,))
        return OpenedImage(name=opened.name, pixels=opened.pixels, native_size=opened.native_size, gsd=gsd)

    @staticmethod
    def _row(number: int, sample: Sample) -> dict[str, Any]:
        families: dict[str, list[Any]] = {}
        for qa in sample.qas:
            families.setdefault(qa.family, []).append(qa)
        turns = [qa for place in range(QUESTIONS) for qas in families.values() for qa in qas[place : place + 1]]
        asked = [{"question": qa.question, "answer": qa.answer, "options": qa.options} for qa in turns[:QUESTIONS]]
        row = {"number": number, "id": sample.image_id, "tier": sample.tier, "gsd_m": sample.gsd_m_native}
        return row | {"has_scale_cue": sample.has_scale_cue, "questions": asked}
