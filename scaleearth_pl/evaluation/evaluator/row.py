"""What one evaluation says, as one JSON row: every number with what it means.

A row names code and training commit, configuration, harness, split, types, matcher and counts, because the same
predictions are worth different numbers under each. Accuracies carry intervals over places and stand beside their
floors: the majority's always, those of question and GSD where the questions are a corpus's, and what an image gives
without its GSD where a model that is not told it was evaluated on the same questions. RSVQA sources are scored under
every published matcher.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table as RichTable

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.evaluation.bootstrap import place_bootstrap
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.run import Answers, Decoding
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.floors import majority_verdicts
from scaleearth_pl.evaluation.groups import correctness, group_masks, group_means, nested
from scaleearth_pl.evaluation.rsvqa.metric import SOURCES
from scaleearth_pl.evaluation.rsvqa.ours import rsvqa_scores
from scaleearth_pl.evaluation.sse_u import sse_u_by_cue
from scaleearth_pl.evaluation.tables import percent

ROW_SCHEMA = "scaleearth-evaluation/1"


def result_row(
    *,
    subject: Subject,
    view: View,
    decoding: Decoding,
    answers: Answers,
    benchmark: str,
    split: str,
    counts: Mapping[str, Any],
    harness: str = "scaleearth",
    floors: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row of one subject, benchmark and view.

    Args:
        subject: the model.
        view: what it was told of the GSD.
        decoding: how answers were made.
        answers: what it said.
        benchmark: name of the benchmark or corpus.
        split: of the benchmark.
        counts: planned, unreadable and leaked images, as the caller knows them.
        harness: whose prompts and scores these are.
        floors: of question and GSD (`blind.py`); None where the questions are of no corpus.
        extra: scores of the harness itself.
    """
    rows = answers.predictions
    masks = group_masks(rows)
    intervals = place_bootstrap(correctness(rows), [row.place_id for row in rows], masks)
    return {
        "schema": ROW_SCHEMA,
        "subject": subject.name,
        "path": subject.path,
        "fingerprint": subject.fingerprint,
        "commit": current_commit(),
        "trained_commit": subject.trained_commit,
        "configuration": configuration(subject, view, decoding),
        "harness": harness,
        "benchmark": benchmark,
        "split": split,
        "matcher": "exact" if decoding.generate else "teacher-forced exact",
        "types": sorted({row.type for row in rows}),
        "counts": {
            "questions": len(rows),
            "images": len({row.image_id for row in rows}),
            "places": len({row.place_id for row in rows}),
            **counts,
        },
        "accuracy": nested({name: interval.as_json() for name, interval in intervals.items()}),
        "majority": nested(group_means(majority_verdicts(rows), masks)),
        "floors": floors,
        "rsvqa": rsvqa_scores(rows),
        "sse_u": sse_u_by_cue(answers.sse_u),
        "seconds": round(answers.seconds, 2),
        "questions_per_second": round(len(rows) / answers.seconds, 2) if answers.seconds else None,
        "hardware": hardware(subject),
        **(extra or {}),
    }


def configuration(subject: Subject, view: View, decoding: Decoding) -> dict[str, Any]:
    """What else the numbers depend on: how the model is told of the GSD, sees images and answers."""
    return {
        "policy": view.policy,
        "view": view.name,
        "spoof_gsd_m": view.spoof_gsd_m,
        "marginal": subject.resolver.marginal,
        "gsd_text": subject.gsd_text,
        "told_gsd": subject.reads_scale and subject.resolver.policy != "spoof",
        "max_pixels": subject.processor.max_pixels,
        "generate": decoding.generate,
        "max_new_tokens": decoding.max_new_tokens,
    }


def results_table(rows: Sequence[Mapping[str, Any]]) -> RichTable:
    """Subjects and views, accuracy with its interval, the majority floor beside it."""
    table = RichTable(title="accuracy, % [95 % over places]", caption="majority floor: the best constant per type")
    for name in ("subject", "benchmark", "split", "view", "matcher"):
        table.add_column(name)
    for name in ("questions", "accuracy", "majority", "questions/s"):
        table.add_column(name, justify="right")
    for row in rows:
        overall = row["accuracy"]["overall"]
        low, high = overall["ci95"]
        cells = (row["subject"], row["benchmark"], row["split"], row["configuration"]["view"], row["matcher"])
        accuracy = f"{percent(overall['estimate'])} [{percent(low)}, {percent(high)}]"
        speed = row["questions_per_second"]
        floor = percent(row["majority"]["overall"])
        table.add_row(
            *cells, str(row["counts"]["questions"]), accuracy, floor, "-" if speed is None else f"{speed:.0f}"
        )
    return table


