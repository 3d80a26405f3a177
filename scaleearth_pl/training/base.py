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

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from scaleearth_pl.core.batch import StepBatch, TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.scaleearth import TreeLosses
from scaleearth_pl.training.evaluation import TreeEvaluation
from scaleearth_pl.training.optim import OptimConfig, build_optimizer, clip_groups, restate
from scaleearth_pl.training.ranks import in_group
from scaleearth_pl.training.report import StepReport

PRECISIONS = ("32-true", "bf16-mixed")
"""Trainer precisions that leave batches and gradients as they are."""


class TreeTraining(TreeEvaluation):
    """Base of both stages. Subclasses build the model and name their parameter groups.

    Args:
        optim: learning rates, schedule, clipping.
        generate: see `TreeEvaluation`.
        max_new_tokens: see `TreeEvaluation`.
    """

    def __init__(self, *, optim: OptimConfig, generate: bool = False, max_new_tokens: int = 24) -> None:
        super().__init__(generate=generate, max_new_tokens=max_new_tokens)
        self.automatic_optimization = False
        self.optim = optim

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


def _per_image(batch: StepBatch, losses: list[TreeLosses]) -> dict[str, Tensor]:
    return {
        "log10_gsd": torch.cat([m.log10_gsd_G for m in batch.micro]),
        "mu": torch.cat([cast(Tensor, x.mu_G) for x in losses]),
        "log_var": torch.cat([cast(Tensor, x.log_var_G) for x in losses]),
        "nll_weight": torch.cat([m.nll_weight_G for m in batch.micro]),
    }
