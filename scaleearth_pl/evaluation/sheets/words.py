"""What stands beside the examples: how they were drawn, and how often each variant was right on *everything*.

Without both a sheet is an advertisement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scaleearth_pl.evaluation.floors import majority_verdicts
from scaleearth_pl.evaluation.sheets.answers import Shown
from scaleearth_pl.evaluation.sheets.choose import Draw, Drawn, Variant
from scaleearth_pl.evaluation.tables import percent


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is written around a sheet: title, rule of the draw, and each variant's counts."""

    title: str
    rule: str
    counts: str


@dataclass(frozen=True, kw_only=True)
class TypeCount:
    """All questions of one type: how many, the best constant answer's share, and each variant's."""

    n: int
    majority: float
    accuracy: Mapping[str, float]

    @property
    def text(self) -> str:
        """What the accuracies are of."""
        return f"all {self.n:,} of this type (best constant answer {percent(self.majority)} %)"


def count_types(variants: Sequence[Variant]) -> dict[str, TypeCount]:
    """Accuracies and majority floors by type of question."""
    rows = list(variants[0].rows.values())
    kinds = np.array([row.type for row in rows])
    floors = majority_verdicts(rows)
    hits = {v.name: np.array([v.rows[row.key].correct for row in rows], float) for v in variants}
    return {
        name: TypeCount(
            n=int(mask.sum()),
            majority=float(floors[mask].mean()),
            accuracy={variant: float(hit[mask].mean()) for variant, hit in hits.items()},
        )
        for name in sorted(set(kinds.tolist()))
        for mask in (kinds == name,)
    }


def counts_text(types: Mapping[str, TypeCount], drawn: Sequence[Drawn], shown: Shown) -> str:
    """One sentence: right on the sheet and right on everything, by variant."""
    keys = [row.key for some in drawn for row in some.rows]
    n = sum(count.n for count in types.values())
    parts = []
    for name, said in shown.said.items():
        overall = sum(count.n * count.accuracy[name] for count in types.values()) / n
        parts.append(f"{name} {sum(said[key].right for key in keys)} of {len(keys)}, {percent(overall)} %")
    return f"Right on this sheet, and on all {n:,} questions of the split: {'; '.join(parts)}."


def place_rule(draw: Draw, *, shown: Shown, n_places: int, n_qualified: int) -> str:
    """How places and their questions were drawn, and what SSE-U's bars are."""
    return (
        f"{_lot(draw)}: {n_places} of the {n_qualified} places seen at {draw.min_gsds} or more GSDs; of each image one "
        f"question of each family, what needs the GSD first, filled up with other types to {draw.questions}. Below an image: "
        f"what SSE-U of {next(iter(shown.said))!r} reads from the pixels alone, with its 90 % interval; the black stroke is "
        f"the truth.{_texts(shown)}"
    )


def type_rule(draw: Draw, *, shown: Shown, marked: str = "") -> str:
    """How the question of each type was drawn, and what the grey numbers are."""
    return f"{_lot(draw)}: one question of each type. In grey: accuracy on all questions of that type.{marked}{_texts(shown)}"


def _lot(draw: Draw) -> str:
    return f"Drawn by lot (a hash of seed {draw.seed} and the ids), before any answer was looked at"


def _texts(shown: Shown) -> str:
    """Where the texts are from, if not from the files."""
    if not shown.asked:
        return ""
    differing = f"{shown.differing} of {shown.asked} verdicts shown here differ from those recorded"
    return f" `scaleearth test` keeps right or wrong only, so the runs were asked again for the texts (greedy): {differing}."