def floors_table(rows: Sequence[Mapping[str, Any]]) -> RichTable:
    """What is reached without image, GSD or model, a line for each set of questions."""
    caption = "image only: the best model of this call that is not told the GSD (plain LoRA, stage 1)"
    table = RichTable(title="floors, %", caption=caption)
    for name in ("benchmark", "split"):
        table.add_column(name)
    for name in ("questions", "majority", "question only", "question + GSD", "image only"):
        table.add_column(name, justify="right")
    seen: list[Any] = []
    for row in rows:
        if _asked(row) not in seen:
            seen.append(_asked(row))
            start = (row["benchmark"], row["split"], str(row["counts"]["questions"]))
            table.add_row(*start, *(percent(floor) for floor in floors_of(row, rows)))
    return table


def floors_of(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, ...]:
    """(majority, question only, question + GSD, image only) over all questions of a row; None where not measured.

    Image only is the best of those of `rows` whose model is not told the GSD and that answered the same questions.
    """
    asked = _asked(row)
    blind: Mapping[str, Any] = next((o["floors"] for o in rows if o.get("floors") and _asked(o) == asked), {})
    looked_up = [floor and floor["overall"] for floor in (blind.get("question_only"), blind.get("question_gsd"))]
    untold = [
        other["accuracy"]["overall"]["estimate"]
        for other in rows
        if other["configuration"].get("told_gsd") is False and _asked(other) == asked
    ]
    return row["majority"]["overall"], *looked_up, max(untold, default=None)


def _asked(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was asked, as far as a row knows, and how answers were compared."""
    return (*(row[name] for name in ("benchmark", "split", "matcher", "types", "majority")), row["counts"]["questions"])


def matcher_table(rows: Sequence[Mapping[str, Any]]) -> RichTable | None:
    """RSVQA by subject, view, source and matcher, with floors; None where no row has any."""
    table = RichTable(title="RSVQA by matcher, %", caption="RSVQA holds two GSDs: no evidence about continuity.")
    for name in ("subject", "view", "source", "matcher"):
        table.add_column(name)
    for name in ("n", "OA", "floor of OA", "AA", "floor of AA"):
        table.add_column(name, justify="right")
    for row in rows:
        for source, scores in row["rsvqa"].items():
            for name, score in scores.items():
                cells = (row["subject"], row["configuration"]["view"], SOURCES[source], name, str(score["n"]))
                shares = [percent(score[key]) for key in ("oa", "majority_oa", "aa", "majority_aa")]
                table.add_row(*cells, *shares)
    return table if table.row_count else None


def harness_table(rows: Sequence[Mapping[str, Any]]) -> RichTable | None:
    """XLRS and OmniEarth as their harnesses score them, an extractor a line; None where no row has such scores."""
    table = RichTable(title="scores of the harnesses, %", caption="exact match above asks for the very text instead")
    for name in ("subject", "view", "benchmark", "of", "extractor"):
        table.add_column(name)
    for name in ("n", "micro", "macro"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = row.get("harness_scores") or {}
        start = (row["subject"], row["configuration"]["view"], row["benchmark"])
        choices = scores.get("choices", {} if "version" in scores else scores)
        for extractor, score in choices.items():
            macros = score.get("macro") or {"tasks": score["overall_macro"]}
            macro = ", ".join(f"{name} {percent(value)}" for name, value in macros.items())
            table.add_row(*start, "choices", extractor, str(score["n"]), percent(score["micro"]), macro)
        if boxes := scores.get("grounding"):
            overlap = f"mean IoU {percent(boxes['iou'])}"
            table.add_row(*start, "boxes", "IoU at least 0.5", str(boxes["n"]), percent(boxes["acc@0.5"]), overlap)
    return table if table.row_count else None


def hardware(subject: Subject) -> str:
    """Device and, on a host, its cores and threads."""
    device = subject.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
