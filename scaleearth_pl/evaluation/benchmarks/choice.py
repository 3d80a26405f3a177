"""A multiple-choice question of either benchmark, and the means that harnesses make of many.

    micro    right answers over all questions
    macro    mean over tasks of the share of right answers; what a task is, and what an absent one counts, is the
             harness's own affair, hence `macro_by`

A place, which intervals resample, is an image, whatever tasks ask about it and wherever their rows stand.

An image without GSD is no failure: the sample says provenance unknown, the tier is unknown, and SSE-U decides. Some items
have no GSD even in principle (weather maps, seismic profiles); they carry the reason, are answered all the same, and are
reported apart.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.evaluation.benchmarks.pixels import PixelPolicy
from scaleearth_pl.evaluation.benchmarks.rows import image_bytes
from scaleearth_pl.evaluation.evaluator.engine import Asked
from scaleearth_pl.evaluation.evaluator.model import Subject

MAX_NEW_TOKENS = 64
"""Of a reply, as the harnesses allow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One question without its image.

    Attributes:
        id: unique in the benchmark.
        prompt: what the model is asked, options and instruction included.
        options: as shown.
        answer: "B", "ABD", or the box of a grounding question.
        task: path of task names, coarsest first.
        kind: single, multiple, grounding, reasoning or steps (a second asking of a question, for its chain of thought).
        gsd_undefined: why the item has no GSD even in principle; None where it merely is not stated.
        size: the image's own (width, height), where a grounding answer is compared in pixels.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    answer: str
    task: tuple[str, ...]
    kind: str = "single"
    gsd_undefined: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A question and what the model wrote."""

    choice: Choice
    text: str


FoundRow = tuple[Choice, Path, Mapping[str, Any]]
"""A question, the file that it stands in, and its row."""


@dataclass(kw_only=True)
class Benchmark:
    """All that is known of one benchmark; its files' rows as questions; and the books about those that cannot be used.

    Both benchmarks number their rows anew in every task or part, so a number that has been there before gets the count of
    its repetition: the third row 7 is "7~3".

    Attributes:
        name: option of commands, folder of results, source of samples.
        title: as people call it.
        harness: whose prompts and scores these are, for result rows.
        split: of the benchmark, for result rows.
        read: files to rows; False leaves parquet's images on disk.
        score: replies to the scores of its harnesses; True computes VLMEvalKit's means with its bug, where it has one.
            The number is that of the benchmark's questions, answered or not.
        is_right: the official extractor's verdict on the text of one reply.
        task_name: what the benchmark reports the question under.
        files: what is read; none in `BENCHMARKS`.
        pixels: policy for very large images.
        wanted: ids of the questions that are asked; None for all.
        bad: why a question could not be asked, by its id.
    """

    name: str
    title: str
    harness: str
    split: str
    read: Callable[[Sequence[Path], bool], Iterable[FoundRow]]
    score: Callable[[Sequence[Reply], bool, int], dict[str, Any]]
    is_right: Callable[[Choice, str], bool]
    task_name: Callable[[Choice], str]
    files: Sequence[Path] = ()
    pixels: PixelPolicy = field(default_factory=PixelPolicy)
    wanted: frozenset[str] | None = None
    bad: dict[str, str] = field(default_factory=dict, init=False)

    def choices(self) -> dict[str, Choice]:
        """All questions by id, images left on disk."""
        return {choice.id: choice for choice, _, _ in self.rows(images=False)}

    def limited(self, n_images: int) -> "Benchmark":
        """The same with the questions of so many images at most, evenly spaced over the files.

        Costs one more reading of the files: only its bytes say whether the next question's image is the same one.

        Raises:
            ConfigError: no image is asked for.
        """
        if n_images < 1:
            raise ConfigError("must be at least 1", field="limit_images", value=n_images)
        by_image = list(self._ids_by_image())
        kept = np.linspace(0, len(by_image) - 1, min(n_images, len(by_image))).round().astype(int).tolist()
        return replace(self, wanted=frozenset(name for number in kept for name in by_image[number]))

    def _ids_by_image(self) -> Iterator[list[str]]:
        """Ids of consecutive questions about the same image(s); one whose image cannot be read stands alone."""
        group: list[str] = []
        last: list[bytes] | None = None
        for choice, file, row in self.rows(images=True):
            try:
                data = image_bytes(row, folder=file.parent)
            except SampleError:
                data = None
            if group and (data is None or data != last):
                yield group
                group = []
            group.append(choice.id)
            last = data
        if group:
            yield group

    def images(self, subject: Subject, *, skip: frozenset[str] = frozenset()) -> Iterator[Asked]:
        """Consecutive questions about the same image(s) as one tree; unreadable ones are counted and left out."""
        waiting: Asked | None = None
        last: list[bytes] = []
        for choice, file, row in self.rows(images=True):
            try:
                data = image_bytes(row, folder=file.parent)
                if waiting is not None and data == last:
                    waiting = _with_question(waiting, choice)
                    continue
                ready, waiting, last = waiting, self._asked(choice, data, subject), data
            except SampleError as error:
                self.bad[choice.id] = str(error)
                continue
            if ready is not None and ready.sample.image_id not in skip:
                yield ready
        if waiting is not None and waiting.sample.image_id not in skip:
            yield waiting

    def rows(self, *, images: bool) -> Iterator[FoundRow]:
        """Every question with its file and row; `images=False` leaves parquet's images on disk."""
        seen: Counter[str] = Counter()
        for choice, file, row in self.read(self.files, images):
            seen[choice.id] += 1
            n = seen[choice.id]
            choice = choice if n == 1 else replace(choice, id=f"{choice.id}~{n}")
            if self.wanted is None or choice.id in self.wanted:
                yield choice, file, row

    def _asked(self, choice: Choice, data: Sequence[bytes], subject: Subject) -> Asked:
        where = f"{self.name} {choice.id}"
        encoded = [self.pixels.encode(one, subject.processor, where=where) for one in data]
        width, height = encoded[0][1]
        question = _question(choice)
        sample = Sample(
            source=self.name,
            split="test",
            image_id=f"{self.name}-{choice.id}",
            place_id=f"{self.name}-{hashlib.blake2b(b''.join(data), digest_size=8).hexdigest()}",
            width=width,
            height=height,
            gsd_m_native=None,
            gsd_provenance=Provenance.UNKNOWN,
            tier=Tier.UNKNOWN,
            qas=(question,),
        )
        images = tuple(image for some, _ in encoded for image in some)
        return Asked(sample=sample, images=images, questions=(question,))


