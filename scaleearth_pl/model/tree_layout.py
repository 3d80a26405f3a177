"""Where the tokens of a tree batch lie, as index tables that every layer of one micro-batch shares.

Attention over trees needs three groupings of the same flat stream of T tokens:

    prefixes   one run per tree:    the image prefix               G runs
    by_tree    one run per tree:    all its branches, end to end   G runs   (they query the prefix together)
    branches   one run per branch:  the branch alone               B runs   (it queries itself)

A kernel without padding takes a run list as `rows` and cumulative lengths; one with padding takes `slot_rows`, a
rectangle of N x max_len slots. Both are computed once, on the host, from five short vectors. The price is one copy of
those vectors from the device per micro-batch (none if the batch is still on the host); in return no layer waits for
the device, because every size below is a Python int.

Legend: T tokens, G trees, B branches, N runs, R tokens of the runs, S = N x max_len slots, E empty slots, P longest
prefix, L longest branch, C = P + L.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import ConfigError


def _moved(record: Any, device: torch.device) -> dict[str, Any]:
    """The tensors of a dataclass on another device; the copy is queued, nothing waits."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {k: v.to(device, non_blocking=True) for k, v in values.items() if isinstance(v, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """N runs of consecutive or scattered tokens; `rows_R` are their places in the flat stream, run after run.

    The rectangle has `max_len` slots for each run: `slot_rows_S` is the row that fills each slot (row 0 where it is
    empty), `slot_of_R` the slot of each row, `empty_E` the empty slots.
    """

    rows_R: Int[Tensor, " R"]
    cumulative_N1: Int[Tensor, " N1"]
    slot_rows_S: Int[Tensor, " S"]
    slot_of_R: Int[Tensor, " R"]
    empty_E: Int[Tensor, " E"]
    lengths: tuple[int, ...]
    max_len: int

    @classmethod
    def from_lengths(cls, rows_R: Tensor, length_N: Tensor) -> Self:
        """Runs of the given lengths (host tensors) over `rows_R`, which lists their rows one run after the other."""
        n_runs, max_len = len(length_N), int(length_N.max()) if len(length_N) else 0
        start_N = length_N.cumsum(0) - length_N
        run_R = torch.repeat_interleave(torch.arange(n_runs), length_N)
        slot_of_R = run_R * max_len + torch.arange(len(rows_R)) - start_N[run_R]
        filled_S = torch.zeros(n_runs * max_len, dtype=torch.bool)
        filled_S[slot_of_R] = True
        slot_rows_S = torch.zeros(n_runs * max_len, dtype=torch.long)
        slot_rows_S[slot_of_R] = rows_R
        return cls(
            rows_R=rows_R,
            cumulative_N1=torch.nn.functional.pad(length_N.cumsum(0), (1, 0)).to(torch.int32),
            slot_rows_S=slot_rows_S,
            slot_of_R=slot_of_R,
            empty_E=(~filled_S).nonzero()[:, 0],
            lengths=tuple(length_N.tolist()),
            max_len=max_len,
        )

    @property
    def n_runs(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def ragged(self) -> bool:
        """True if the rectangle has empty slots."""
        return self.empty_E.shape[0] > 0

    @cached_property
    def buckets(self) -> tuple[Self, ...]:
        """The same runs sorted by length into a few rectangles with less padding; only itself where that saves little.

        `bucket_rows_R` finds our rows in those of the buckets end to end.
        """
        order = sorted(range(self.n_runs), key=lambda run: self.lengths[run])
        cuts = _cuts([self.lengths[run] for run in order])
        if len(cuts) == 2:
            return (self,)
        rows = self.rows_R.cpu().split(self.lengths)
        groups = [order[a:b] for a, b in pairwise(cuts)]
        lengths = [torch.tensor([self.lengths[run] for run in group]) for group in groups]
        made = [self.from_lengths(torch.cat([rows[i] for i in g]), n) for g, n in zip(groups, lengths, strict=True)]
        return tuple(bucket.to(self.rows_R.device) for bucket in made)

    @cached_property
    def bucket_rows_R(self) -> Int[Tensor, " R"]:
        """Place of each of our rows in the rows of all buckets."""
        theirs, ours = torch.cat([bucket.rows_R for bucket in self.buckets]).argsort(), self.rows_R.argsort()
        place_R = torch.empty_like(ours)
        place_R[ours] = theirs
        return place_R

    def to(self, device: torch.device) -> Self:
        """The same runs on another device."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True, kw_only=True)
