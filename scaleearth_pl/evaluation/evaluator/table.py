"""Right and wrong of every question under every view, as one array: what protocols and figures are computed from.

    tabulate(subject, images, views) -> ViewTable      correct_VN [views, questions] and who each question is

Same questions in every row, so all comparisons between views are paired; two tables of one corpus share their questions
too, so comparisons between subjects are paired as well (`same_questions`). Tables are saved as one compressed file
and loaded without pickle; a file that is there is not computed again.

Legend: V views, N questions.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries, log10_gsd
from scaleearth_pl.evaluation.bootstrap import Floats
from scaleearth_pl.evaluation.evaluator.engine import Asked, grouped, run_views
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.views import View
from scaleearth_pl.evaluation.predictions import SseuReading

Bools = NDArray[np.bool_]

_CUE = {True: 1, False: 0, None: -1}


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewTable:
    """One subject, some questions, all views.

    Attributes:
        subject: its name.
        views: one per row of `correct_VN`.
        correct_VN: right or wrong.
        nll_VN: cross-entropy of the true answer, nats per token.
        image_N, place_N, qa_N, type_N, family_N, tier_N: who each question is (tier: effective).
        cue_N: 1 the image shows its scale, 0 it does not, -1 nobody knows.
        log10_gsd_N: true s of the pixels seen, NaN where unknown.
        readings: SSE-U's word, an image each; empty without SSE-U.
    """

    subject: str
    views: tuple[View, ...]
    correct_VN: Bools
    nll_VN: Floats
    image_N: NDArray[np.str_]
    place_N: NDArray[np.str_]
    qa_N: NDArray[np.str_]
    type_N: NDArray[np.str_]
    family_N: NDArray[np.str_]
    tier_N: NDArray[np.str_]
    cue_N: NDArray[np.int64]
    log10_gsd_N: Floats
    readings: tuple[SseuReading, ...]

    def row(self, name: str) -> int:
        """The row of a view by its name; `ConfigError` lists them."""
        names = [view.name for view in self.views]
        if name not in names:
            raise ConfigError("the table has no such view", field="view", value=name, remedy=f"it has {names}")
        return names.index(name)

    def mask(self, *, family: str | None = None, tier: str | None = None, cue: bool | None = None) -> Bools:
        """Questions of a family, an effective tier, with or without scale cues; None asks for all."""
        keep = np.ones(self.correct_VN.shape[1], bool)
        for values, wanted in ((self.family_N, family), (self.tier_N, tier)):
            keep &= np.ones_like(keep) if wanted is None else values == wanted
        return keep if cue is None else keep & (self.cue_N == int(cue))

    def same_questions(self, other: Self) -> None:
        """`ConfigError` unless both tables hold the same questions in the same order."""
        if not (np.array_equal(self.qa_N, other.qa_N) and np.array_equal(self.image_N, other.image_N)):
            raise ConfigError(
                "the two tables hold other questions",
                field="subject",
                value=(self.subject, other.subject),
                remedy="tabulate both on one split with the same limits",
            )

    def save(self, file: Path) -> None:
        """Writes one .npz, all or nothing."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name.rpartition("_")[2] in ("N", "VN")}
        meta = {
            "subject": self.subject,
            "views": [asdict(view) for view in self.views],
            "readings": [asdict(reading) for reading in self.readings],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.part.npz")
        np.savez_compressed(part, meta=np.array(json.dumps(meta)), allow_pickle=False, **arrays)
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote."""
        with np.load(file, allow_pickle=False) as found:
            meta: dict[str, Any] = json.loads(str(found["meta"]))
            arrays = {name: found[name] for name in found.files if name.rpartition("_")[2] in ("N", "VN")}
        return cls(
            subject=meta["subject"],
            views=tuple(View(**view) for view in meta["views"]),
            readings=tuple(SseuReading(**reading) for reading in meta["readings"]),
            **arrays,
        )


def tabulate(
    subject: Subject,
    images: Iterable[Asked],
    views: Sequence[View],
    *,
    boundaries: TierBoundaries | None = None,
    budget_tokens: int = 8192,
) -> ViewTable:
    """Answers everything under every view, teacher-forced; memory is one group of images plus a byte an answer.

    Costs one LLM pass per view and question (1.5 ms of one core each at tiny size) and one vision pass per image.

    Raises:
        ConfigError: no image, or a policy that the subject cannot serve.
    """
    correct, nll, who, readings = [], [], [], []
    for group in grouped(images, subject, budget_tokens=budget_tokens):
        said = run_views(subject, group, views, boundaries=boundaries)
        correct.append(said.correct_VB)
        nll.append(said.answer_nll_VB)
        weights = said.batch.nll_weight_G.tolist()
        for branch in said.batch.branches:
            tree = said.batch.trees[branch.tree]
            scale = np.nan if tree.gsd_m is None else log10_gsd(tree.gsd_m)
            who.append((tree.image_id, tree.place_id, branch.qa_id, branch.type, branch.family,
                        str(tree.effective_tier), _CUE[tree.has_scale_cue], scale))  # fmt: skip
        if said.mu_G is not None and said.sigma_G is not None:
            readings += [
                SseuReading(
                    image_id=tree.image_id,
                    place_id=tree.place_id,
                    gsd_m=tree.gsd_m,
                    provenance_weight=weights[g],
                    mu=float(said.mu_G[g]),
                    sigma=float(said.sigma_G[g]),
                    has_scale_cue=tree.has_scale_cue,
                    tier=str(tree.effective_tier),
                )
                for g, tree in enumerate(said.batch.trees)
            ]
    if not who:
        raise ConfigError("no image to evaluate", field="images", value=0, remedy="check split and limits")
    columns = list(zip(*who, strict=True))
    texts = [np.array(column, dtype=np.str_) for column in columns[:6]]
    return ViewTable(
        subject=subject.name,
        views=tuple(views),
        correct_VN=np.concatenate(correct, axis=1),
        nll_VN=np.concatenate(nll, axis=1).astype(np.float64),
        image_N=texts[0],
        place_N=texts[1],
        qa_N=texts[2],
        type_N=texts[3],
        family_N=texts[4],
        tier_N=texts[5],
        cue_N=np.array(columns[6], np.int64),
        log10_gsd_N=np.array(columns[7], np.float64),
        readings=tuple(readings),
    )
