"""XLRS-Bench and OmniEarth-Bench on a sheet: sub-tasks, the official verdict, thumbnails of very large images.

Rows of the evaluator are taken as they are but for two things. The *type* becomes the sub-task that the benchmark reports:
one of XLRS-Bench's 13, the whole path of OmniEarth-Bench. And *correct* becomes the official extractor's verdict (lmms-eval's;
the authors'; a box from an overlap of one half on), because exact match calls "(B)" wrong where every harness calls it right.
The harness's instruction ("Select the best answer ...") is the same in every row and left out.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image, UnidentifiedImageError

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.evaluation.benchmarks.choice import Benchmark, Choice
from scaleearth_pl.evaluation.benchmarks.rows import image_bytes
from scaleearth_pl.evaluation.sheets.answers import Picture, Said, Shown, side_by_side
from scaleearth_pl.evaluation.sheets.choose import Drawn, Variant

THUMBNAIL = 512
"""Longest side in pixels at which an image is kept."""


def as_reported(variant: Variant, choices: Mapping[str, Choice], benchmark: Benchmark) -> Variant:
    """The variant with sub-tasks for types and official verdicts.

    Raises:
        ConfigError: a row without text, or of a question that the files do not have.
    """
    rows = {}
    for key, row in variant.rows.items():
        if row.qa_id not in choices or row.prediction is None:
            raise ConfigError(
                f"variant {variant.name!r} has an answer without text"
                if row.qa_id in choices
                else f"the files of {benchmark.name} do not hold a question that variant {variant.name!r} answered",
                file=variant.path,
                field="qa_id",
                value=row.qa_id,
                remedy=f"`scaleearth evaluate --{benchmark.name} FILE...` on the same files, without --teacher-forced",
            )
        choice = choices[row.qa_id]
        rows[key] = replace(
            row,
            type=benchmark.task_name(choice),
            correct=benchmark.is_right(choice, row.prediction),
            question=without_instruction(row.question),
        )
    return replace(variant, rows=rows)


def without_instruction(prompt: str) -> str:
    """Question and options of a prompt, a line each."""
    return re.sub(r"\s*The choices are listed below:\s*", "\n", prompt.partition("\nSelect the best answer")[0]).strip()


def show_benchmark(variants: Sequence[Variant], drawn: Sequence[Drawn], benchmark: Benchmark) -> Shown:
    """Pictures from the benchmark's files, answers from the evaluator's rows; one image is decoded at a time.

    Raises:
        SampleError: an image that cannot be read.
    """
    rows = {row.qa_id: row for some in drawn for row in some.rows}
    pictures: dict[str, Picture] = {}
    for choice, file, row in benchmark.rows(images=True):
        if choice.id in rows:
            data = image_bytes(row, folder=file.parent)
            images = [thumbnail(one, f"{benchmark.name} {choice.id}") for one in data]
            pictures[rows[choice.id].image_id] = Picture(image=side_by_side(images), extent_m=None)
    said = {v.name: {r.key: Said.of(v.rows[r.key]) for r in rows.values()} for v in variants}
    return Shown(pictures=pictures, said=said)


def thumbnail(data: bytes, where: str) -> Image.Image:
    """An encoded image within THUMBNAIL pixels; JPEG is decoded at a fraction of its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise SampleError(f"not an image that can be shown: {error}", file=where) from error
