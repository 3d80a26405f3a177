"""What the corpus gives away without its images: floors by family, measured on every build.

    majority        the commonest answer of the type, in the evaluated split itself
    question        the commonest answer to exactly this question in train
    question + GSD  the same among train's nearest questions on the log10 GSD axis; how many neighbours are asked is
                    chosen on the evaluated split, in favour of the floor

`answerable` is the share of questions that question and GSD decide: nine of ten neighbours agree, and they are right.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = (5, 9, 15, 25, 45, 10_000)
"""The last one is the look-up that does not know the GSD."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question as someone sees it who does not see the image."""

    type: str
    family: str
    question: str
    answer: str
    log10_gsd: float


def floors(train: Sequence[Asked], test: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Floors by family, and for all questions under "overall"; each with n, majority, question, question_gsd,
    answerable.
    """
    by_text: dict[str, list[Asked]] = defaultdict(list)
    by_type: dict[str, list[Asked]] = defaultdict(list)
    for row in train:
        by_text[row.question].append(row)
        by_type[row.type].append(row)
    verdicts = [_verdict(row, by_text.get(row.question) or by_type[row.type]) for row in test]
    return {
        family: _floor([r for r in zip(test, verdicts) if family in ("overall", r[0].family)])
        for family in ("overall", *sorted({row.family for row in test}))
    }


def _verdict(row: Asked, known: Sequence[Asked]) -> tuple[list[bool], bool]:
    near = sorted(known, key=lambda other: abs(other.log10_gsd - row.log10_gsd))
    right, decided = [], False
    for k in NEIGHBOURS:
        votes = Counter(other.answer for other in near[:k])
        answer, n = min(votes.items(), key=lambda v: (-v[1], v[0])) if votes else ("", 0)
        right.append(answer == row.answer)
        if k == 9:
            decided = answer == row.answer and len(near) >= k and n >= 0.9 * k
    return right, decided


def _floor(rows: Sequence[tuple[Asked, tuple[list[bool], bool]]]) -> dict[str, float]:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row, _ in rows:
        answers[row.type][row.answer] += 1
    right = np.array([verdict[0] for _, verdict in rows], dtype=np.float64).mean(axis=0)
    return {
        "n": float(len(rows)),
        "majority": sum(max(c.values()) for c in answers.values()) / len(rows),
        "question": float(right[-1]),
        "question_gsd": float(right[:-1].max()),
        "answerable": float(np.mean([verdict[1] for _, verdict in rows])),
    }
