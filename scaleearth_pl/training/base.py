"""What both stages share: one `training_step` is one optimizer step, exact for any ranks and subdivision.

A `StepBatch` holds this rank's micro-batches of the step. The global normalisers are known before the first backward
(they are counts of the data), so every micro-batch contributes

    world * ( CE_sum / N  +  lambda_eff * NLL_sum / W ),      N = supervised tokens, W = trust, both over all ranks,

and DDP's or FSDP2's averaging over ranks cancels `world`. Loss and gradient then do not depend on the number of ranks,
on how the step is cut, or on how unevenly questions fall: no token ever weighs more because its neighbour was short.
The price is Lightning's manual optimisation; `accumulate_grad_batches` and `gradient_clip_val` have no say here.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from scaleearth_pl.core.batch import StepBatch, TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.metrics import GroupedAccuracy
from scaleearth_pl.model.scaleearth import ScaleEarth, TreeLosses
from scaleearth_pl.training.optim import OptimConfig, build_optimizer, clip_groups, restate
from scaleearth_pl.training.ranks import in_group
from scaleearth_pl.training.report import EvalReport, StepReport, merge_reports

PRECISIONS = ("32-true", "bf16-mixed")
"""Trainer precisions that leave batches and gradients as they are."""


class TreeTraining(pl.LightningModule):
    """Base of both stages. Subclasses build the model and name their parameter groups.

    Args:
        optim: learning rates, schedule, clipping.
        generate: in `test`, also generate each answer as text (packed greedy decoding) instead of only comparing
            teacher-forced argmax tokens; both give the same exact-match accuracy.
        max_new_tokens: bound on a generated answer.
    """

    def __init__(self, *, optim: OptimConfig, generate: bool = False, max_new_tokens: int = 24) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optim, self.generate, self.max_new_tokens = optim, generate, max_new_tokens
        self.accuracy = GroupedAccuracy()
        self.model: ScaleEarth

    @abstractmethod
    def named_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """Trainable parameters by group name."""

    def lambda_eff(self) -> float:
        """Weight of the NLL at this step; 0 where there is no SSE-U."""
        return 0.0

    def predicted_share(self) -> float:
        """Share of trees gated by SSE-U's prediction at this step."""
        return 0.0

    def finish_gradients(self) -> None:
        """Called between the last backward and clipping; the strategy has averaged over ranks already."""

    # -- optimisation ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Refuses settings under which numbers would be wrong, before anything is loaded.

        Lightning's `-true` precisions cast every batch (GSDs at a bfloat16 step are 2 % apart near 20 m), or stop at
        its frozen class; `16-mixed` hands over scaled gradients, which clipping would take for large ones.

        Raises:
            ConfigError: neither 32-true nor bf16-mixed; epochs cut short, of which the schedule would know nothing; part
                of a split evaluated, which is its first tier.
        """
        if self.trainer.precision not in PRECISIONS:
            raise ConfigError(
                f"trainer precision must be one of {PRECISIONS}",
                field="trainer.precision",
                value=self.trainer.precision,
                remedy="use 32-true; the dtype of the backbone and of its computation is backbone.dtype",
            )
        if not getattr(self.trainer, "fast_dev_run", False):
            self._refuse_parts()

    def _refuse_parts(self) -> None:
        limit = self.trainer.limit_train_batches
        if self.fitting and (isinstance(limit, int) or limit != 1.0):
            raise ConfigError(
                "learning rate and order are planned over whole epochs",
                field="trainer.limit_train_batches (overfit_batches sets it)",
                value=limit,
                remedy="use trainer.max_steps for a shorter run, data.limit_images for fewer images",
            )
        for kind in ("val", "test", "predict"):
            limit = getattr(self.trainer, f"limit_{kind}_batches")
            if limit and (isinstance(limit, int) or limit != 1.0):
                raise ConfigError(
                    "batches are in the order of the shards, tier by tier: the first of them are one tier",
                    field=f"trainer.limit_{kind}_batches",
                    value=limit,
                    remedy="0 leaves them out; data.limit_images takes fewer images, evenly spaced",
                )

    @property
    def fitting(self) -> bool:
        """Whether this run trains; false in validate, test, predict of their own."""
        return bool(self.trainer.state.fn is TrainerFn.FITTING)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: the trainer's bound, its epochs times the plan's steps, or what comes first."""
        epochs = self.trainer.max_epochs or -1
        bounds = [self.trainer.max_steps, epochs * int(self.datamodule.steps_per_epoch) if epochs > 0 else -1]
        if max(bounds) < 1:
            raise ConfigError("the run has no end", field="trainer.max_steps", value=-1, remedy="set max_steps")
        return min(bound for bound in bounds if bound > 0)

    @property
    def datamodule(self) -> Any:
        """The trainer's DataModule (GeoScaleDataModule)."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """AdamW over the named groups with warm-up and cosine."""
        optimizer, schedule = build_optimizer(self.optim, self.named_groups(), self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """A resumed run obeys the learning rates and the length that it is resumed with."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        restate(self.optim, optimizer, cast(LambdaLR, self.lr_schedulers()))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to resume where nothing is left to do: Lightning would end at once, with status 0 and no result."""
        done = int(checkpoint["global_step"])
        if self.fitting and done >= self.total_steps:
            raise ConfigError(
                f"the checkpoint is of step {done}, and the run ends there or before",
                field="trainer.max_steps",
                value=self.total_steps,
                remedy="give it more steps, or start a run without resume",
            )

    def training_step(self, batch: StepBatch, batch_idx: int) -> dict[str, StepReport]:  # noqa: ARG002
        """One optimizer step over all micro-batches of this rank."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        n_supervised, trust = self._over_ranks([batch.n_supervised, batch.nll_weight])
        lambda_eff = self.lambda_eff()  # of this step: `global_step` moves on with the optimizer
        losses = [
            self._backward(micro, n_supervised, trust, lambda_eff, last=micro is batch.micro[-1])
            for micro in batch.micro
        ]
        self.finish_gradients()
        norms = clip_groups(optimizer, self.optim.clip_norm)
        lrs = {str(g["name"]): float(g["lr"]) for g in optimizer.param_groups}
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()  # type: ignore[union-attr,call-arg]
        return {"report": self._report(batch, losses, n_supervised, trust, lambda_eff, norms, lrs)}

    def _backward(
        self, micro: TreeBatch, n_supervised: Tensor, trust: Tensor, lambda_eff: float, *, last: bool
    ) -> TreeLosses:
        world = self.trainer.world_size
        with nullcontext() if last else self._no_sync():
            out = self.model(micro, predicted_share=self.predicted_share())
            loss = out.ce_sum / n_supervised
            if out.nll_sum is not None:
                loss = loss + lambda_eff * out.nll_sum / trust
            with torch.autocast(self.device.type, enabled=False):  # what was float32 in the forward stays it
                self.manual_backward(world * loss)
        return cast(TreeLosses, out.detach())

    def _no_sync(self) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _over_ranks(self, numbers: list[float]) -> Tensor:
        """Sums over ranks, in fp64; a sum of zero becomes one, so that an empty step divides by something."""
        total = torch.tensor(numbers, dtype=torch.float64).to(self.device, non_blocking=True)
        if in_group():
            dist.all_reduce(total)
        return torch.where(total == 0, 1.0, total).float()

    def _report(
        self,
        batch: StepBatch,
        losses: list[TreeLosses],
        n_supervised: Tensor,
        trust: Tensor,
        lambda_eff: float,
        norms: dict[str, Tensor],
        lrs: dict[str, float],
    ) -> StepReport:
        has_head = losses[0].nll_sum is not None
        sums = [torch.stack([x.ce_sum for x in losses]).sum()]
        sums += [torch.stack([cast(Tensor, x.nll_sum) for x in losses]).sum()] if has_head else []
        total = torch.stack(sums).double()
        if in_group():
            dist.all_reduce(total)
        vlm_loss = total[0].float() / n_supervised
        nll = total[1].float() / trust if has_head else None
        images = _per_image(batch, losses) if has_head else {}
        return StepReport(
            step=self.global_step,
            loss=vlm_loss if nll is None else vlm_loss + lambda_eff * nll,
            vlm_loss=vlm_loss,
            nll=nll,
            lambda_eff=lambda_eff,
            lr=lrs,
            grad_norm=norms,
            n_questions=batch.n_questions,
            n_tokens=batch.n_tokens,
            n_padded=batch.n_padded,
            n_supervised=batch.n_supervised,
            micro_sums_M=torch.stack([x.ce_sum if x.nll_sum is None else x.ce_sum + x.nll_sum for x in losses]),
            **images,
        )

    # -- evaluation --------------------------------------------------------------------------------------------

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


def _per_image(batch: StepBatch, losses: list[TreeLosses]) -> dict[str, Tensor]:
    return {
        "log10_gsd": torch.cat([m.log10_gsd_G for m in batch.micro]),
        "mu": torch.cat([cast(Tensor, x.mu_G) for x in losses]),
        "log_var": torch.cat([cast(Tensor, x.log_var_G) for x in losses]),
        "nll_weight": torch.cat([m.nll_weight_G for m in batch.micro]),
    }
