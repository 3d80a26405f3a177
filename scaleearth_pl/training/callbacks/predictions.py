"""Writes every answer and GSD estimate of `validate`, `test` and `predict` as JSON lines: what evaluation reads."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from scaleearth_pl.core.errors import ScaleEarthError
from scaleearth_pl.core.files import write_text
from scaleearth_pl.core.run_files import PREDICTIONS, SSE_U, Prediction, SseuReading
from scaleearth_pl.training.callbacks.board import report_of, sum_over_ranks
from scaleearth_pl.training.callbacks.eval_observer import EvalObserver
from scaleearth_pl.training.report import EvalReport

Row = dict[str, Any]


class Predictions(EvalObserver):
    """Each rank appends to a part of its own; at the end rank zero merges, checks and replaces the files at once.

    Rows are sorted by their ids, so that the files do not depend on the number of ranks. Written by `validate`,
    `test` and `predict`, not by the validations inside `fit`. It logs nothing to TensorBoard.

    Files, in the run's folder (`trainer.default_root_dir`, which all ranks must share):
        predictions.jsonl: a question a row: image_id, place_id, source, qa_id, type, family, question, answer,
            prediction (null where nothing was generated), correct, gsd_m (effective, or null), tier (effective),
            has_scale_cue.
        sse_u.jsonl: an image a row: image_id, place_id, gsd_m, provenance_weight, mu and sigma (decades),
            has_scale_cue, tier; absent where the model has no SSE-U.

    Attributes:
        n_questions: rows of the last predictions.jsonl, known on rank zero.
        n_images: rows of the last sse_u.jsonl, known on rank zero.

    Args:
        folder: where to write instead of the run's folder.
    """

    def __init__(self, *, folder: str | None = None) -> None:
        self.folder = folder
        self.n_questions = self.n_images = 0
        self._parts: dict[str, TextIO] = {}
        self._written = {PREDICTIONS: 0, SSE_U: 0}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Opens this rank's parts."""
        self._open(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Opens this rank's parts."""
        self._open(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Opens this rank's parts."""
        self._open(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Appends one batch."""
        self._observe(trainer, pl_module, report_of(outputs, EvalReport))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges all ranks' parts."""
        self._merge(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges all ranks' parts."""
        self._merge(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges all ranks' parts."""
        self._merge(trainer, pl_module)

    def _path(self, trainer: Trainer, name: str, rank: int | None = None) -> Path:
        folder = Path(self.folder or trainer.default_root_dir)
        return folder / (name if rank is None else f"{name}.rank{rank:05d}")

    def _open(self, trainer: Trainer) -> None:
        if trainer.state.fn is TrainerFn.FITTING:
            return
        for name in self._written:
            path = self._path(trainer, name, trainer.global_rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parts[name] = path.open("w", encoding="utf-8")
            self._written[name] = 0

    def _observe(self, trainer: Trainer, pl_module: LightningModule, report: EvalReport) -> None:  # noqa: ARG002
        if not self._parts:
            return
        for name, rows in ((PREDICTIONS, answer_rows(report)), (SSE_U, sse_u_rows(report))):
            for row in rows:
                self._parts[name].write(json.dumps(asdict(row), allow_nan=False) + "\n")
                self._written[name] += 1

    def _merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._parts:
            return
        for part in self._parts.values():
            part.close()
        self._parts = {}
        counts = torch.tensor(list(self._written.values()), dtype=torch.float64, device=pl_module.device)
        expected = dict(zip(self._written, sum_over_ranks(trainer, counts).tolist(), strict=True))
        trainer.strategy.barrier("parts written")
        if trainer.is_global_zero:
            kept = {}
            for name, merge in ((PREDICTIONS, merge_answers), (SSE_U, merge_sse_u)):
                parts = [self._path(trainer, name, rank) for rank in range(trainer.world_size)]
                kept[name] = _merge_parts(parts, self._path(trainer, name), int(expected[name]), merge)
            self.n_questions, self.n_images = kept[PREDICTIONS], kept[SSE_U]
        trainer.strategy.barrier("parts merged")


def answer_rows(report: EvalReport) -> Iterator[Prediction]:
    """Rows of predictions.jsonl."""
    verdicts = report.correct_B.tolist()
    for branch, correct, prediction in zip(report.branches, verdicts, report.predictions, strict=True):
        yield Prediction.of(report.trees[branch.tree], branch, prediction=prediction, correct=correct)


def sse_u_rows(report: EvalReport) -> Iterator[SseuReading]:
    """Rows of sse_u.jsonl; none without SSE-U. One device copy for the whole batch."""
    if report.mu is None or report.log_var is None or report.nll_weight is None:
        return
    numbers = torch.stack([report.mu, torch.exp(0.5 * report.log_var), report.nll_weight]).T.tolist()
    for tree, (mu, sigma, weight) in zip(report.trees, numbers, strict=True):
        yield SseuReading.of(tree, provenance_weight=weight, mu=mu, sigma=sigma)


def merge_answers(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Unique answers by (source, image, question id); raises ScaleEarthError if two *different* questions share one."""
    merged: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["source"], row["image_id"], row["qa_id"])
        first = merged.setdefault(key, row)
        if (first["question"], first["answer"]) != (row["question"], row["answer"]):
            raise ScaleEarthError(
                "two different questions share an id", field="qa_id", value=key, remedy="rebuild the corpus"
            )
    return merged


def merge_sse_u(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Unique images by (image, place); the weights of an image's parts add up to its trust again."""
    merged: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["image_id"], row["place_id"])
        if key in merged:
            merged[key]["provenance_weight"] += row["provenance_weight"]
        else:
            merged[key] = dict(row)
    return merged


def _merge_parts(parts: list[Path], target: Path, expected: int, merge: Any) -> int:
    """Merges parts into `target` atomically, removes them, returns the number of unique rows."""
    missing = [part for part in parts if not part.exists()]
    lines: list[str] = []
    for part in (p for p in parts if p not in missing):
        with part.open(encoding="utf-8") as file:
            lines += file
    if missing or len(lines) != expected:
        raise ScaleEarthError(
            f"ranks wrote {expected} rows, rank zero finds {len(lines)}",
            file=missing[0] if missing else target,
            field="rows",
            value=len(lines),
            remedy="the run's folder must be one that all ranks share, with room on its disk",
        )
    merged: Mapping[tuple[str, ...], Row] = merge(json.loads(line) for line in lines)
    if merged:
        write_text(target, "".join(json.dumps(merged[k]) + "\n" for k in sorted(merged)))
    else:
        target.unlink(missing_ok=True)
    for part in parts:
        part.unlink()
    return len(merged)
