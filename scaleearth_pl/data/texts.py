"""Texts on which the tiny tokenizer is trained: the corpus's own words, and those of the prompts."""

from contextlib import suppress
from typing import get_args

import numpy as np

from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.data.processor import GsdText, gsd_prompt
from scaleearth_pl.data.shards import ShardIndex, ShardReader

TOKENIZER_IMAGES = 20_000
"""Images whose questions are read, evenly spaced where there are more."""


def corpus_texts(index: ShardIndex, splits: tuple[str, ...]) -> set[str]:
    """Different questions, answers and options of these splits, with the GSD texts of baseline B3 and the digits.

    Args:
        index: the corpus.
        splits: those that are not held out.
    """
    reader = ShardReader(index)
    values = [None, *np.geomspace(0.01, 100, 400).tolist()]
    texts = {gsd_prompt(value, style) for value in values for style in get_args(GsdText)} | set("0123456789")
    rows = index.rows(splits)
    for row in rows[:: max(1, len(rows) // TOKENIZER_IMAGES)].tolist():
        with suppress(SampleError, GsdError):  # such a sample is counted when its lengths are measured
            for qa in reader.read_sample(row).qas:
                texts.update(
                    (qa.question, qa.answer, *(qa.options or ()), *(t for turn in qa.turns or () for t in turn))
                )
    reader.close()
    return texts
