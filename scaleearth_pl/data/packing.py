"""One step's trees to ranks and micro-batches: subdivision that changes neither order nor objective.

The global batch of a step is fixed by the plan. Here it is only cut: to ranks by longest-first greedy (each tree to the
rank with the least work so far, in which visual tokens count for more), then inside a rank sorted by length (less padding
in attention) and filled up to `micro_token_budget`. Loss sums are normalised by the whole step, so any cut gives the same
gradient. All ranks run equally many micro-batches; a rank with fewer pads with weightless ones, which is counted.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError

log = logging.getLogger(__name__)

CPU_TOKEN_BUDGET = 16_384
"""`micro_token_budget: auto` without a GPU: a few hundred MB of activations at tiny size."""

VISION_WORK = 0.15
"""What the vision tower adds to a visual token's work in the LLM: 8B, forward of four patches, 4 of 28.8 GFLOP."""

BYTES_PER_TOKEN = 6.85e6
"""Activations per token of the 8B model in bfloat16, rank 64, checkpointing off: `model/activations.py`, as a test compares.

The model is not yet there when the budget is set. Smaller ones leave room, which costs little.
"""

MicroBatches = tuple[tuple[int, ...], ...]
"""Micro-batches of one rank, each a tuple of positions in the step; an empty tuple is a weightless one."""


def auto_token_budget(device: torch.device) -> int:
    """Micro-batch budget in tokens: a constant on CPU, on CUDA half of the memory that is free on `device` now.

    The free memory differs between ranks and moments, so the caller must share one rank's answer with all.
    """
    if device.type != "cuda":
        return CPU_TOKEN_BUDGET
    free_bytes, _ = torch.cuda.mem_get_info(device)
    budget = int(np.clip(0.5 * free_bytes / BYTES_PER_TOKEN, 2_048, 65_536))
    log.info("micro_token_budget auto: %d tokens (%.1f GiB free)", budget, free_bytes / 2**30)
    return budget


def split_ranks(
    cost_N: NDArray[np.int64], prefix_N: NDArray[np.int64], world_size: int
) -> tuple[NDArray[np.int64], ...]:
    """Positions of the trees of each rank, balanced by work; a pure function of its arguments.

    Args:
        cost_N: tokens of each tree.
        prefix_N: tokens of its prefix, nearly all of them visual.
        world_size: ranks.
    """
    work_N = cost_N + VISION_WORK * prefix_N
    load = np.zeros(world_size)
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for position in np.argsort(-work_N, kind="stable").tolist():
        rank = int(np.argmin(load))
        load[rank] += work_N[position]
        shares[rank].append(position)
    return tuple(np.array(sorted(share), np.int64) for share in shares)


def fill(positions: list[int], cost_N: NDArray[np.int64], budget: int) -> list[tuple[int, ...]]:
    """Cuts a sequence into runs of at most `budget` tokens, in order; a single tree may not exceed it.

    Raises:
        ConfigError: a tree is larger than the budget (the plan checks this before, naming the image).
    """
    batches: list[list[int]] = []
    room = 0
    for position in positions:
        cost = int(cost_N[position])
        if cost > budget:
            raise ConfigError("a tree exceeds the budget", field="micro_token_budget", value=(cost, budget))
        if cost > room:
            batches.append([])
            room = budget
        batches[-1].append(position)
        room -= cost
    return [tuple(batch) for batch in batches]


def pack_step(
    cost_N: NDArray[np.int64],
    prefix_N: NDArray[np.int64],
    branch_N: NDArray[np.int64],
    *,
    world_size: int,
    budget: int,
) -> tuple[MicroBatches, ...]:
    """Micro-batches of every rank for one step, equal in number.

    Args:
        cost_N: tokens of each tree, the reserve for the GSD text included.
        prefix_N: tokens of its prefix.
        branch_N: tokens of its longest branch.
        world_size: ranks.
        budget: tokens that a micro-batch may hold.
    """
    per_rank = []
    for share in split_ranks(cost_N, prefix_N, world_size):
        by_length = share[np.lexsort((share, branch_N[share], prefix_N[share]))]
        per_rank.append(fill(by_length.tolist(), cost_N, budget))
    n_micro = max(1, *(len(batches) for batches in per_rank))
    return tuple(tuple(batches + [()] * (n_micro - len(batches))) for batches in per_rank)


def padded_positions(n_prefixes: int, max_prefix: int, n_branches: int, max_branch: int) -> int:
    """Positions that attention padded to [trees, max_prefix] and [branches, max_branch] computes."""
    return n_prefixes * max_prefix + n_branches * max_branch
