"""What a step tells its observers: the only channel from the LightningModules to the callbacks.

A step returns `{"report": StepReport(...)}` or `{"report": EvalReport(...)}` and logs nothing else of its own but the
accuracies; callbacks read `outputs["report"]` and write TensorBoard. The price is one small object per step; what it
buys is that a training step stays fifteen lines and a chart can be added without opening it.

Tensors stay on the device, detached: a callback that logs every n steps pays one host synchronisation per n steps, and
a step that nobody logs pays none. Counts that the loader knew before the step are plain integers.

Legend of shape suffixes: I images (trees) of this rank's step, B branches (questions) of this rank's batch.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step of training, as seen by this rank.

    `loss`, `vlm_loss` and `nll` are means over *all* ranks (the normalisers are global), so that every rank reports
    the same curve; counts and per-image vectors are this rank's own. Stage 1 has no SSE-U: its `nll` and per-image
    vectors are None.

    Args:
        step: optimizer steps done, this one included (`trainer.global_step` after the update): 1 after the first.
        loss: total loss, `vlm_loss + lambda_eff * nll`.
        vlm_loss: cross-entropy per supervised token, in nats.
        nll: Gaussian NLL of log10 GSD per unit of trust, or None.
        lambda_eff: factor of the NLL in the total loss, as this step's gradient had it; 0 in the first step of a ramp.
        lr: learning rate of every parameter group, by its name.
        grad_norm: L2 norm of every parameter group's gradient before clipping ('adapters', 'thresholds', 'sse_u' in
            stage 2, 'model' in stage 1).
        n_questions: questions of this rank's step.
        n_tokens: tokens of its trees; n_padded: tokens computed besides, for nothing; n_supervised: tokens of the
            trees that carry a target.
        log10_gsd: metadata s = log10(metres per pixel seen) of every image, NaN where unknown.
        mu: SSE-U's mean of s; log_var: its log variance (decades squared).
        nll_weight: trust in the metadata, divided by the parts that the image was split into; 0 where unknown.
        micro_sums_M: raw loss sums of this rank's micro-batches; tells which of them is not finite.
    """

    step: int
    loss: Float[Tensor, ""]
    vlm_loss: Float[Tensor, ""]
    nll: Float[Tensor, ""] | None
    lambda_eff: float
    lr: Mapping[str, float]
    grad_norm: Mapping[str, Tensor]
    n_questions: int
    n_tokens: int
    n_padded: int
    n_supervised: int
    log10_gsd: Float[Tensor, " I"] | None = None
    mu: Float[Tensor, " I"] | None = None
    log_var: Float[Tensor, " I"] | None = None
    nll_weight: Float[Tensor, " I"] | None = None
    micro_sums_M: Float[Tensor, " M"] | None = None

    def __post_init__(self) -> None:
        _same_presence(
            nll=self.nll, log10_gsd=self.log10_gsd, mu=self.mu, log_var=self.log_var, nll_weight=self.nll_weight
        )


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One batch of validation or test, as seen by this rank; sums, so that batches of any size add up exactly.

    Args:
        vlm_loss_sum: cross-entropy summed over supervised tokens, in nats.
        n_supervised: number of supervised tokens.
        trees: one per image of the batch; `branches[b].tree` points into it.
        branches: one per question.
        correct_B: True where the answer is right.
        predictions: the text generated for every branch, None where only teacher forcing was run.
        log10_gsd, mu, log_var, nll_weight: per tree, as in `StepReport`; None without SSE-U.
    """

    vlm_loss_sum: Float[Tensor, ""]
    n_supervised: Int[Tensor, ""]
    trees: tuple[TreeInfo, ...]
    branches: tuple[BranchInfo, ...]
    correct_B: Bool[Tensor, " B"]
    predictions: tuple[str | None, ...]
    log10_gsd: Float[Tensor, " I"] | None = None
    mu: Float[Tensor, " I"] | None = None
    log_var: Float[Tensor, " I"] | None = None
    nll_weight: Float[Tensor, " I"] | None = None

    def __post_init__(self) -> None:
        _same_presence(log10_gsd=self.log10_gsd, mu=self.mu, log_var=self.log_var, nll_weight=self.nll_weight)
        if not len(self.branches) == len(self.predictions) == self.correct_B.numel():
            raise ConfigError(
                "an EvalReport needs one verdict and one prediction per branch",
                field="correct_B",
                value=(len(self.branches), self.correct_B.numel(), len(self.predictions)),
                remedy="give None as the prediction of a branch that was not generated",
            )


def merge_reports(parts: Sequence[EvalReport]) -> EvalReport:
    """One report of several micro-batches; `branches[b].tree` is renumbered into the merged trees.

    No parts at all (a rank whose micro-batches were all fillers) give the empty report, with nothing to count.
    """
    offsets = list(itertools.accumulate((len(p.trees) for p in parts), initial=0))
    return EvalReport(
        vlm_loss_sum=torch.stack([p.vlm_loss_sum for p in parts]).sum() if parts else torch.zeros(()),
        n_supervised=torch.stack([p.n_supervised for p in parts]).sum() if parts else torch.zeros((), dtype=torch.long),
        trees=tuple(tree for part in parts for tree in part.trees),
        branches=tuple(
            replace(branch, tree=branch.tree + offset)
            for part, offset in zip(parts, offsets, strict=False)
            for branch in part.branches
        ),
        correct_B=torch.cat([p.correct_B for p in parts]) if parts else torch.zeros(0, dtype=torch.bool),
        predictions=tuple(text for part in parts for text in part.predictions),
        log10_gsd=_joined([p.log10_gsd for p in parts]),
        mu=_joined([p.mu for p in parts]),
        log_var=_joined([p.log_var for p in parts]),
        nll_weight=_joined([p.nll_weight for p in parts]),
    )


def _joined(vectors: Sequence[Tensor | None]) -> Tensor | None:
    present = [v for v in vectors if v is not None]
    return torch.cat(present) if present else None


def _same_presence(**vectors: Tensor | None) -> None:
    present = [name for name, value in vectors.items() if value is not None]
    if present and len(present) != len(vectors):
        raise ConfigError(
            "a report carries either all of SSE-U's vectors or none",
            field="report",
            value=present,
            remedy=f"give {', '.join(vectors)} together, or leave all None (stage 1)",
        )
