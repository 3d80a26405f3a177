"""The scale of the micro-batch under way: how the GSD of a tree reaches every adapted layer, and what that costs.

    gates of all M layers  ->  h_MGr, once a micro-batch  ->  each layer:  low_Tr * h_Gr[tree of each token]

The backbone's `forward` has no room for a GSD, and a context that closes when `forward` returns would be closed when
activation checkpointing runs a layer again inside `backward`: non-reentrant checkpointing then raises, reentrant one
silently loses half the gradient. So the state is a plain object that stays as it is until the next micro-batch.

Price over plain LoRA, forward and backward: two gathers and one product of T x r numbers, and a sum over each tree's
tokens, which is one product with the G x T matrix of who belongs to whom (an `index_add` goes token by token: five times
the time on a CPU, colliding atomics on CUDA). The M gates are one stack of G x r numbers, not M small kernels each.

Legend of shape suffixes: T tokens, N tokens of any leading shape, G trees, M gates, r LoRA ranks, K kept tokens.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.model.gate import ContinuousGate, Gate, openness

MAX_TREES_IN_A_PRODUCT = 64
"""Up to so many trees the G x T product is the cheaper sum: 7 to 250 us for 2 to 60 trees, 30 to 120 by `index_add`."""


class ScaleState:
    """Shared by all layers of a model; a plain object, so no module owns it.

    It must stay as it is from a forward until the end of that forward's backward, so `set` is called once per
    micro-batch, after the last optimizer step, and nothing ever clears it.
    """

    def __init__(self) -> None:
        self._gates: list[Gate] = []
        self._scaling: float | None = None
        self._h_Gr: dict[Gate, Tensor] = {}
        self._n_trees = 0
        self._rows: list[_Rows] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is pickled, has been told no scale: graphs cannot travel."""
        return ScaleState().__dict__ | {"_gates": self._gates, "_scaling": self._scaling}

    def register(self, gate: Gate, scaling: float) -> None:
        """Announces a gate that a layer will ask for; `scaling` (lora_alpha / rank) is one for all layers of a model.

        Raises:
            ConfigError: layers of one model disagree on the scaling.
        """
        if self._scaling not in (None, scaling):
            value = (self._scaling, scaling)
            remedy = "give each model a ScaleState of its own"
            raise ConfigError(
                "two scalings share one ScaleState", field="lora_alpha / rank", value=value, remedy=remedy
            )
        self._scaling = scaling
        if gate not in self._gates:
            self._gates.append(gate)

    def set(
        self,
        log10_gsd_G: Float[Tensor, " G"],
        sigma_G: Float[Tensor, " G"],
        row_of_token: Int[Tensor, "*N"],
        kept_K: Int[Tensor, " K"] | None = None,
    ) -> None:
        """Announces the scale of the next forward, and evaluates all gates at it.

        Args:
            log10_gsd_G: resolved log10 GSD of each tree, log10 metres.
            sigma_G: its deviation in decades.
            row_of_token: tree of each token, shaped like the layers' input without its last axis: [1, T] in training,
                [B, L] in cached decoding. Not looked at when there is one tree.
            kept_K: places of the tokens that the last layer's MLP computes (`surgery.LastLayer`); None for all.
        """
        h_Gr = scaled_openness(self._gates, log10_gsd_G, sigma_G, scaling=self._scaling or 1.0)
        self._h_Gr = dict(zip(self._gates, h_Gr, strict=True))
        self._n_trees = len(log10_gsd_G)
        self.set_rows(row_of_token, kept_K)

    def set_rows(self, row_of_token: Int[Tensor, "*N"], kept_K: Int[Tensor, " K"] | None = None) -> None:
        """Keeps the scales, but for other tokens of the same trees: the next step of cached decoding."""
        kept = [] if kept_K is None else [row_of_token.index_select(-1, kept_K)]
        self._rows = [_Rows(row, self._n_trees) for row in (row_of_token, *kept)]

    def apply(self, gate: Gate, low: Float[Tensor, "*N r"]) -> Float[Tensor, "*N r"]:
        """Product scaling * h(s) * low, each token by its tree's row of `gate`.

        Raises:
            GsdError: no scale was set, or one that belongs to other tokens.
        """
        if gate not in self._h_Gr:
            raise GsdError("the gate was not told a GSD", remedy="call ScaleState.set before the backbone's forward")
        h_Gr = self._h_Gr[gate]
        if self._n_trees == 1:
            return low * h_Gr[0].to(low.dtype)
        gated: Tensor = _GateTokens.apply(low, h_Gr, self._rows_of(low))
        return gated

    def _rows_of(self, low: Tensor) -> "_Rows":
        """The tree of each of these tokens: all of them, or those that the last layer kept."""
        for rows in self._rows:
            if rows.of_token.shape == low.shape[:-1]:
                return rows
        raise GsdError(
            f"the scale was set for tokens of shape {[tuple(rows.of_token.shape) for rows in self._rows]}",
            field="row_of_token",
            value=tuple(low.shape[:-1]),
            remedy="call ScaleState.set with the rows of this forward's tokens",
        )


