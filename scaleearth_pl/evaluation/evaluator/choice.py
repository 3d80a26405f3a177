"""Multiple-choice benchmarks through the evaluator: local files in, the same result row as every benchmark out.

No row has a GSD, so the policy is SSE-U's word: "predicted", or a spoofed value; "metadata" is refused by the resolver.
A model without SSE-U can be asked under a spoofed value only, which plain LoRA and stage 1 ignore.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.benchmarks.choice import MAX_NEW_TOKENS, Benchmark, Choice, Reply
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.row import result_row
from scaleearth_pl.evaluation.evaluator.run import Answers, Decoding, run_view
from scaleearth_pl.evaluation.evaluator.views import View


def evaluate_choice(
    subject: Subject,
    benchmark: Benchmark,
    view: View,
    *,
    out: Path,
    decoding: Decoding | None = None,
    vlmevalkit_compat: bool = False,
) -> dict[str, Any]:
    """Evaluates one subject on one benchmark; resumable like every evaluation.

    Args:
        subject: the model.
        benchmark: from `open_benchmark`.
        view: "predicted", or a spoofed GSD.
        out: folder of all results.
        decoding: default 64 new tokens, as the harnesses allow.
        vlmevalkit_compat: reproduce VLMEvalKit's Overall macro of OmniEarth-Bench.

    Raises:
        ConfigError: another evaluation in the folder, a file that is not of this benchmark, or nobody to say the scale.
        GsdError: policy "metadata".
    """
    if view.policy in ("predicted", "fused") and not subject.has_sse_u:
        raise ConfigError(
            f"images of {benchmark.title} have no GSD, and {subject.name} has no SSE-U to read one",
            field="policy",
            value=view.policy,
            remedy="--policy spoof --spoof-gsd-m 1: plain LoRA and stage 1 do not look at it",
        )
    decoding = decoding or Decoding(max_new_tokens=MAX_NEW_TOKENS)
    choices = benchmark.choices()
    folder = out / subject.folder / benchmark.name / f"{view.name}-{benchmark.pixels.name}"
    return run_view(
        folder,
        subject=subject,
        stream=lambda skip: benchmark.images(subject, skip=skip),
        view=view,
        plan={
            "fingerprint": subject.fingerprint,
            "files": [file.name for file in benchmark.files],
            "questions": len(choices),
            "content": content_hash(choices),
            "pixels": benchmark.pixels.name,
            "vlmevalkit_compat": vlmevalkit_compat and benchmark.name == "omniearth",
        },
        n_images=len(choices),
        unreadable=benchmark.bad,
        decoding=decoding,
        describe=lambda answers: result_row(
            subject=subject,
            view=view,
            decoding=decoding,
            answers=answers,
            benchmark=benchmark.name,
            split=benchmark.split,
            harness=benchmark.harness,
            counts={"planned_questions": len(choices), "unreadable_questions": len(benchmark.bad)},
            extra={
                "pixels": benchmark.pixels.name,
                "harness_scores": harness_scores(benchmark, choices, answers, vlmevalkit_compat=vlmevalkit_compat)
                if decoding.generate
                else None,  # teacher-forced: there is no reply that a harness could read
            },
        ),
    )


def content_hash(choices: Mapping[str, Choice]) -> str:
    """Of questions, options, answers and tasks: files of one name and length may hold other ones."""
    digest = hashlib.blake2b(digest_size=8)
    for choice in choices.values():
        digest.update(json.dumps(asdict(choice)).encode())
    return digest.hexdigest()


def harness_scores(
    benchmark: Benchmark, choices: Mapping[str, Choice], answers: Answers, *, vlmevalkit_compat: bool = False
) -> dict[str, Any]:
    """The benchmark's own scores of what was answered."""
    replies = [Reply(choice=choices[row.qa_id], text=row.prediction or "") for row in answers.predictions]
    return benchmark.score(replies, vlmevalkit_compat, len(choices))
