"""Questions that models trained on, of val and of an evaluation, read from the shards as a blind answerer may see them.

Only the JSON members are read, never a pixel. The evaluated questions are looked up by (image_id, qa_id), so a run that
evaluated part of a split is compared with floors on that part. An evaluated image that was trained on is
refused: that is a leak, not a floor. So is a corpus that asks something else under the same ids: it was built anew.
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
    """Question tables of all splits that a stage trains on, of val, and of the evaluated questions.

    Raises:
        ConfigError: an evaluated image is not in the corpus, was trained on, or is asked other questions there.
        IndexSchemaError: the corpus has no index, or no split train or val.
    """
    index = ShardIndex.load(corpus_root)
    reader = ShardReader(index)
    row_of = {image_id: row for row, image_id in enumerate(index.text["image_id"])}
    wanted = {p.key: (p.question, p.answer) for p in predictions}
    try:
        trained_on = ("train", *(split for split in TRAINED_SPLITS if split in index.splits and split != "train"))
        train_rows, val_rows = (index.rows(splits).tolist() for splits in (trained_on, ("val",)))
        rows = [_row_of(row_of, image_id, corpus_root) for image_id in sorted({image for image, _ in wanted})]
        leaked = sorted(set(rows) & set(train_rows))
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
    asked = [q for q in tables[2] if (q.image_id, q.qa_id) in wanted]
    _refuse_others(asked, wanted, corpus_root)
    return tables[0], tables[1], asked


def _refuse_others(
    asked: Sequence[QuestionRow], wanted: Mapping[tuple[str, str], tuple[str, str]], corpus_root: Path
) -> None:
    others = [(q.image_id, q.qa_id) for q in asked if wanted[q.image_id, q.qa_id] != (q.question, q.answer)]
    if others:
        raise ConfigError(
            f"the corpus asks something else under {len(others)} of the answered ids",
            file=corpus_root,
            field="(image_id, qa_id)",
            value=others[0],
            remedy="it was built anew: train and test on it, or name the corpus that the run was evaluated on",
        )


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
