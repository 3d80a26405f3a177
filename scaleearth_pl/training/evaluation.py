"""What both stages answer in validation, test and predict: losses, exact match, accuracies over all ranks.

The gate is told what the resolver's policy says, never a prediction in the place of metadata as in training.
"""

from typing import Any

import lightning.pytorch as pl

from scaleearth_pl.core.batch import StepBatch, TreeBatch
from scaleearth_pl.core.metrics import GroupedAccuracy
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.report import EvalReport, merge_reports


class TreeEvaluation(pl.LightningModule):
    """Evaluates `model`, which a subclass builds.

    Args:
        generate: in `test`, also generate each answer as text (packed greedy decoding) instead of only comparing
            teacher-forced argmax tokens; both give the same exact-match accuracy.
        max_new_tokens: bound on a generated answer.
    """

    def __init__(self, *, generate: bool = False, max_new_tokens: int = 24) -> None:
        super().__init__()
        self.generate, self.max_new_tokens = generate, max_new_tokens
        self.accuracy = GroupedAccuracy()
        self.model: ScaleEarth

    @property
    def datamodule(self) -> Any:
        """The trainer's DataModule (GeoScaleDataModule)."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def validation_step(self, batch: StepBatch, batch_idx: int) -> dict[str, EvalReport]:  # noqa: ARG002
        """Losses and exact match of one step's micro-batches."""
        return {"report": self._count(self._evaluate(batch, generate=False))}

    def test_step(self, batch: StepBatch, batch_idx: int) -> dict[str, EvalReport]:  # noqa: ARG002
        """As validation, with generated text where asked for."""
        return {"report": self._count(self._evaluate(batch, generate=self.generate))}

    def predict_step(self, batch: StepBatch, batch_idx: int) -> dict[str, EvalReport]:  # noqa: ARG002
        """Generated text, which nothing is computed of: `Predictions` writes it down."""
        return {"report": self._evaluate(batch, generate=True)}

    def _count(self, report: EvalReport) -> EvalReport:
        self.accuracy.update(report.correct_B, report.branches, report.trees)
        return report

    def _evaluate(self, batch: StepBatch, *, generate: bool) -> EvalReport:
        parts = [self._evaluate_micro(micro, generate=generate) for micro in batch.micro]
        return merge_reports([part for part, micro in zip(parts, batch.micro, strict=True) if not micro.is_filler])

    def _evaluate_micro(self, micro: TreeBatch, *, generate: bool) -> EvalReport:
        out = self.model(micro, predicted_share=0.0)
        has_head = out.mu_G is not None
        return EvalReport(
            vlm_loss_sum=out.ce_sum,
            n_supervised=micro.supervised_T.sum(),
            trees=micro.trees,
            branches=micro.branches,
            correct_B=self.model.exact_match(out.argmax_N, micro),
            predictions=self._decode(micro) if generate else (None,) * len(micro.branches),
            log10_gsd=micro.log10_gsd_G if has_head else None,
            mu=out.mu_G,
            log_var=out.log_var_G,
            nll_weight=micro.nll_weight_G if has_head else None,
        )

    def _decode(self, micro: TreeBatch) -> tuple[str, ...]:
        tokenizer = self.datamodule.processor.tokenizer
        answers = self.model.answer(micro, max_new_tokens=self.max_new_tokens)
        return tuple(tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers)

    def on_validation_epoch_end(self) -> None:
        """Logs accuracies over all ranks."""
        self._log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        """Logs accuracies over all ranks."""
        self._log_accuracy("test")

    def _log_accuracy(self, stage: str) -> None:
        """For callbacks, and for the board at the step of all other figures: `log` would put it one before."""
        found = {f"{stage}/accuracy/{name}": float(value) for name, value in self.accuracy.compute().items()}
        for name, value in found.items():
            self.log(name, value, rank_zero_only=True, logger=False)
        for logger in () if self.trainer.sanity_checking else self.trainer.loggers:
            logger.log_metrics(found, step=self.trainer.global_step)
        self.accuracy.reset()
