"""One evaluation, resumable: a subject, a stream of images, a view -> a folder of results.

    <out>/<subject>/<benchmark>/<view>/
        plan.json           what is evaluated: fingerprint, benchmark, view, decoding; another plan is refused
        part.jsonl          an image a line while it runs: its answers and SSE-U's reading; removed at the end
        predictions.jsonl   an answer a line (the schema of `scaleearth test`)
        sse_u.jsonl         an image a line; absent without SSE-U
        row.json            the result (`row.py`); its presence means: done

A run that was cut off goes on behind the last whole line of part.jsonl; one that is done is read, not repeated. Images
are written as they are finished, so a crash costs one group. One process fills a folder at a time (`flock` on .lock).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.console import progress
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import locked, write_json
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.run_files import PREDICTIONS, ROW, SSE_U, Prediction, SseuReading
from scaleearth_pl.evaluation.evaluator.engine import Asked, GroupAnswers, grouped, run_views
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.predictions import write_rows

PLAN, PART, LOCK = "plan.json", "part.jsonl", ".lock"
MAX_BAD_SHARE = 0.01
"""Of the images or questions of an evaluation."""

Stream = Callable[[frozenset[str]], Iterable[Asked]]
"""Gives the images of a benchmark, but for those whose ids are finished already."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are made. Without `generate` a prediction is null and only right or wrong is known."""

    generate: bool = True
    max_new_tokens: int = 24
    budget_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "budget_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))

    def plan(self, view: View) -> dict[str, Any]:
        """What of it, with the view, identifies an evaluation; the token budget changes memory only."""
        return {**view.plan, "generate": self.generate, "max_new_tokens": self.max_new_tokens}


@dataclass(kw_only=True)
class Answers:
    """Everything that was answered, by image, the seconds it took and the commits that did it (resumed parts included).

    `resumed_from` are the commits of what a cut-off run had left.
    """

    predictions: list[Prediction] = field(default_factory=list)
    sse_u: list[SseuReading] = field(default_factory=list)
    seconds: float = 0.0
    commits: set[str] = field(default_factory=set)
    resumed_from: frozenset[str] = frozenset()

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes one line of part.jsonl in."""
        self.predictions += [Prediction(**row) for row in line["answers"]]
        if line["sse_u"] is not None:
            self.sse_u.append(SseuReading(**line["sse_u"]))
        self.seconds += line["seconds"]
        self.commits.add(line.get("commit", "unknown"))


def run_view(
    folder: Path,
    *,
    subject: Subject,
    stream: Stream,
    view: View,
    plan: Mapping[str, Any],
    n_images: int,
    unreadable: Mapping[str, str],
    decoding: Decoding,
    describe: Callable[[Answers], dict[str, Any]],
    boundaries: TierBoundaries | None = None,
) -> dict[str, Any]:
    """The row of one evaluation: read where `folder` holds it done, else evaluated, or gone on with, and written.

    Args:
        folder: of this subject, benchmark and view.
        subject: the model.
        stream: the images.
        view: what it is told of the GSD.
        plan: what identifies this evaluation besides view and decoding; compared on resuming.
        n_images: of the whole stream.
        unreadable: filled while the stream is read: what of it could not be, and why. They go into the row.
        decoding: see `Decoding`.
        describe: the row of all answers.
        boundaries: tiers in which accuracies are reported.

    Raises:
        ConfigError: the folder holds another evaluation, or another process is filling it; the stream was empty, or too
            much of it was unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if (folder / ROW).is_file() else _alone(folder):
        _check_plan(folder, {**plan, **decoding.plan(view)})
        if (row := finished_row(folder)) is not None:
            return row
        answers = _answered(folder / PART, subject, stream, view, n_images, decoding, boundaries)
        _check_readable(unreadable, n_images)
        if not answers.predictions:
            raise ConfigError("nothing was evaluated", file=folder, remedy="check split, sources and types")
        write_rows(folder / PREDICTIONS, answers.predictions)
        if answers.sse_u:
            write_rows(folder / SSE_U, answers.sse_u)
        row = {
            **describe(answers),
            "unreadable": dict(unreadable),
            "answered_at": sorted(answers.commits),
            "resumed_from": sorted(answers.resumed_from),
        }
        write_json(folder / ROW, row)  # marks the evaluation as done
        (folder / PART).unlink(missing_ok=True)
    return row


