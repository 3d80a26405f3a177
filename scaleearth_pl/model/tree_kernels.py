"""Attention of runs to runs that also returns the log-sum-exp, and its backward given any output and log-sum-exp.

For queries q of one run and keys k, values v of its partner run:

    s = scale * q k^T,   lse = log sum exp s,   out = exp(s - lse) v
    p = exp(s - lse),   ds = p * (g v^T - sum(g * out)),   dq = scale * ds k,   dk = scale * ds^T q,   dv = p^T g

Flash attention kernels compute the second line, for a gradient g, from (out, lse) as *given*. If a query attends to
several parts of keys, and out and lse are those of the union, then each part's backward is the exact gradient of the
union restricted to that part: p is the probability in the full softmax. `tree_attention` rests on this; no matrix of
probabilities is ever stored.

Two implementations by device: torch's CPU flash kernel (fp64 to bf16), and runs without padding through the CUDA flash
kernel (bf16, fp16). Both take grouped queries as they are: keys and values are never repeated.
The operators are private to torch; `tests/model/test_shared_image.py` pins what we rely on.

Legend: T tokens, R query rows, K key rows, N runs, S slots per run, H query heads, J key heads, D head dimension.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scaleearth_pl.model.tree_layout import Runs

_ATEN = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What the backward of every part reads: whole streams [T, heads, D] and the log-sum-exp [T, H] of the union."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """N query runs and the key runs of the same index; `causal` needs both to be the same runs."""

    queries: Runs
    keys: Runs
    causal: bool


class Kernel(Protocol):
    """One part of an attention over trees; tensors come in as whole streams and leave as the rows of the part."""

    def forward(self, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """Out [R, H, D] and log-sum-exp [R, H] of the query rows."""
        ...

    def backward(self, streams: Streams, part: Part, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients dq [R, H, D], dk [K, J, D], dv [K, J, D]; see the module's docstring."""
        ...


def kernel_for(q_THD: Tensor) -> Kernel | None:
    """The kernel for this device and precision, or None where torch has none that returns a log-sum-exp."""
    if q_THD.device.type == "cpu":
        return CpuFlash()
    half = q_THD.dtype in (torch.bfloat16, torch.float16)
    if q_THD.device.type == "cuda" and half and q_THD.shape[-1] % 8 == 0 and q_THD.shape[-1] <= 256:
        return VarlenCudaFlash()
    return None


