"""OmniEarth-Bench: choices with one or several answers, grounding boxes; the authors' harness and VLMEvalKit's.

    harness        letters   macro mean
    authors        A-E       none: micro accuracy at L1 to L4; "sphere" here is the paper's mean over its L4 tasks
    vlmevalkit     A-G       "Sphere macro: X" = mean over X's tasks; "Overall macro" = mean over tasks
    vlmevalkit with `vlmevalkit_compat`: its Overall macro as computed there, which averages the task columns *and* the
                             sphere columns appended just before: a bug, reproduced for comparison only

The authors' converted files of the chain-of-thought tasks ask questions of single-choice tasks a second time; they are
known by their column `key_annotation_steps` and scored apart, so that no task counts twice.

Rows are the authors' JSON ("Text", "Answer Choices", "Ground Truth", "L1-task", ...), their parquet, or VLMEvalKit's
files ("category", "l2-category", ..., options as one text). The authors assert that the last option says "unable to decide"
and count those picks; here questions without it are counted too. Five letters cannot read an answer F or G.

Most items are not photographs of the ground from above: see `gsd_undefined`. They are answered like all others (SSE-U's
word gates them, with its sigma) and reported apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.evaluation.benchmarks.boxes import best_overlap, grounding_scores, read_box, true_box
from scaleearth_pl.evaluation.benchmarks.choice import (
    Benchmark,
    Choice,
    FoundRow,
    Reply,
    macro_by,
    share,
    share_if_any,
)
from scaleearth_pl.evaluation.benchmarks.letters import OMNIEARTH_AUTHORS, OMNIEARTH_VLMEVALKIT, right, strict
from scaleearth_pl.evaluation.benchmarks.pixels import image_size
from scaleearth_pl.evaluation.benchmarks.rows import image_bytes, options_of, read_rows, stated_options

VERSIONS = {29_779: "v1 (103 tasks)", 29_855: "arXiv v2 (109 tasks)"}
"""Numbers of annotations that give the version away; it belongs to every number."""

EXTRACTORS = ("authors", "vlmevalkit", "strict")

KINDS = {
    "single choice": "single",
    "chain-of-thought": "reasoning",
    "cot": "reasoning",
    "multiple choice": "multiple",
    "visual grounding": "grounding",
    "vg": "grounding",
}

_LETTERS = "ABCDEFGH"
_NAMES = {
    "id": ("index", "Question_id", "question_id"),
    "question": ("question", "Text"),
    "answer": ("answer", "Ground Truth"),
    "kind": ("question_type", "Question Type"),
    "L1": ("L1-task", "category"),
    "L2": ("L2-task", "l2-category"),
    "L3": ("L3-task", "l3-category"),
    "L4": ("L4-task", "l4-category"),
}
_NO_GSD = {
    "Atmosphere": "weather maps and fields: a projection, not a ground pixel",
}
_NO_GSD_WORDS = {
    "seism": "seismic records",
    "earthquake monitoring": "seismic records",
    "earthquake magnitude": "seismic records",
    "geophysics imaging": "seismic records",
    "bird": "range maps",
    "species range": "range maps",
    "habitat range": "range maps",
    "typhoon": "weather maps",
    "era5": "reanalysis fields",
    "reanalysis": "reanalysis fields",
    "enso identification": "fields on a grid of degrees",
    "enso forecast": "fields on a grid of degrees",
    "iod identification": "fields on a grid of degrees",
    "iod forecast": "fields on a grid of degrees",
    "sea ice forecast": "fields on a grid of degrees",
    "sea surface": "fields on a grid of degrees",
    "ocean current": "fields on a grid of degrees",
    "wave height": "fields on a grid of degrees",
    "chlorophyll": "fields on a grid of degrees",
}


def prompt(row: Mapping[str, Any], *, kind: str) -> str:
    """The authors' prompt; letters are those of the options there are. Grounding questions are asked as they stand."""
    question = str(_first(row, "question"))
    stated = stated_options(row)
    if isinstance(stated, str):
        return question + stated
    if kind == "grounding":
        return question
    options = options_of(row)
    letters = ", ".join(_LETTERS[: len(options)])
    if kind == "multiple":
        select = (
            "Select the best answer(s) for the multiple-choice question based on the image. There may be more than one "
            f"correct option. Only respond with the letter(s) corresponding to the correct answer(s) ({letters}), with "
            "multiple choices separated by spaces."
        )
    else:
        select = (
            "Select the best answer for the multiple-choice question based on the image. Only respond with the letter "
            f"corresponding to the correct answer ({letters})."
        )
    listed = "The choices are listed below:\n" + "\n".join(options) + "\n"
    return f"{question}{listed}\n{select}\nThe answer is:"


