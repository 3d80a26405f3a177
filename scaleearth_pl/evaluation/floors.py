"""What can be answered without looking: the floors that stand beside every accuracy.

- *majority*: the commonest answer of each question type of each source among the evaluated questions themselves, the
  best that a constant per source and type can reach.
- *question only*: the commonest answer to this question text in what the models were trained on, both stages.
- *question + GSD*: the same, by question and a bin of log10 GSD, or by a law fitted to it. What it gains over question
  only is what the metadata give away without an image (extent is GSD times pixels). The fairness rule is stricter and
  elsewhere: at most 10 % of scale-specific questions may be *decided* so (`prepare/world/floors.py`).
- *image only*: what the image gives without the GSD. No table can look at an image, so this is by definition the
  accuracy of a model that sees image and question but is not told the GSD: the plain LoRA twin, or stage 1. It is
  passed in; where no such run is given it is null, never guessed.

A floor must be hard to beat, so which blind answerer (`blind.py`: a look-up with one of five bin widths, or a power law
of the GSD) and with which support is chosen *per question type on val*. Answers compare exactly, as the model's do. The
GSD is the file's: with one image size it differs from the effective one by a constant factor, which neither answerer
notices.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import PREDICTIONS, Prediction
from scaleearth_pl.evaluation.blind import Answerer, LookUp, PowerLaw
from scaleearth_pl.evaluation.groups import group_masks, group_means
from scaleearth_pl.evaluation.pairing import refuse_other_questions
from scaleearth_pl.evaluation.question_tables import QuestionRow, read_tables

BIN_WIDTHS_DECADES = (0.05, 0.1, 0.25, 0.5, 1.0)
SUPPORTS = (1, 5, 20)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which answerer val chose, in words, and the support that it needs."""

    answerer: str
    support: int


@dataclass(frozen=True, kw_only=True)
class BlindFloor:
    """A floor's verdict per evaluated question by (image_id, qa_id), and the settings that val chose per type."""

    correct: Mapping[tuple[str, str], bool]
    chosen: Mapping[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Accuracies in [0, 1] by group ('overall', 'by_tier/high', 'by_family/...', 'by_type/...'); null if not measured.

    `scale_specific_from_gsd` is the gain of question + GSD over question only on scale-specific questions.
    """

    majority: dict[str, float]
    question_only: dict[str, float] | None = None
    question_gsd: dict[str, float] | None = None
    image_only: dict[str, float] | None = None
    scale_specific_from_gsd: float | None = None
    chosen: Mapping[str, Setting] | None = None


def compute_floors(
    predictions: Sequence[Prediction],
    *,
    corpus_root: Path | None = None,
    image_only: Sequence[Prediction] | None = None,
) -> Floors:
    """Floors of the questions that were evaluated.

    Args:
        predictions: which questions were evaluated.
        corpus_root: `data_shards/<corpus>`; without it the two look-up floors are null.
        image_only: predictions of a run that is not told the GSD, of the same questions.

    Raises:
        ConfigError: an evaluated image is not in the corpus or is one of its train images (a leak), or `image_only`
            answered other questions.
        IndexSchemaError: the corpus has no index, or no split train or val.
    """
    masks = group_masks(predictions)
    majority = group_means(majority_verdicts(predictions), masks)
    image_floor = None if image_only is None else group_means(_of_the_same(predictions, image_only), masks)
    if corpus_root is None:
        return Floors(majority=majority, image_only=image_floor)
    train, val, evaluated = read_tables(corpus_root, predictions)
    blind_answerers: list[Answerer] = [LookUp(train, None), PowerLaw(train, use_gsd=False)]
    scale_answerers: list[Answerer] = [
        *(LookUp(train, width) for width in BIN_WIDTHS_DECADES),
        PowerLaw(train, use_gsd=True),
    ]
    blind = choose_floor(blind_answerers, val, evaluated)
    with_gsd = choose_floor([*blind_answerers, *scale_answerers], val, evaluated)
    question_only, question_gsd = (group_means(_verdicts(predictions, f.correct), masks) for f in (blind, with_gsd))
    family = "by_family/scale_specific"
    return Floors(
        majority=majority,
        question_only=question_only,
        question_gsd=question_gsd,
        image_only=image_floor,
        scale_specific_from_gsd=question_gsd[family] - question_only[family] if family in masks else None,
        chosen=with_gsd.chosen,
    )


def _of_the_same(predictions: Sequence[Prediction], others: Sequence[Prediction]) -> NDArray[np.float64]:
    """Right and wrong of another run on these very questions."""
    keys = {row.key for row in predictions}
    shared = [row for row in others if row.key in keys]
    refuse_other_questions(predictions, shared, file=PREDICTIONS, remedy="test both runs on the same corpus and split")
    return _verdicts(predictions, {row.key: row.correct for row in shared})


def choose_floor(
    answerers: Sequence[Answerer], val: Sequence[QuestionRow], evaluated: Sequence[QuestionRow]
) -> BlindFloor:
    """Keeps for each question type the answerer and support that are best on val, and answers `evaluated`.

    Ties go to the earlier answerer and the smaller support; a type that val does not hold takes the first of both.
    """
    best: dict[str, tuple[int, Answerer, int]] = {}
    for answerer, support in product(answerers, SUPPORTS):
        hits: Counter[str] = Counter({row.type: 0 for row in (*val, *evaluated)})
        hits.update(row.type for row in val if answerer.answer(row, support) == row.answer)
        for type_, n in hits.items():
            if type_ not in best or n > best[type_][0]:
                best[type_] = (n, answerer, support)
    correct = {}
    for row in evaluated:
        _, answerer, support = best[row.type]
        correct[row.image_id, row.qa_id] = answerer.answer(row, support) == row.answer
    chosen = {name: Setting(answerer=a.name, support=s) for name, (_, a, s) in sorted(best.items())}
    return BlindFloor(correct=correct, chosen=chosen)


def majority_verdicts(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """1 where a question's answer is the commonest of its source and type among these questions, else 0."""
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in predictions:
        answers[row.source, row.type][row.answer] += 1
    best = {name: min(counts, key=lambda a: (-counts[a], a)) for name, counts in answers.items()}
    return np.array([row.answer == best[row.source, row.type] for row in predictions], dtype=np.float64)


def _verdicts(predictions: Sequence[Prediction], correct: Mapping[tuple[str, str], bool]) -> NDArray[np.float64]:
    for row in predictions:
        if row.key not in correct:
            raise ConfigError(
                "a floor was not measured on the same questions",
                field="(image_id, qa_id)",
                value=row.key,
                remedy="take runs and corpus of one evaluation",
            )
    return np.array([correct[row.key] for row in predictions], dtype=np.float64)
