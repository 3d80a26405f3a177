"""A batch is a flat stream of tokens that holds *trees*: one image prefix and its question branches.

    tree 0                         tree 1
    [image | q1 a1 | q2 a2 | q3 a3][image | q1 a1]          one row of T tokens, no padding
     prefix  branch  branch  branch

Every branch sees its own tree's prefix and itself, never a sibling. One question per image (K = 1) is the case of one
branch per tree. The GSD belongs to the tree. Supervision is stored *aligned*: `target_ids[t]` is the token that
position t must predict, or `IGNORE`.

Legend of shape suffixes: T tokens, G trees, B branches, I images, P patches, D numbers per patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100
"""Target of a position that is not supervised."""


@dataclass(frozen=True, kw_only=True)
class BranchInfo:
    """What evaluation needs to know of a question; no tensor, never leaves the host."""

    tree: int
    qa_id: str
    type: str
    family: str
    question: str
    answer: str
    options: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class TreeInfo:
    """What evaluation needs to know of an image; GSD in metres per pixel *seen by the model*, None if unknown."""

    image_id: str
    place_id: str
    source: str
    gsd_m: float | None
    effective_tier: str
    has_scale_cue: bool | None


@dataclass(frozen=True, kw_only=True)
class TreeBatch:
    """One micro-batch. Every tensor moves by `.to()`; unknown GSDs are NaN with weight 0.

    `nll_weight` is the trust in the GSD divided by the number of parts that the image was split into, so that an image
    counts once. `gate_draw` is uniform in [0, 1), hashed from (image id, epoch): the resolver gates a tree by SSE-U's
    prediction where it lies below the scheduled share. `is_filler` marks a weightless copy: run, never counted.
    """

    input_ids_T: Int[Tensor, " T"]
    target_ids_T: Int[Tensor, " T"]
    position_ids_3T: Int[Tensor, "3 T"]
    tree_of_token_T: Int[Tensor, " T"]
    prefix_start_G: Int[Tensor, " G"]
    prefix_len_G: Int[Tensor, " G"]
    branch_start_B: Int[Tensor, " B"]
    branch_len_B: Int[Tensor, " B"]
    tree_of_branch_B: Int[Tensor, " B"]
    pixel_values_PD: Float[Tensor, "P D"]
    image_grid_I3: Int[Tensor, "I 3"]
    tree_of_image_I: Int[Tensor, " I"]
    log10_gsd_G: Float[Tensor, " G"]
    sigma_log10_G: Float[Tensor, " G"]
    nll_weight_G: Float[Tensor, " G"]
    gate_draw_G: Float[Tensor, " G"]
    max_prefix_len: int
    max_branch_len: int
    trees: tuple[TreeInfo, ...]
    branches: tuple[BranchInfo, ...]
    is_filler: bool = False

    @property
    def supervised_T(self) -> Bool[Tensor, " T"]:
        """True where a position has a target."""
        return self.target_ids_T != IGNORE

    def branch_of(self, place_N: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The branch in which each of these tokens lies; none may lie in a prefix."""
        return torch.searchsorted(self.branch_start_B, place_N, right=True) - 1

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._map(lambda t: t.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for asynchronous copies."""
        return self._map(lambda t: t.pin_memory())

    def weightless(self) -> Self:
        """The same shapes with nothing supervised: what a rank without work runs, so that collectives match."""
        return replace(
            self,
            target_ids_T=torch.full_like(self.target_ids_T, IGNORE),
            nll_weight_G=torch.zeros_like(self.nll_weight_G),
            is_filler=True,
        )


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Everything one rank does in one optimizer step: its micro-batches, equal in number on all ranks.

    The normalisers are host numbers of this rank; the training step adds them up over ranks *before* the first
    backward, which makes loss and gradient independent of ranks and subdivision.
    """

    step: int
    epoch: int
    micro: tuple[TreeBatch, ...]
    n_supervised: int
    nll_weight: float
    n_questions: int
    n_tokens: int
    n_padded: int
    n_dropped_branches: int
    n_holes: int

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """The same step on another device."""
        return replace(self, micro=tuple(m.to(device, non_blocking) for m in self.micro))

    def pin_memory(self) -> Self:
        """The same step in page-locked memory."""
        return replace(self, micro=tuple(m.pin_memory() for m in self.micro))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels from a loader's worker as one buffer, whatever the number of micro-batches.

        Every tensor that is sent by itself costs the worker two open files until it is read, and the reader a handshake:
        thirty micro-batches would exceed the usual limit of 1,024 files, and the worker would fall silent.
        """
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "micro"}
        return _unpacked, (type(self), rest, *_packed(self.micro))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a buffer of bytes."""

    start: int
    n_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def _packed(micro: tuple[TreeBatch, ...]) -> tuple[Tensor, list[dict[str, Any]]]:
    rows = [{f.name: getattr(m, f.name) for f in fields(m)} for m in micro]
    tensors: list[tuple[_Place, Tensor]] = []
    end = 0
    for row in rows:
        for name, value in row.items():
            if isinstance(value, Tensor):
                row[name] = _Place(end, value.nbytes, value.dtype, tuple(value.shape))
                tensors.append((row[name], value))
                end += -(-value.nbytes // 8) * 8  # a view of eight-byte numbers must start at a multiple of eight
    buffer = torch.empty(end, dtype=torch.uint8)
    for place, tensor in tensors:
        _view(buffer, place).copy_(tensor)
    return buffer, rows


def _unpacked(cls: type[StepBatch], rest: dict[str, Any], buffer: Tensor, rows: list[dict[str, Any]]) -> StepBatch:
    values: list[dict[str, Any]] = [
        {name: _view(buffer, v) if isinstance(v, _Place) else v for name, v in row.items()} for row in rows
    ]
    return cls(**rest, micro=tuple(TreeBatch(**row) for row in values))


def _view(buffer: Tensor, place: _Place) -> Tensor:
    return buffer[place.start : place.start + place.n_bytes].view(place.dtype).view(place.shape)