class TreeLayout:
    """All index tables of a micro-batch; build it once by `from_batch` and hand it to every layer.

    `order_T` finds token t in the concatenation of all prefix rows and all branch rows. `seats` groups not tokens but
    branches by tree: its rows are 0 .. B - 1 (decoding runs one token per branch).
    """

    prefixes: Runs
    by_tree: Runs
    branches: Runs
    seats: Runs
    order_T: Int[Tensor, " T"]
    prefix_len_G: Int[Tensor, " G"]
    branch_len_B: Int[Tensor, " B"]
    tree_of_branch_B: Int[Tensor, " B"]

    @classmethod
    def from_batch(cls, batch: TreeBatch) -> Self:
        """Tables for `batch`, on its device.

        Raises:
            ConfigError: a tree without prefix, an empty branch, branches that are not in the order of their trees, or
                tokens that belong to no tree: the batch was not made by our collator.
        """
        device = batch.input_ids_T.device
        n_trees, n_branches = len(batch.prefix_len_G), len(batch.branch_len_B)
        vectors = (batch.prefix_start_G, batch.prefix_len_G, batch.branch_start_B, batch.branch_len_B)
        packed = torch.cat((*vectors, batch.tree_of_branch_B)).to("cpu", torch.long)
        sizes = (n_trees, n_trees, n_branches, n_branches, n_branches)
        p_start_G, p_len_G, b_start_B, b_len_B, tree_B = packed.split(sizes)
        _check(p_len_G, b_len_B, tree_B, n_tokens=len(batch.input_ids_T))
        prefix_rows, branch_rows = _rows(p_start_G, p_len_G), _rows(b_start_B, b_len_B)
        per_tree_G = torch.zeros(n_trees, dtype=torch.long).index_add_(0, tree_B, b_len_B)
        return cls(
            prefixes=Runs.from_lengths(prefix_rows, p_len_G).to(device),
            by_tree=Runs.from_lengths(branch_rows, per_tree_G).to(device),
            branches=Runs.from_lengths(branch_rows, b_len_B).to(device),
            seats=Runs.from_lengths(torch.arange(n_branches), torch.bincount(tree_B, minlength=n_trees)).to(device),
            order_T=torch.cat((prefix_rows, branch_rows)).argsort().to(device, non_blocking=True),
            prefix_len_G=batch.prefix_len_G,
            branch_len_B=batch.branch_len_B,
            tree_of_branch_B=batch.tree_of_branch_B,
        )

    @property
    def n_branches(self) -> int:
        """Number of branches of all trees."""
        return self.branches.n_runs

    @cached_property
    def prefix_valid_GP(self) -> Bool[Tensor, "G P"]:
        """True where the slot of a prefix holds a token."""
        return _below(self.prefix_len_G, self.prefixes.max_len)

    @cached_property
    def copied_rows_BC(self) -> Int[Tensor, "B C"]:
        """For each branch the rows of the keys that it may see: a copy of its prefix, then itself (0 where empty)."""
        prefix_GP = self.prefixes.slot_rows_S.view(-1, self.prefixes.max_len)
        own_BL = self.branches.slot_rows_S.view(-1, self.branches.max_len)
        return torch.cat((prefix_GP.index_select(0, self.tree_of_branch_B), own_BL), dim=1)

    @cached_property
    def copied_mask_B1LC(self) -> Bool[Tensor, "B 1 L C"]:
        """What each slot of a branch sees of `copied_rows_BC`: its whole prefix, and itself causally."""
        length = self.branches.max_len
        prefix_BP = self.prefix_valid_GP.index_select(0, self.tree_of_branch_B)
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=prefix_BP.device).tril()
        own_BLL = causal_LL.expand(self.n_branches, -1, -1)
        return torch.cat((prefix_BP[:, None].expand(-1, length, -1), own_BLL), dim=2)[:, None]


MAX_BUCKETS = 4
"""Rectangles that `Runs.buckets` makes at most."""


def _cuts(sorted_lengths: list[int]) -> list[int]:
    """Bounds of buckets of ascending lengths, 0 and N included: cut where that saves most, while it saves a tenth.

    The cost of a bucket is that of its rectangle of query-key pairs, runs x longest^2.
    """
    length_N = torch.tensor(sorted_lengths, dtype=torch.double)
    cuts, cost = [0, len(sorted_lengths)], float(len(sorted_lengths) * length_N[-1:].sum() ** 2)
    while len(cuts) <= MAX_BUCKETS:
        best, saved = 0, 0.1 * cost
        for a, b in pairwise(cuts):
            saving = torch.arange(1, b - a) * (length_N[b - 1] ** 2 - length_N[a : b - 1] ** 2)
            if len(saving) and float(saving.max()) > saved:
                best, saved = a + 1 + int(saving.argmax()), float(saving.max())
        if not best:
            break
        cuts, cost = sorted([*cuts, best]), cost - saved
    return cuts


def _below(length_N: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=length_N.device) < length_N[:, None]


def _rows(start_N: Tensor, length_N: Tensor) -> Tensor:
    """Rows start .. start + length - 1 of every run, one run after the other."""
    before_N = length_N.cumsum(0) - length_N
    return torch.repeat_interleave(start_N - before_N, length_N) + torch.arange(int(length_N.sum()))


def _check(p_len_G: Tensor, b_len_B: Tensor, tree_B: Tensor, *, n_tokens: int) -> None:
    """A batch that breaks these would attend to the wrong tokens without a word."""
    remedy = "make batches with the collator of scaleearth_pl.data"
    if int(p_len_G.min() if len(p_len_G) else 0) < 1:
        raise ConfigError("every tree needs a prefix", field="prefix_len_G", value=p_len_G.tolist(), remedy=remedy)
    if len(b_len_B) and int(b_len_B.min()) < 1:
        raise ConfigError("a branch without tokens", field="branch_len_B", value=b_len_B.tolist(), remedy=remedy)
    if bool((tree_B.diff() < 0).any()):
        problem = "branches must come in the order of their trees"
        raise ConfigError(problem, field="tree_of_branch_B", value=tree_B.tolist(), remedy=remedy)
    covered = int(p_len_G.sum() + b_len_B.sum())
    if covered != n_tokens:
        raise ConfigError("tokens outside of all trees", field="input_ids_T", value=n_tokens - covered, remedy=remedy)
