"""XLRS-Bench-lite: prompts, extractors and means as lmms-eval and VLMEvalKit have them, side by side.

Only the lite VQA set is public (13 sub-tasks, split `train`); its leaderboard "Avg" is the *macro* mean, the full
benchmark's is micro. A row has `index, question, multi-choice options, answer, category, l2-category, image`; in
VLMEvalKit's files the options are one text that holds the instruction already. No row has a GSD: SSE-U decides.

    harness            task of the macro mean        an absent task
    lmms-eval          the 13 sub-tasks (category)   counts 0: a subset run is deflated
    vlmevalkit         l2-category                   is left out (rule extractor; its default asks a language model)
    vlmevalkit-2025    category/l2-category          is left out (its earlier version)
    present            the 13 sub-tasks              is left out (ours)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks.choice import Benchmark, Choice, FoundRow, Reply, macro_by, share, share_if_any
from scaleearth_pl.evaluation.benchmarks.letters import LMMS_EVAL, right, strict
from scaleearth_pl.evaluation.benchmarks.rows import options_of, read_rows

SUBTASKS = (
    "Complex reasoning/Anomaly Detection and Interpretation",
    "Complex reasoning/Environmental condition reasoning",
    "Complex reasoning/Route planning",
    "Counting/Counting with changing detection",
    "Counting/Counting with complex reasoning",
    "Counting/Overall counting",
    "Counting/Regional counting",
    "Land use classification/Overall Land use classification",
    "Land use classification/Regional Land use classification",
    "Object properties/Object classification",
    "Object properties/Object color",
    "Object properties/Object motion state",
    "Object spatial relationship/Object spatial relationship",
)
"""The 13 VQA sub-tasks by their exact names."""

REASONING = frozenset(SUBTASKS[:5])
"""Sub-tasks that need reasoning; the rest is perception (our reading of the paper's 10 + 6 sub-tasks)."""

SEVERAL_ANSWERS = "Land use classification/Overall Land use classification"
EXTRACTORS = ("official", "strict")

_FIELDS = ("index", "question", "multi-choice options", "answer", "category", "l2-category")
_ONE = (
    "\nSelect the best answer for the multiple-choice question based on the image. Only respond with the letter "
    "corresponding to the correct answer (A, B, C, D).\nThe answer is:"
)
_SEVERAL = (
    "\nSelect the best answer(s) for the multiple-choice question based on the image. There may be more than one "
    "correct option. Only respond with the letter(s) corresponding to the correct answer(s) (A, B, C, D), with multiple "
    "choices separated by spaces.The answer(s) is(are):"
)


def prompt(row: Mapping[str, Any]) -> str:
    """The harness's prompt: no separator between the question and "The choices"; one task allows several answers."""
    options = row["multi-choice options"]
    if isinstance(options, str):
        return str(row["question"]) + options
    listed = "The choices are listed below:\n" + "\n".join(options) + "\n"
    return str(row["question"]) + listed + (_SEVERAL if row["category"] == SEVERAL_ANSWERS else _ONE)


def score(replies: Sequence[Reply]) -> dict[str, Any]:
    """Every extractor under every harness; also by sub-task and for perception and reasoning."""
    if not replies:
        raise ConfigError("no reply to score", field="replies", value=0)
    return {name: _score(replies, name) for name in EXTRACTORS}


def _score(replies: Sequence[Reply], extractor: str) -> dict[str, Any]:
    hits = [right(_letters(reply, extractor), reply.choice.answer) for reply in replies]
    category = [reply.choice.task[0] for reply in replies]
    l2 = [reply.choice.task[-1] for reply in replies]
    both = ["/".join(reply.choice.task) for reply in replies]
    by_subtask, lmms = macro_by(zip(category, hits, strict=True), SUBTASKS)
    return {
        "n": len(replies),
        "micro": share(hits),
        "macro": {
            "lmms-eval": lmms,
            "vlmevalkit": macro_by(zip(l2, hits, strict=True))[1],
            "vlmevalkit-2025": macro_by(zip(both, hits, strict=True))[1],
            "present": macro_by(zip(category, hits, strict=True))[1],
        },
        "by_subtask": by_subtask,
        "perception": share_if_any([hit for hit, name in zip(hits, category, strict=True) if name not in REASONING]),
        "reasoning": share_if_any([hit for hit, name in zip(hits, category, strict=True) if name in REASONING]),
        "absent_subtasks": [name for name in SUBTASKS if name not in by_subtask],
        "nothing_extracted": sum(not _letters(reply, extractor) for reply in replies),
    }


def _letters(reply: Reply, extractor: str) -> frozenset[str]:
    return LMMS_EVAL(reply.text) if extractor == "official" else strict(reply.text, reply.choice.options)


def _read(files: Sequence[Path], images: bool) -> Iterator[FoundRow]:
    for file, row in read_rows(files, images=images):
        missing = [name for name in _FIELDS if row.get(name) is None]
        if missing or row["category"] not in SUBTASKS:
            raise ConfigError(
                "not a row of XLRS-Bench-lite",
                file=file,
                field=missing[0] if missing else "category",
                value=sorted(row) if missing else row["category"],
                remedy="the 13 sub-tasks are named in evaluation/benchmarks/xlrs.py",
            )
        kind = "multiple" if row["category"] == SEVERAL_ANSWERS else "single"
        yield (
            Choice(
                id=str(row["index"]),
                prompt=prompt(row),
                options=options_of(row),
                answer=str(row["answer"]),
                task=(str(row["category"]), str(row["l2-category"])),
                kind=kind,
            ),
            file,
            row,
        )


XLRS = Benchmark(
    name="xlrs",
    title="XLRS-Bench-lite",
    harness="lmms-eval, VLMEvalKit",
    split="train (lite)",
    read=_read,
    score=lambda replies, _compat, _n_questions: score(replies),
    is_right=lambda choice, text: right(LMMS_EVAL(text), choice.answer),
    task_name=lambda choice: choice.task[0],
)
