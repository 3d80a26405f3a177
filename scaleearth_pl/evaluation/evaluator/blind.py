"""The floors that need a corpus, for result rows: what its questions, and their GSDs, give away (`evaluation/floors.py`).

They depend on the questions and on nothing that a model says, so views and subjects of one call share them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import ScaleEarthError
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.evaluation.floors import compute_floors
from scaleearth_pl.evaluation.groups import nested


class BlindFloors:
    """Computed once for each corpus and set of questions; costs one reading of the JSON of train, val and these."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[str, Any]] = {}

    def of(self, index: ShardIndex, rows: Sequence[Prediction]) -> dict[str, Any]:
        """`{"question_only": {...}, "question_gsd": {...}, "chosen": {...}}`, or both null and why in `absent`.

        A corpus without a val to choose the answerer on, an evaluation of trained images, a damaged sample of train: then
        there are no such floors, and accuracies are numbers all the same.
        """
        key = (index.hash, tuple((row.image_id, row.qa_id, row.tier) for row in rows))
        if key not in self._known:
            self._known[key] = _measured(index.root, rows)
        return self._known[key]


def _measured(root: Path, rows: Sequence[Prediction]) -> dict[str, Any]:
    try:
        found = compute_floors(rows, corpus_root=root)
    except ScaleEarthError as error:
        return {"question_only": None, "question_gsd": None, "absent": str(error)}
    assert found.question_only is not None and found.question_gsd is not None and found.chosen is not None
    return {
        "question_only": nested(found.question_only),
        "question_gsd": nested(found.question_gsd),
        "chosen": {name: asdict(setting) for name, setting in found.chosen.items()},
    }