def _alone(folder: Path) -> AbstractContextManager[None]:
    remedy = "wait for it, or write to another folder with --out"
    busy = ConfigError("another process is evaluating into this folder", file=folder, remedy=remedy)
    return locked(folder / LOCK, busy)


def finished_row(folder: Path) -> dict[str, Any] | None:
    """The row of an evaluation that is done, else None."""
    file = folder / ROW
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _check_readable(unreadable: Mapping[str, str], n_images: int) -> None:
    """`ConfigError` past the share at which training would stop as well: a score over what is left is another benchmark's."""
    if len(unreadable) > MAX_BAD_SHARE * n_images:
        where, why = next(iter(unreadable.items()))
        raise ConfigError(
            f"{len(unreadable)} of {n_images} could not be read, more than {MAX_BAD_SHARE:.0%}",
            field=where,
            value=why,
            remedy="mend them and run again: what was answered is kept",
        )


def _check_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Marks a folder without answers as this evaluation's; `ConfigError` names what another one's differs in."""
    file = folder / PLAN
    if not file.is_file() or not any((folder / name).is_file() for name in (ROW, PART)):
        write_json(file, plan)
        return
    found = json.loads(file.read_text())
    changed = sorted(k for k in {*found, *plan} if found.get(k) != plan.get(k))
    if changed:
        raise ConfigError(
            "the folder holds another evaluation",
            file=file,
            field=changed[0],
            value=found.get(changed[0]),
            remedy="remove the folder, or write to another one with --out",
        )


def _answered(
    part: Path,
    subject: Subject,
    stream: Stream,
    view: View,
    n_images: int,
    decoding: Decoding,
    boundaries: TierBoundaries | None,
) -> Answers:
    """All answers, those that a cut-off run has left in `part` included; each group is written there as it is done."""
    answers, done = _finished(part)
    commit = current_commit()
    with progress(f"{subject.name} · {view.name}", n_images, done=len(done)) as advance:
        for group in grouped(
            stream(frozenset(done)),
            subject,
            budget_tokens=decoding.budget_tokens,
            max_new_tokens=decoding.max_new_tokens if decoding.generate else 0,
        ):
            start = time.perf_counter()
            said = run_views(
                subject,
                group,
                [view],
                boundaries=boundaries,
                generate=decoding.generate,
                max_new_tokens=decoding.max_new_tokens,
            )
            seconds = time.perf_counter() - start
            lines = list(_lines(said, seconds / len(group), commit))
            _append(part, lines)
            for line in lines:
                answers.add(line)
            advance(len(group))
    return answers


def _finished(file: Path) -> tuple[Answers, set[str]]:
    """What a cut-off run has left; a half-written last line is cut away."""
    answers, done, good = Answers(), set[str](), 0
    if not file.is_file():
        return answers, done
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        if row["image_id"] not in done:  # two runs in one folder, before it was locked
            answers.add(row)
            done.add(row["image_id"])
        good += len(line)
    with file.open("r+b") as stream:
        stream.truncate(good)
    answers.resumed_from = frozenset(answers.commits)
    return answers, done


def _append(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _lines(said: GroupAnswers, seconds: float, commit: str) -> Iterator[dict[str, Any]]:
    """One line an image: the rows of its answers, SSE-U's reading of it, and which code did it."""
    trees, branches = said.batch.trees, said.batch.branches
    texts: tuple[str | None, ...] = said.texts[0] if said.texts else (None,) * len(branches)
    answers: list[list[dict[str, Any]]] = [[] for _ in trees]
    for branch, text, correct in zip(branches, texts, said.correct_VB[0].tolist(), strict=True):
        row = Prediction.of(trees[branch.tree], branch, prediction=text, correct=correct)
        answers[branch.tree].append(asdict(row))
    readings: Sequence[dict[str, Any] | None] = [asdict(r) for r in said.readings] or [None] * len(trees)
    for tree, rows, reading in zip(trees, answers, readings, strict=True):
        yield {"image_id": tree.image_id, "answers": rows, "sse_u": reading, "seconds": seconds, "commit": commit}
