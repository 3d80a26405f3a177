"""What all ranks must agree on before the first step: one budget of tokens, one plan; and that each has one.

Nothing else is exchanged: each rank computes the plan by itself, from its own copy of the corpus. Where the copies differ (a
member rotted on one node's disk, so that its sample was left out there), ranks would read different orders, in silence,
and wait for each other where their numbers of micro-batches differ.
"""

from typing import Any, Literal

import lightning.pytorch as pl
import torch

from scaleearth_pl.core.errors import ScaleEarthError, ShardError
from scaleearth_pl.data.packing import auto_token_budget


def agreed_budget(trainer: pl.Trainer | None, micro_token_budget: int | Literal["auto"]) -> int:
    """Tokens of a micro-batch: as stated, or the smallest answer of any rank to "auto", so that all run equally many."""
    if micro_token_budget != "auto":
        return int(micro_token_budget)
    device = device_of(trainer)
    budget = auto_token_budget(device)
    if trainer is None or trainer.world_size == 1:
        return budget
    return int(trainer.strategy.reduce(torch.tensor(budget, device=device), reduce_op="min"))


def device_of(trainer: pl.Trainer | None) -> torch.device:
    """Where batches go: this rank's device, or the host where nobody trains."""
    return torch.device("cpu") if trainer is None else trainer.strategy.root_device


def raise_together(trainer: pl.Trainer | None, problem: ScaleEarthError | None, *, elsewhere: str) -> None:
    """Raises this rank's `problem`; and a `ShardError`, `elsewhere`, where only another has one.

    Without it the others would wait in vain in their next collective. A problem that rank 0 has in the same words and on
    the same machine is marked as said.
    """
    if trainer is None or trainer.world_size == 1:
        if problem is not None:
            raise problem
        return
    if trainer.strategy.reduce_boolean_decision(problem is None, all=True):
        return
    first = trainer.strategy.broadcast(str(problem))
    if problem is None:
        raise ShardError(elsewhere, remedy="its own message says why")
    problem.said = first == str(problem) and trainer.node_rank == 0 and not trainer.is_global_zero
    raise problem


def refuse_different_plans(trainer: pl.Trainer | None, facts: dict[str, Any]) -> None:
    """`ShardError`, on every rank, unless all have these facts of their plans (by name) in common."""
    if trainer is None or trainer.world_size == 1:
        return
    first: dict[str, Any] = trainer.strategy.broadcast(facts)
    if not trainer.strategy.reduce_boolean_decision(facts == first, all=True):
        differing = next((name for name in facts if facts[name] != first.get(name)), None)
        raise ShardError(
            "ranks would read different plans",
            field=differing,
            value=(first.get(differing), facts.get(differing)) if differing else "differs on another rank",
            remedy="give every node the same shards, and delete the caches of token lengths",
        )
