"""Greedy decoding of all questions of all images at once.

    prefill   one packed pass over the trees: every prefix once, every prompt once     -> keys and values, first tokens
    decode    one token per branch and step, all branches as one row [1, B]            -> next tokens, until all ended

Equal to `generate(do_sample=False)` run question by question, because greedy decoding reads only logits, and a
branch sees what it would see alone. What is saved: the vision tower and the prefix run once per image instead of once
per question, and prefix keys are stored once per tree; a branch owns only its own short keys. The price: a branch that
has ended is carried along until the last one ends (answers are a few tokens; the longest allowed is stated).

Legend: T tokens, G trees, B branches, P longest prefix, K most branches of a tree, C slots of a
branch's cache (longest prompt plus new tokens), H query heads, J key heads, R = H / J, D head dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scaleearth_pl.core.batch import IGNORE, TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.model.shared_image import hidden_states
from scaleearth_pl.model.tree_attention import join, tree_attention
from scaleearth_pl.model.tree_layout import Runs, TreeLayout


def _keep_rows(row_of_token: Tensor, kept_K: Tensor | None = None) -> None:
    """A backbone without adapters needs no rows."""


def keep_quiet(token_B: Tensor) -> None:
    """Nobody listens."""


@torch.no_grad()
def greedy(
    model: Any,
    batch: TreeBatch,
    features: Any,
    *,
    max_new_tokens: int,
    eos: int | None = None,
    set_rows: Callable[[Tensor, Tensor | None], None] = _keep_rows,
    on_tokens: Callable[[Tensor], None] = keep_quiet,
) -> list[list[int]]:
    """The most likely continuation of every branch, in the order of the batch.

    Args:
        model: a `Qwen3VLForConditionalGeneration` with tree attention.
        batch: branches are *prompts* (see `prompts_only`); targets are not looked at.
        features: what `encode_images` returned for this batch.
        max_new_tokens: at most so many per branch.
        eos: token that ends an answer; None takes the model's own. It is not part of the answer.
        set_rows: told the tree of each token before every forward, shaped like the layers' input: [1, T], then [1, B];
            and the places of the tokens that the last block keeps, or None.
        on_tokens: given every step's tokens [B] as they come, also those of branches that have ended; for streaming.

    Raises:
        ConfigError: no new tokens allowed, or no token to end at.
    """
    eos = model.generation_config.eos_token_id if eos is None else eos
    if max_new_tokens < 1 or not isinstance(eos, int):
        value = (max_new_tokens, eos)
        raise ConfigError("nothing to generate, or no end", field="max_new_tokens, eos", value=value, remedy="set both")
    layout = TreeLayout.from_batch(batch)
    if not layout.n_branches:
        return []
    cache = _Cache(max_new_tokens)
    last_B = batch.branch_start_B + batch.branch_len_B - 1
    set_rows(batch.tree_of_token_T[None], last_B)
    hidden_BW = hidden_states(model, batch, features, layout, cache=cache, kept_K=last_B)
    token_B = model.lm_head(hidden_BW).argmax(-1)
    position_3B = batch.position_ids_3T.index_select(1, last_B)
    set_rows(batch.tree_of_branch_B[None], None)
    tokens, ended_B = [token_B], token_B == eos
    on_tokens(token_B)
    for step in range(1, max_new_tokens):
        if bool(ended_B.all()):
            break
        token_B = _decode(model, token_B, position_3B + step, layout, cache)
        on_tokens(token_B)
        tokens.append(token_B)
        ended_B |= token_B == eos
    return [_until(row, eos) for row in torch.stack(tokens, dim=1).tolist()]


def _decode(model: Any, token_B: Tensor, position_3B: Tensor, layout: TreeLayout, cache: "_Cache") -> Tensor:
    """One forward of one token per branch; returns the next token of each."""
    cache.advance()
    output = model.model.language_model(
        input_ids=token_B[None],
        position_ids=position_3B[:, None],
        attention_mask=None,
        use_cache=False,
        tree_layout=layout,
        tree_cache=cache,
    )
    next_B: Tensor = model.lm_head(output.last_hidden_state[0]).argmax(-1)
    return next_B


def _until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos)] if eos in row else row


@dataclass(kw_only=True)
class _LayerKeys:
    """Keys and values of one layer: [G, P, J, D] of the prefixes, [B, C, J, D] of the branches."""

    prefix: tuple[Tensor, Tensor]
    branch: tuple[Tensor, Tensor]


class _Cache:
    """Stands between each layer and its attention (`shared_image.LayerCache`): fills in the prefill, then grows."""

    def __init__(self, max_new_tokens: int) -> None:
        self.max_new_tokens, self.step = max_new_tokens, 0
        self._layers: dict[int, _LayerKeys] = {}

    def advance(self) -> None:
        """Announces the next decoding step."""
        self.step += 1

    def attend(
        self, layer: int, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: TreeLayout, scale: float
    ) -> Tensor:
        """Attention output [T, H, D] in the prefill, [B, H, D] in decoding."""
        if self.step == 0:
            self._layers[layer] = self._fill(k_TJD, v_TJD, layout)
            return tree_attention(q_THD, k_TJD, v_TJD, layout, scale=scale)
        keys = self._layers[layer]
        slot_B = layout.branch_len_B + self.step - 1
        branch_B = torch.arange(layout.n_branches, device=slot_B.device)
        for store_BCJD, new_BJD in zip(keys.branch, (k_TJD, v_TJD), strict=True):
            store_BCJD[branch_B, slot_B] = new_BJD
        return _decode_attention(q_THD, keys, layout, slot_B, scale)

    def _fill(self, k_TJD: Tensor, v_TJD: Tensor, layout: TreeLayout) -> _LayerKeys:
        prefix = tuple(_rectangle(x, layout.prefixes, extra=0) for x in (k_TJD, v_TJD))
        branch = tuple(_rectangle(x, layout.branches, extra=self.max_new_tokens - 1) for x in (k_TJD, v_TJD))
        return _LayerKeys(prefix=(prefix[0], prefix[1]), branch=(branch[0], branch[1]))


def _rectangle(x_TJD: Tensor, runs: Runs, *, extra: int) -> Tensor:
    """The rows of each run in slots [N, max_len + extra, J, D]; the extra slots are zero."""
    slots = x_TJD.index_select(0, runs.slot_rows_S).view(runs.n_runs, runs.max_len, *x_TJD.shape[1:])
    return torch.nn.functional.pad(slots, (0, 0, 0, 0, 0, extra)) if extra else slots


def _decode_attention(q_BHD: Tensor, keys: _LayerKeys, layout: TreeLayout, slot_B: Tensor, scale: float) -> Tensor:
    """One query per branch over [its prefix; its own keys up to and including `slot_B`].

    The queries of a tree meet its prefix together, K x H/J rows per key head, so that the prefix is never copied.
    """
    n_branches, n_heads, dim = q_BHD.shape
    (prefix_k, prefix_v), (own_k, own_v) = keys.prefix, keys.branch
    n_trees, _, n_keys, _ = prefix_k.shape
    q_BJRD = q_BHD.reshape(n_branches, n_keys, n_heads // n_keys, dim) * scale
    q_GKJRD = q_BJRD.index_select(0, layout.seats.slot_rows_S).view(n_trees, -1, *q_BJRD.shape[1:])
    q_GJMD = q_GKJRD.transpose(1, 2).flatten(2, 3)
    out_GJMD, lse_GJM = _attend(q_GJMD, prefix_k, prefix_v, ~layout.prefix_valid_GP)
    own = _attend(q_BJRD, own_k, own_v, torch.arange(own_k.shape[1], device=slot_B.device) > slot_B[:, None])
    out: Tensor = join(_to_branches(out_GJMD, layout, q_BJRD), _to_branches(lse_GJM, layout, q_BJRD), *own)[0]
    return out.reshape(n_branches, n_heads, dim)


def _attend(q_NJMD: Tensor, k_NSJD: Tensor, v_NSJD: Tensor, hidden_NS: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [N, J, M, D] and log-sum-exp [N, J, M] of scaled queries, blind to hidden keys; softmax in fp32."""
    scores = (q_NJMD @ k_NSJD.permute(0, 2, 3, 1)).float().masked_fill(hidden_NS[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().to(v_NSJD.dtype)
    return weights @ v_NSJD.transpose(1, 2), lse


def _to_branches(x_GJM: Tensor, layout: TreeLayout, q_BJRD: Tensor) -> Tensor:
    """Seats of the trees [G, J, K x R, ...] back to branches [B, J, R, ...]."""
    n_groups = q_BJRD.shape[2]
    seats: Tensor = x_GJM.unflatten(2, (-1, n_groups)).transpose(1, 2).flatten(0, 1)
    return seats.index_select(0, layout.seats.slot_of_R)


def prompts_only(batch: TreeBatch) -> TreeBatch:
    """The same trees, every branch cut after its prompt: its first supervised position is its last token.

    A branch without supervision is a prompt already.
    """
    supervised_T = batch.supervised_T.long()
    before_T = supervised_T.cumsum(0) - supervised_T
    keep_T = torch.ones_like(batch.supervised_T)
    for start, length in zip(batch.branch_start_B.tolist(), batch.branch_len_B.tolist(), strict=True):
        keep_T[start : start + length] = before_T[start : start + length] == before_T[start]
    place_T = keep_T.long().cumsum(0) - 1
    kept_T1 = torch.nn.functional.pad(keep_T.long().cumsum(0), (1, 0))
    branch_len_B = kept_T1[batch.branch_start_B + batch.branch_len_B] - kept_T1[batch.branch_start_B]
    return replace(
        batch,
        input_ids_T=batch.input_ids_T[keep_T],
        target_ids_T=torch.full_like(batch.target_ids_T[keep_T], IGNORE),
        position_ids_3T=batch.position_ids_3T[:, keep_T],
        tree_of_token_T=batch.tree_of_token_T[keep_T],
        prefix_start_G=place_T[batch.prefix_start_G],
        branch_start_B=place_T[batch.branch_start_B],
        branch_len_B=branch_len_B,
        max_branch_len=int(branch_len_B.max()) if len(branch_len_B) else 0,
    )