def gsd_undefined(task: Sequence[str], dataset: str = "") -> str | None:
    """Why items of this task have no GSD even in principle; None where they might. Our own reading of the task names.

    Args:
        task: L1 to L4.
        dataset: the row's data set, if it names one.
    """
    if task and task[0] in _NO_GSD:
        return _NO_GSD[task[0]]
    words = " ".join([*task, dataset]).lower().replace("_", " ")
    return next((why for word, why in _NO_GSD_WORDS.items() if word in words), None)


def score(
    replies: Sequence[Reply], *, vlmevalkit_compat: bool = False, n_questions: int | None = None
) -> dict[str, Any]:
    """Choices by extractor and harness, those asked for their chain of thought apart, grounding by box overlap.

    Args:
        replies: to any questions of the benchmark.
        vlmevalkit_compat: see the module's text.
        n_questions: of the files, which tells the version; None takes the number of replies.

    Raises:
        ConfigError: no reply.
    """
    if not replies:
        raise ConfigError("no reply to score", field="replies", value=0)
    boxes = [r for r in replies if r.choice.kind == "grounding"]
    steps = [r for r in replies if r.choice.kind == "steps"]
    choices = [r for r in replies if r.choice.kind not in ("grounding", "steps")]
    n_questions = n_questions or len(replies)

    def by_extractor(some: Sequence[Reply]) -> dict[str, Any]:
        return {name: _score(some, name, vlmevalkit_compat) for name in EXTRACTORS} if some else {}

    return {
        "version": VERSIONS.get(n_questions, f"unknown ({n_questions} questions)"),
        "choices": by_extractor(choices),
        "chain_of_thought": by_extractor(steps),
        "grounding": grounding_scores(boxes) if boxes else {},
    }


def is_right(choice: Choice, text: str) -> bool:
    """The authors' verdict on one reply; a box is right from an overlap of one half on."""
    if choice.kind == "grounding":
        return best_overlap(read_box(choice.answer), read_box(text), choice.size) >= 0.5
    return right(OMNIEARTH_AUTHORS(text), choice.answer)


def _score(replies: Sequence[Reply], extractor: str, compat: bool) -> dict[str, Any]:
    found = [_letters(reply, extractor) for reply in replies]
    hits = [right(letters, reply.choice.answer) for letters, reply in zip(found, replies, strict=True)]
    tasks = [reply.choice.task for reply in replies]
    by_task, overall = macro_by(zip(tasks, hits, strict=True))
    spheres: dict[str, list[float]] = {}
    for task, accuracy in by_task.items():
        spheres.setdefault(task[0], []).append(accuracy)
    sphere_macro = {name: share(values) for name, values in sorted(spheres.items())}
    if compat:
        overall = share([*by_task.values(), *sphere_macro.values()])
    undecided = [_unable(reply) for reply in replies]
    undefined = [reply.choice.gsd_undefined is not None for reply in replies]
    return {
        "n": len(replies),
        "micro": share(hits),
        "by_level": {
            f"L{level}": {
                "/".join(name): value
                for name, value in macro_by((t[:level], h) for t, h in zip(tasks, hits, strict=True))[0].items()
            }
            for level in (1, 2, 3, 4)
        },
        "sphere_macro": sphere_macro,
        "overall_macro": overall,
        "vlmevalkit_compat": compat,
        "unable_to_decide": {
            "picked": sum(letters == {last} for letters, last in zip(found, undecided, strict=True) if last),
            "questions_without_it": sum(last is None for last in undecided),
        },
        "unreadable_answers": _out_of_reach(replies, extractor),
        "gsd_undefined": {
            "n": sum(undefined),
            "micro": share_if_any([h for h, u in zip(hits, undefined, strict=True) if u]),
            "micro_elsewhere": share_if_any([h for h, u in zip(hits, undefined, strict=True) if not u]),
        },
    }


