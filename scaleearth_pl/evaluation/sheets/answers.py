"""Pictures and answers of what was drawn.

`scaleearth test` is teacher-forced: its predictions say right or wrong, not what a model *said*. So a run whose rows have
no text is asked again, the drawn questions only, greedily and under the policy that it was trained with: seconds a run.
Greedy exact match and teacher-forced exact match are the same thing up to rounding (questions share a pass with others
here), and `differing` counts where they were not. Answers of `scaleearth evaluate` have texts and need no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image
from rich.progress import track

from scaleearth_pl.core.console import console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import StoredImage
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.evaluation.evaluator.engine import Asked, grouped, run_views
from scaleearth_pl.evaluation.evaluator.model import load_subject
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.pairing import Key
from scaleearth_pl.evaluation.sheets.choose import Drawn, Variant

NEW_TOKENS = 24
"""Of an answer, as in `scaleearth evaluate`."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one variant answered to one question."""

    text: str
    right: bool

    @classmethod
    def of(cls, row: Prediction) -> Self:
        """From a row that has its text."""
        return cls(text=row.prediction or "", right=row.correct)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """RGB pixels as shown, and the ground they cover from left to right in metres (None: nobody says)."""

    image: Image.Image
    extent_m: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Everything that a sheet needs to be drawn. `differing` verdicts of `asked` did not come out as recorded."""

    pictures: Mapping[str, Picture]
    said: Mapping[str, Mapping[Key, Said]]
    asked: int = 0
    differing: int = 0


def show_corpus(variants: Sequence[Variant], drawn: Sequence[Drawn], *, corpus: Path, device: str = "auto") -> Shown:
    """Pictures from the shards; texts from the rows, or from the model where the rows have none.

    Args:
        variants: columns.
        drawn: images and questions.
        corpus: folder of shards that was evaluated.
        device: for models that must be asked again.

    Raises:
        ConfigError: an image that the corpus does not have, or another question under the same id.
        CheckpointError: a run without texts whose model cannot be loaded.
    """
    index = ShardIndex.load(corpus)
    stored = read_stored(index, drawn)
    said: dict[str, dict[Key, Said]] = {}
    asked = differing = 0
    for variant in track(variants, description="answers", console=console(stderr=True), transient=True):
        rows = [variant.rows[row.key] for some in drawn for row in some.rows]
        said[variant.name] = {row.key: Said.of(row) for row in rows}
        if any(row.prediction is None for row in rows):
            again = ask_again(variant, drawn, stored, index=index, device=device)
            said[variant.name] = again
            asked += len(rows)
            differing += sum(again[row.key].right != row.correct for row in rows)
    pictures = {name: _picture(sample, images) for name, (sample, images) in stored.items()}
    return Shown(pictures=pictures, said=said, asked=asked, differing=differing)


def read_stored(index: ShardIndex, drawn: Iterable[Drawn]) -> dict[str, tuple[Sample, tuple[StoredImage, ...]]]:
    """Samples and encoded images of what was drawn, by image id; the questions are checked against the corpus."""
    wanted = {some.image_id: some for some in drawn}
    reader, found = ShardReader(index), dict[str, tuple[Sample, tuple[StoredImage, ...]]]()
    try:
        for row, image_id in enumerate(index.text["image_id"]):
            if image_id in wanted and image_id not in found:
                found[image_id] = reader.read_all(row)
    finally:
        reader.close()
    for image_id, some in wanted.items():
        asked = {q.id: (q.question, q.answer) for q in found[image_id][0].qas} if image_id in found else {}
        wrong = next((r for r in some.rows if asked.get(r.qa_id) != (r.question, r.answer)), None)
        if wrong is not None:
            raise ConfigError(
                "the corpus does not hold this question: the answers are of another corpus or build",
                file=index.root,
                field="(image_id, qa_id)",
                value=wrong.key,
                remedy="name the evaluated corpus with --corpus, or run `scaleearth test` again",
            )
    return found


def ask_again(
    variant: Variant,
    drawn: Sequence[Drawn],
    stored: Mapping[str, tuple[Sample, tuple[StoredImage, ...]]],
    *,
    index: ShardIndex,
    device: str,
) -> dict[Key, Said]:
    """Greedy answers of a run to the drawn questions, all of an image in one pass."""
    subject = load_subject(variant.path, device=device)
    policy = subject.resolver.policy
    view = View(
        policy="metadata" if policy == "spoof" else policy
    )  # a pinned scale stays pinned whatever the view says
    stream = []
    for some in drawn:
        sample, images = stored[some.image_id]
        ids = {row.qa_id for row in some.rows}
        processed = tuple(subject.processor.image(image.rgb()) for image in images)
        stream.append(Asked(sample=sample, images=processed, questions=tuple(q for q in sample.qas if q.id in ids)))
    said: dict[Key, Said] = {}
    for group in grouped(stream, subject, max_new_tokens=NEW_TOKENS):
        answers = run_views(
            subject, group, [view], boundaries=index.boundaries, generate=True, max_new_tokens=NEW_TOKENS
        )
        texts = answers.texts[0] if answers.texts else ()
        for branch, text in zip(answers.batch.branches, texts, strict=True):
            key = (answers.batch.trees[branch.tree].image_id, branch.qa_id)
            said[key] = Said(text=text, right=text == branch.answer.strip())
    return said


def _picture(sample: Sample, images: Sequence[StoredImage]) -> Picture:
    shown = side_by_side([image.rgb() for image in images])
    return Picture(image=shown, extent_m=None if sample.gsd_m_native is None else sample.gsd_m_native * shown.width)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one sample in a row, as one."""
    if len(images) == 1:
        return images[0]
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    for k, image in enumerate(images):
        whole.paste(image, (sum(i.width for i in images[:k]), 0))
    return whole
