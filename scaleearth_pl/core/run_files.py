"""Names of the files in a run folder, and the rows of its two tables.

    predictions.jsonl   a `Prediction` a line        written by `scaleearth test` and `scaleearth evaluate`
    sse_u.jsonl         an `SseuReading` a line      likewise; absent without SSE-U
    gates.json          mean gate by GSD             written at the end of `fit`
    run.json            what was run, and its cost   likewise
    summary.json        the figures of a run         written by `scaleearth summary`
    row.json            the figures of one benchmark under one view, beside its two tables: `scaleearth evaluate`

Training, evaluation and serving do not import each other: these files are the seam. A row checks itself whether it is
made from a batch (`of`) or from a line. GSDs are *effective*, in metres per pixel that the model saw; `mu` and `sigma`
are in decades (log10 metres).
"""

import math
from dataclasses import dataclass
from typing import Self

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import Tier, check_gsd_m

PREDICTIONS, SSE_U = "predictions.jsonl", "sse_u.jsonl"
GATES, RUN, SUMMARY, ROW = "gates.json", "run.json", "summary.json", "row.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One question, answered. `prediction` is the generated text, null where only teacher forcing was run."""

    image_id: str
    place_id: str
    source: str
    qa_id: str
    type: str
    family: str
    question: str
    answer: str
    prediction: str | None
    correct: bool
    gsd_m: float | None
    tier: str
    has_scale_cue: bool | None

    def __post_init__(self) -> None:
        for name in ("image_id", "place_id", "source", "qa_id", "type", "family", "question", "answer"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        _require(self.prediction is None or isinstance(self.prediction, str), "prediction", self.prediction, "text")
        _require(isinstance(self.correct, bool), "correct", self.correct, "true or false")
        _check_scale(self.gsd_m, self.tier, self.has_scale_cue)

    @classmethod
    def of(cls, tree: TreeInfo, branch: BranchInfo, *, prediction: str | None, correct: bool) -> Self:
        """The row of a question of a batch; `tree` is the one that `branch` belongs to."""
        return cls(
            image_id=tree.image_id,
            place_id=tree.place_id,
            source=tree.source,
            qa_id=branch.qa_id,
            type=branch.type,
            family=branch.family,
            question=branch.question,
            answer=branch.answer,
            prediction=prediction,
            correct=correct,
            gsd_m=tree.gsd_m,
            tier=str(tree.effective_tier),
            has_scale_cue=tree.has_scale_cue,
        )

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the question: (image_id, qa_id)."""
        return self.image_id, self.qa_id


@dataclass(frozen=True, kw_only=True, slots=True)
class SseuReading:
    """One image as SSE-U reads it: s ~ N(mu, sigma^2), s = log10 metres per pixel."""

    image_id: str
    place_id: str
    gsd_m: float | None
    provenance_weight: float
    mu: float
    sigma: float
    has_scale_cue: bool | None
    tier: str

    def __post_init__(self) -> None:
        for name in ("provenance_weight", "mu", "sigma"):
            value = getattr(self, name)
            _require(isinstance(value, int | float) and math.isfinite(value), name, value, "a finite number")
        _require(self.sigma > 0, "sigma", self.sigma, "positive")
        _require(self.provenance_weight >= 0, "provenance_weight", self.provenance_weight, "not negative")
        _check_scale(self.gsd_m, self.tier, self.has_scale_cue)

    @classmethod
    def of(cls, tree: TreeInfo, *, provenance_weight: float, mu: float, sigma: float) -> Self:
        """The row of an image of a batch, or of one of the parts that it was split into."""
        return cls(
            image_id=tree.image_id,
            place_id=tree.place_id,
            gsd_m=tree.gsd_m,
            provenance_weight=provenance_weight,
            mu=mu,
            sigma=sigma,
            has_scale_cue=tree.has_scale_cue,
            tier=str(tree.effective_tier),
        )


def _check_scale(gsd_m: float | None, tier: str, has_scale_cue: bool | None) -> None:
    if gsd_m is not None:
        check_gsd_m(gsd_m)
    _require(tier in list(Tier), "tier", tier, f"one of {', '.join(Tier)}")
    _require(has_scale_cue is None or isinstance(has_scale_cue, bool), "has_scale_cue", has_scale_cue, "a truth value")


def _require(good: bool, field: str, value: object, what: str) -> None:
    if not good:
        raise SampleError(f"field must be {what}", field=field, value=value)