class _Rows:
    """The tree of each token, and the two forms in which layers want it, made once for all layers."""

    def __init__(self, of_token: Int[Tensor, "*N"], n_trees: int) -> None:
        self.of_token, self.n_trees = of_token, n_trees
        self.flat_T = of_token.flatten()

    @cached_property
    def members_GT(self) -> Float[Tensor, "G T"]:
        """1 where a token belongs to a tree."""
        tree_G1 = torch.arange(self.n_trees, device=self.flat_T.device)[:, None]
        return (tree_G1 == self.flat_T).float()

    def sum_by_tree(self, x_Tr: Tensor) -> Tensor:
        """Sum over each tree's tokens [G, r], in float32: thousands of bfloat16 terms are not the thresholds' gradient."""
        if self.n_trees > MAX_TREES_IN_A_PRODUCT:
            return x_Tr.new_zeros(self.n_trees, x_Tr.shape[1], dtype=torch.float32).index_add_(
                0, self.flat_T, x_Tr.float()
            )
        total_Gr: Tensor = self.members_GT @ x_Tr.float()
        return total_Gr


class _GateTokens(torch.autograd.Function):
    """Product low * h[tree of each token], and its gradients.

    The T x r factor is gathered twice rather than kept: a gather costs less than memory that the backward must find.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, h_Gr: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(low, h_Gr)
        ctx.rows = rows
        return _gathered(h_Gr, rows, low).mul_(low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, h_Gr = ctx.saved_tensors
        grad_h = ctx.rows.sum_by_tree((grad * low).flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return _gathered(h_Gr, ctx.rows, low).mul_(grad), grad_h, None


def _gathered(h_Gr: Tensor, rows: _Rows, like: Tensor) -> Tensor:
    """The row of each token; a new tensor, which the caller may multiply in place."""
    factor: Tensor = h_Gr.index_select(0, rows.flat_T).view_as(like).to(like.dtype)
    return factor


def scaled_openness(
    gates: Sequence[Gate], log10_gsd_G: Float[Tensor, " G"], sigma_G: Float[Tensor, " G"], *, scaling: float
) -> tuple[Float[Tensor, "G r"], ...]:
    """Openness times `scaling` of each gate; one stack for all, where they are continuous and alike.

    With its graph even under `no_grad`: evaluating without one and training on the result would lose the thresholds'
    gradient without a word. (Under inference mode torch itself refuses the second.)
    """
    with torch.set_grad_enabled(not torch.is_inference_mode_enabled()):
        if not gates or not all(type(gate) is ContinuousGate and gate.config == gates[0].config for gate in gates):
            return tuple(scaling * gate(log10_gsd_G, sigma_G) for gate in gates)
        tau_Mr = torch.stack([gate.get_parameter("thresholds") for gate in gates])
        if not gates[0].config.learn_sharpness:
            sharpness = gates[0].config.sharpness
            stack = _Repeatable.apply(
                lambda *x: scaling * openness(x[0], sharpness, *x[1:]), tau_Mr, log10_gsd_G, sigma_G
            )
        else:
            log_M1 = torch.stack([gate.get_parameter("log_sharpness") for gate in gates])[:, None]
            inputs = (tau_Mr, log_M1, log10_gsd_G, sigma_G)
            stack = _Repeatable.apply(lambda *x: scaling * openness(x[0], x[1].exp(), *x[2:]), *inputs)
        h_Gr: tuple[Tensor, ...] = stack.unbind()
        return h_Gr


class _Repeatable(torch.autograd.Function):
    """A small function whose backward may run many times: reentrant checkpointing asks once for every block.

    Autograd frees what a function saved after its first backward; here it stays until the output is gone.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            ctx.out = function(*ctx.leaves)
        out: Tensor = ctx.out.detach()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        learnt = [x for x in ctx.leaves if x.requires_grad]
        found = iter(torch.autograd.grad(ctx.out, learnt, grad, retain_graph=True))
        return None, *(next(found) if x.requires_grad else None for x in ctx.leaves)