def _letters(reply: Reply, extractor: str) -> frozenset[str]:
    if extractor == "strict":
        return strict(reply.text, reply.choice.options)
    return (OMNIEARTH_AUTHORS if extractor == "authors" else OMNIEARTH_VLMEVALKIT)(reply.text)


def _out_of_reach(replies: Sequence[Reply], extractor: str) -> int:
    """Questions whose answer holds a letter that the extractor does not know: wrong whatever is said."""
    known = {"authors": OMNIEARTH_AUTHORS.letters, "vlmevalkit": OMNIEARTH_VLMEVALKIT.letters, "strict": _LETTERS}
    return sum(not set(reply.choice.answer) <= set(known[extractor] + " ,") for reply in replies)


def _unable(reply: Reply) -> str | None:
    options = reply.choice.options
    return _LETTERS[len(options) - 1] if options and "unable to decide" in options[-1].lower() else None


def _read(files: Sequence[Path], images: bool) -> Iterator[FoundRow]:
    for file, row in read_rows(files, images=images):
        kind = KINDS.get(str(_first(row, "kind", "Single Choice")).strip().lower())
        if kind is None:
            raise ConfigError(
                "unknown question type",
                file=file,
                field="question_type",
                value=_first(row, "kind"),
                remedy=str([*KINDS]),
            )
        if row.get("key_annotation_steps") is not None:
            kind = "steps"
        task = tuple(str(_first(row, level)) for level in ("L1", "L2", "L3", "L4"))
        size = _size(row, file) if kind == "grounding" else None
        choice = Choice(
            id=str(_first(row, "id")),
            prompt=prompt(row, kind=kind),
            options=options_of(row),
            answer=_box(row, size, file) if kind == "grounding" else str(_first(row, "answer")),
            task=task,
            kind=kind,
            gsd_undefined=gsd_undefined(task, str(row.get("Dataset") or "")),
            size=size,
        )
        yield choice, file, row


def _size(row: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """The image's own (width, height), stated or from its header; None where the image cannot be read (nor answered)."""
    if row.get("image_width") and row.get("image_height"):
        return int(row["image_width"]), int(row["image_height"])
    try:
        return image_size(image_bytes(row, folder=file.parent)[0], where=str(file))
    except SampleError:
        return None


def _box(row: Mapping[str, Any], size: tuple[int, int] | None, file: Path) -> str:
    """The truth of a grounding question in parts of its image, as a text that `read_box` reads."""
    answer = _first(row, "answer")
    box = true_box(answer, size or (1, 1))  # without a size the image is unreadable, and the question not asked
    if box is None:
        raise ConfigError("grounding truth is no box", file=file, field="answer", value=answer)
    return "[" + ", ".join(f"{number:.9f}" for number in box) + "]"


def _first(row: Mapping[str, Any], meaning: str, default: str | None = None) -> Any:
    for name in _NAMES[meaning]:
        if row.get(name) is not None:
            return row[name]
    if default is None:
        raise ConfigError(
            "not a row of OmniEarth-Bench", field=meaning, value=sorted(row), remedy=f"one of {_NAMES[meaning]}"
        )
    return default


OMNIEARTH = Benchmark(
    name="omniearth",
    title="OmniEarth-Bench",
    harness="authors, VLMEvalKit",
    split="all",
    read=_read,
    score=lambda replies, compat, n_questions: score(replies, vlmevalkit_compat=compat, n_questions=n_questions),
    is_right=is_right,
    task_name=lambda choice: " / ".join(choice.task),
)