class CpuFlash:
    """`_scaled_dot_product_flash_attention_for_cpu` on rectangles of slots, or run by run where that wastes less.

    Runs over themselves are first sorted into a few rectangles by length: 100 branches of 16 to 33 tokens in half the
    time of one rectangle. (Queries over other keys share their rectangle's height only with as many runs as trees.)

    An empty query slot holds the query of row 0; in the backward its gradient is 0 and its log-sum-exp infinite, so its
    probabilities are 0. An empty key slot is masked by -inf, unless causality already hides it.
    """

    PAIRS_PER_CALL = 20_000
    """A call costs about as much as this many query-key pairs (6 heads of 32, one core: 30 us at 1.7 ns a pair)."""

    def forward(self, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel.forward`."""
        some = [self._forward(q_THD, k_TJD, v_TJD, bucket, scale) for bucket in _buckets(part)]
        if len(some) == 1:
            return some[0]
        out, lse = (torch.cat(x).index_select(0, part.queries.bucket_rows_R) for x in zip(*some, strict=True))
        return out, lse

    def backward(self, streams: Streams, part: Part, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel.backward`."""
        some = [self._backward(streams, bucket, scale) for bucket in _buckets(part)]
        if len(some) == 1:
            return some[0]
        dq, dk, dv = (torch.cat(x).index_select(0, part.queries.bucket_rows_R) for x in zip(*some, strict=True))
        return dq, dk, dv

    def _forward(self, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        if self._run_by_run(part):
            return self._forward_runs(q_THD, k_TJD, v_TJD, part, scale)
        out_NHSD, lse_NHS = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            _pad(q_THD, part.queries),
            _pad(k_TJD, part.keys),
            _pad(v_TJD, part.keys),
            0.0,
            part.causal,
            attn_mask=_key_mask(part, q_THD),
            scale=scale,
        )
        return _unpad(out_NHSD, part.queries), _unpad(lse_NHS, part.queries)

    def _backward(self, streams: Streams, part: Part, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        if self._run_by_run(part):
            return self._backward_runs(streams, part, scale)
        queries, keys = part.queries, part.keys
        dq_NHSD, dk_NJSD, dv_NJSD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            _pad(streams.grad, queries, fill=0.0),
            _pad(streams.q, queries),
            _pad(streams.k, keys),
            _pad(streams.v, keys),
            _pad(streams.out, queries),
            _pad(streams.lse, queries, fill=torch.inf),
            0.0,
            part.causal,
            attn_mask=_key_mask(part, streams.q),
            scale=scale,
        )
        return _unpad(dq_NHSD, queries), _unpad(dk_NJSD, keys), _unpad(dv_NJSD, keys)

    def _run_by_run(self, part: Part) -> bool:
        n, rectangle = part.queries.n_runs, part.queries.max_len * part.keys.max_len
        pairs = sum(a * b for a, b in zip(part.queries.lengths, part.keys.lengths, strict=True))
        return n * rectangle - pairs > self.PAIRS_PER_CALL * n

    def _forward_runs(
        self, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor]:
        outs, lses = [], []
        for q, k, v in zip(
            _split(q_THD, part.queries), _split(k_TJD, part.keys), _split(v_TJD, part.keys), strict=True
        ):
            if q.shape[2]:
                out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, part.causal, scale=scale)
                outs.append(_join(out))
                lses.append(_join(lse))
        return torch.cat(outs), torch.cat(lses)

    def _backward_runs(self, streams: Streams, part: Part, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, grads = part.queries, part.keys, []
        of_queries = [_split(x, queries) for x in (streams.grad, streams.q, streams.out, streams.lse)]
        of_keys = [_split(x, keys) for x in (streams.k, streams.v)]
        for grad, q, out, lse, k, v in zip(*of_queries, *of_keys, strict=True):
            if q.shape[2]:
                run = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad, q, k, v, out, lse, 0.0, part.causal, scale=scale
                )
            else:
                run = (q, torch.zeros_like(k), torch.zeros_like(v))
            grads.append([_join(g) for g in run])
        dq, dk, dv = (torch.cat(g) for g in zip(*grads, strict=True))
        return dq, dk, dv


class VarlenCudaFlash:
    """Runs end to end, no padding, through `_flash_attention_forward` with cumulative lengths."""

    def forward(self, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel.forward`."""
        queries, keys = part.queries, part.keys
        out_RHD, lse_HR, *_ = _ATEN._flash_attention_forward(
            q_THD.index_select(0, queries.rows_R),
            k_TJD.index_select(0, keys.rows_R),
            v_TJD.index_select(0, keys.rows_R),
            queries.cumulative_N1,
            keys.cumulative_N1,
            max(2, queries.max_len),  # 1 would make the kernel take every run for one query, also the empty ones
            keys.max_len,
            0.0,
            part.causal,
            False,
            scale=scale,
        )
        return out_RHD, lse_HR.T

    def backward(self, streams: Streams, part: Part, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel.backward`."""
        queries, keys = part.queries, part.keys
        random_state = torch.zeros(2, dtype=torch.uint64, device=streams.q.device)  # of dropout, which is 0
        unused = torch.empty(0, device=streams.q.device)
        dq_RHD, dk_KJD, dv_KJD = _ATEN._flash_attention_backward(
            streams.grad.index_select(0, queries.rows_R),
            streams.q.index_select(0, queries.rows_R),
            streams.k.index_select(0, keys.rows_R),
            streams.v.index_select(0, keys.rows_R),
            streams.out.index_select(0, queries.rows_R),
            streams.lse.T.index_select(1, queries.rows_R),
            queries.cumulative_N1,
            keys.cumulative_N1,
            queries.max_len,
            keys.max_len,
            0.0,
            part.causal,
            random_state,
            unused,
            scale=scale,
        )
        return dq_RHD, dk_KJD, dv_KJD


def _buckets(part: Part) -> list[Part]:
    """The parts that a causal part falls into by length; itself where it is best left whole."""
    return [Part(queries=runs, keys=runs, causal=True) for runs in part.queries.buckets] if part.causal else [part]


def _pad(x_TH: Tensor, runs: Runs, *, fill: float | None = None) -> Tensor:
    """Rows of the stream [T, H, ...] in slots [N, H, S, ...]; empty slots hold `fill`, or row 0 if that is None."""
    slots = x_TH.index_select(0, runs.slot_rows_S)
    if fill is not None and runs.ragged:
        slots.index_fill_(0, runs.empty_E, fill)
    return slots.view(runs.n_runs, runs.max_len, *x_TH.shape[1:]).transpose(1, 2)


def _unpad(x_NHS: Tensor, runs: Runs) -> Tensor:
    """Slots [N, H, S, ...] back to rows [R, H, ...]."""
    return x_NHS.transpose(1, 2).flatten(0, 1).index_select(0, runs.slot_of_R)


def _split(x_TH: Tensor, runs: Runs) -> list[Tensor]:
    """Rows of the stream [T, H, ...] as one view [1, H, length, ...] per run."""
    rows = x_TH.index_select(0, runs.rows_R)
    return [run[None].transpose(1, 2) for run in rows.split(runs.lengths)]


def _join(x_1HS: Tensor) -> Tensor:
    """[1, H, length, ...] -> [length, H, ...]."""
    return x_1HS[0].transpose(0, 1)


def _key_mask(part: Part, like: Tensor) -> Tensor | None:
    """0 for keys, -inf for empty slots, [N, 1, 1, S]; None where nothing needs hiding."""
    keys = part.keys
    if part.causal or not keys.ragged:
        return None
    mask_S = like.new_zeros(keys.n_runs * keys.max_len).index_fill_(0, keys.empty_E, -torch.inf)
    return mask_S.view(keys.n_runs, 1, 1, keys.max_len)
