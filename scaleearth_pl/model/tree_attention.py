"""Attention over trees of one image prefix and its question branches: exact, and far cheaper than a dense mask.

    prefix token   sees   its own prefix, causally
    branch token   sees   the whole prefix of its tree  and  its own branch, causally (never a sibling)

A dense mask over T tokens spends T^2 on pairs of which all but a few per cent are hidden. Two exact forms avoid that:

- **merged** (the identity of online softmax, Milakov and Gimelshein 2018): all branch tokens of a tree query the prefix
  *in one piece*, without copying it, each branch queries itself, the two answers are joined by their log-sum-exps,
  out = sum_i exp(lse_i - lse) out_i with lse = log sum_i exp lse_i. The backward of each part, given the joined (out,
  lse), is exact (`tree_kernels`). Saved for backward: q, k, v, out, lse; nothing is quadratic.
- **copied**: every branch gets a padded copy of its prefix keys and one masked call. It needs nothing but torch's
  public `scaled_dot_product_attention`, at the price of B x (P + L) keys.

Measured (one CPU core, fp32, 6 heads of 32, forward + backward, ms a layer, merged against copied): 100 branches of 22
tokens on a prefix of 260: 23 / 64; 2 x 25 branches on 1,028: 65 / 148; one branch per tree, prefix 260: 19 / 21; 32 x 8
branches on a prefix of 13: 30 / 28. So `auto` is merged wherever a kernel returns the log-sum-exp, and copied elsewhere
(CUDA in fp32).

Legend: T tokens, G trees, B branches, P longest prefix, L longest branch, R rows of branches, H query heads, J key
heads, D head dimension.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as tf
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.tree_kernels import Kernel, Part, Streams, kernel_for
from scaleearth_pl.model.tree_layout import TreeLayout

Form = Literal["auto", "merged", "copied"]


def tree_attention(
    q_THD: Float[Tensor, "T H D"],
    k_TJD: Float[Tensor, "T J D"],
    v_TJD: Float[Tensor, "T J D"],
    layout: TreeLayout,
    *,
    scale: float,
    form: Form = "auto",
) -> Float[Tensor, "T H D"]:
    """Attention of every token to what its tree lets it see; heads of q come in groups of H / J per head of k.

    Args:
        q_THD: queries, rotated.
        k_TJD: keys, rotated.
        v_TJD: values; their precision is that of the result (under autocast q and k arrive in fp32).
        layout: the tables of this micro-batch, on the same device.
        scale: factor of the scores, usually D ** -0.5.
        form: `auto` chooses by device and precision: see above.

    Raises:
        ConfigError: form "merged" where torch has no kernel that returns a log-sum-exp (CUDA in fp32).
    """
    q_THD, k_TJD = q_THD.to(v_TJD.dtype), k_TJD.to(v_TJD.dtype)
    kernel = kernel_for(q_THD)
    if form == "copied" or (form == "auto" and kernel is None):
        return _copied(q_THD, k_TJD, v_TJD, layout, scale)
    if kernel is None:
        value = f"{q_THD.device.type}, {q_THD.dtype}, head dimension {q_THD.shape[-1]}"
        raise ConfigError("no kernel returns a log-sum-exp here", field="form", value=value, remedy="use 'auto'")
    out: Tensor = _Merged.apply(q_THD, k_TJD, v_TJD, layout, kernel, scale)
    return out


class _Merged(torch.autograd.Function):
    """The merged form with its exact backward."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: TreeLayout, kernel: Kernel, scale: float
    ) -> Tensor:
        own_prefix, prefix, own_branch = _parts(layout)
        out, lse = kernel.forward(q_THD, k_TJD, v_TJD, own_prefix, scale)
        if layout.n_branches:
            by_tree = kernel.forward(q_THD, k_TJD, v_TJD, prefix, scale)
            joined = join(*by_tree, *kernel.forward(q_THD, k_TJD, v_TJD, own_branch, scale))
            out, lse = torch.cat((out, joined[0])), torch.cat((lse, joined[1]))
        out, lse = out.index_select(0, layout.order_T), lse.index_select(0, layout.order_T)
        ctx.save_for_backward(q_THD, k_TJD, v_TJD, out, lse)
        ctx.layout, ctx.kernel, ctx.scale = layout, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        streams = Streams(grad=grad_THD, q=q, k=k, v=v, out=out, lse=lse)
        grads = _backward_rows(streams, ctx.layout, ctx.kernel, ctx.scale)
        dq, dk, dv = (g.index_select(0, ctx.layout.order_T) for g in grads)
        return dq, dk, dv, None, None, None


def _parts(layout: TreeLayout) -> tuple[Part, Part, Part]:
    """Prefixes over themselves, branches over their prefix, branches over themselves."""
    prefixes, branches = layout.prefixes, layout.branches
    return (
        Part(queries=prefixes, keys=prefixes, causal=True),
        Part(queries=layout.by_tree, keys=prefixes, causal=False),
        Part(queries=branches, keys=branches, causal=True),
    )


def join(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Joins two attention results [R, H, D], [R, H] of the same queries over disjoint keys."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_b = (lse_b - lse).exp()[..., None]
    out = torch.lerp(out_a.to(lse.dtype), out_b.to(lse.dtype), weight_b)
    return out.to(out_a.dtype), lse


def _backward_rows(streams: Streams, layout: TreeLayout, kernel: Kernel, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v in the order [prefix rows, branch rows]."""
    own_prefix, prefix, own_branch = _parts(layout)
    dq, dk, dv = kernel.backward(streams, own_prefix, scale)
    if not layout.n_branches:
        return dq, dk, dv
    dq_cross, dk_cross, dv_cross = kernel.backward(streams, prefix, scale)
    dq_own, dk_own, dv_own = kernel.backward(streams, own_branch, scale)
    return (
        torch.cat((dq, dq_cross.add_(dq_own))),
        torch.cat((dk.add_(dk_cross), dk_own)),
        torch.cat((dv.add_(dv_cross), dv_own)),
    )


def _copied(q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """The copied form; differentiable by autograd alone, on any device and precision."""
    groups = q_THD.shape[1] // k_TJD.shape[1]
    k_THD, v_THD = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k_TJD, v_TJD))
    prefixes, branches = layout.prefixes, layout.branches
    rows_GP = prefixes.slot_rows_S.view(prefixes.n_runs, prefixes.max_len)
    q, k, v = (_gather(x, rows_GP) for x in (q_THD, k_THD, v_THD))
    out = _rows(tf.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), prefixes.slot_of_R)
    if layout.n_branches:
        q = _gather(q_THD, branches.slot_rows_S.view(branches.n_runs, branches.max_len))
        k, v = (_gather(x, layout.copied_rows_BC) for x in (k_THD, v_THD))
        own = tf.scaled_dot_product_attention(q, k, v, attn_mask=layout.copied_mask_B1LC, scale=scale)
        out = torch.cat((out, _rows(own, branches.slot_of_R)))
    return out.index_select(0, layout.order_T)


def _gather(x_THD: Tensor, rows_NS: Tensor) -> Tensor:
    """[T, H, D] -> [N, H, S, D]."""
    return x_THD.index_select(0, rows_NS.flatten()).view(*rows_NS.shape, *x_THD.shape[1:]).transpose(1, 2)


def _rows(x_NHSD: Tensor, slot_of_R: Tensor) -> Tensor:
    """[N, H, S, D] -> [R, H, D]."""
    return x_NHSD.transpose(1, 2).flatten(0, 1).index_select(0, slot_of_R)
