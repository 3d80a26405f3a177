"""Questions of train, val and of an evaluation, read from the shards as a blind answerer may see them.

Only the JSON members are read, never a pixel. The evaluated questions are looked up by (image_id, qa_id), so a run that
evaluated part of a split is compared with floors on that part. An evaluated image that was trained on is
refused: that is a leak, not a floor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.run_files import Prediction
from scaleearth_pl.core.sample import TRAINED_SPLITS
from scaleearth_pl.data.shards import ShardIndex, ShardReader


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionRow:
    """One question as a blind answerer sees it, with its answer; `log10_gsd` is None where the GSD is unknown."""

    image_id: str
    qa_id: str
    type: str
    family: str
    question: str
    answer: str
    options: tuple[str, ...] | None
    log10_gsd: float | None


def read_tables(
    corpus_root: Path, predictions: Sequence[Prediction]
) -> tuple[list[QuestionRow], list[QuestionRow], list[QuestionRow]]:
    """Question tables of train, val and of the evaluated questions, read from the shards' JSON alone."""
    index = ShardIndex.load(corpus_root)
    reader = ShardReader(index)
    row_of = {image_id: row for row, image_id in enumerate(index.text["image_id"])}
    wanted = {p.key for p in predictions}
    try:
        train_rows, val_rows = (index.rows((split,)).tolist() for split in ("train", "val"))
        rows = [_row_of(row_of, image_id, corpus_root) for image_id in sorted({image for image, _ in wanted})]
        trained_on = tuple(split for split in TRAINED_SPLITS if split in index.splits)
        leaked = sorted(set(rows) & set(index.rows(trained_on).tolist()))
        if leaked:
            raise ConfigError(
                f"{len(leaked)} evaluated images were trained on",
                file=corpus_root,
                field="image_id",
                value=index.text["image_id"][leaked[0]],
                remedy="evaluate the split 'test' or 'val'",
            )
        tables = [[q for row in part for q in _questions(reader, row)] for part in (train_rows, val_rows, rows)]
    finally:
        reader.close()
    return tables[0], tables[1], [q for q in tables[2] if (q.image_id, q.qa_id) in wanted]


def _row_of(row_of: Mapping[str, int], image_id: str, corpus_root: Path) -> int:
    if image_id not in row_of:
        raise ConfigError(
            "evaluated image is not in the corpus",
            file=corpus_root,
            field="image_id",
            value=image_id,
            remedy="name the corpus that the run was evaluated on",
        )
    return row_of[image_id]


def _questions(reader: ShardReader, row: int) -> list[QuestionRow]:
    sample = reader.read_sample(row)
    scale = None if sample.gsd_m_native is None else log10_gsd(sample.gsd_m_native)
    return [
        QuestionRow(
            image_id=sample.image_id,
            qa_id=q.id,
            type=q.type,
            family=q.family,
            question=q.question,
            answer=q.answer,
            options=q.options,
            log10_gsd=scale,
        )
        for q in sample.qas
    ]