Task = TypeVar("Task", bound=Hashable)


def macro_by(hits: Iterable[tuple[Task, bool]], tasks: Sequence[Task] | None = None) -> tuple[dict[Task, float], float]:
    """(accuracy by task, their mean); with `tasks` the mean runs over exactly those, absent ones counting 0."""
    found: dict[Task, list[bool]] = defaultdict(list)
    for task, hit in hits:
        found[task].append(hit)
    accuracy = {task: sum(some) / len(some) for task, some in found.items()}
    counted = list(accuracy) if tasks is None else list(tasks)
    return accuracy, sum(accuracy.get(task, 0.0) for task in counted) / len(counted)


def share(values: Sequence[float]) -> float:
    """The mean of at least one value, and so the part of truth values that is true."""
    return sum(values) / len(values)


def share_if_any(values: Sequence[float]) -> float | None:
    """The same; None of none, which is no score of 0."""
    return share(values) if values else None


def _question(choice: Choice) -> Question:
    # The prompt lists the options itself, in the harness's words.
    return Question(
        id=choice.id, type="/".join(choice.task), family=choice.kind, question=choice.prompt, answer=choice.answer
    )


def _with_question(asked: Asked, choice: Choice) -> Asked:
    return Asked(sample=asked.sample, images=asked.images, questions=(*asked.questions, _question(choice)))
