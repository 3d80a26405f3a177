"""Parameter groups, schedule and clipping: each group has a name, a learning rate and a norm of its own.

Adapters, thresholds and SSE-U are clipped separately, so that a spike in one does not shrink the step of another (one
global norm would let SSE-U's early NLL throttle the adapters). Clipping is ours, the paper plots a gradient norm; the
schedule is the paper's: linear warm-up, then cosine, one factor for all groups.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from scaleearth_pl.core.errors import ConfigError, TargetModuleError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Args:
        lr: peak learning rate of groups that have no factor of their own.
        lr_factors: multiplies `lr` for a group: `{"thresholds": 3.0, "sse_u": 1.0}`.
        weight_decay: decoupled decay; never applied to thresholds, norms, biases and other vectors.
        betas: Adam's.
        warmup_share: share of all steps spent in linear warm-up.
        final_lr_share: the cosine ends at this share of the peak.
        clip_norm: largest gradient norm, per group.
    """

    lr: float = 1e-4
    lr_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_share: float = 0.03
    final_lr_share: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("lr", 0, 1), ("warmup_share", -1e-9, 1), ("final_lr_share", -1e-9, 1)):
            value = getattr(self, name)
            if not low < value <= high:
                raise ConfigError("out of range", field=f"optim.{name}", value=value, remedy=f"use ({low:g}, {high}]")
        if self.clip_norm <= 0:
            raise ConfigError("must be positive", field="optim.clip_norm", value=self.clip_norm)


def parameter_groups(config: OptimConfig, named: Mapping[str, Iterable[nn.Parameter]]) -> list[dict[str, object]]:
    """Optimizer groups from named sets of trainable parameters; vectors and scalars get no weight decay.

    A name without parameters is a group that this variant of the model leaves out; its factor is then not used.

    Raises:
        ConfigError: a factor is given for a group that does not exist.
        TargetModuleError: nothing in a group is trainable.
    """
    unknown = sorted(set(config.lr_factors) - set(named))
    if unknown:
        raise ConfigError(
            "learning-rate factor for an unknown group",
            field="optim.lr_factors",
            value=unknown[0],
            remedy=f"groups here are {sorted(named)}",
        )
    groups: list[dict[str, object]] = []
    for name, parameters in named.items():
        unique = dict.fromkeys(parameters)
        trainable = [p for p in unique if p.requires_grad]
        if unique and not trainable:
            raise TargetModuleError("parameter group has nothing to train", field=name)
        for members in ([p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim < 2]):
            if members:
                groups.append({"params": members, "name": name, **_stated(config, name, members[0])})
    return groups


def _stated(config: OptimConfig, name: str, member: nn.Parameter) -> dict[str, float]:
    """Peak learning rate and weight decay of a group of that name; vectors, thresholds among them, do not decay."""
    lr = config.lr * config.lr_factors.get(name, 1.0)
    return {"lr": lr, "weight_decay": config.weight_decay if member.ndim > 1 else 0.0}


def warmup_cosine(step: int, *, total_steps: int, warmup_share: float, final_lr_share: float) -> float:
    """Factor on the peak learning rate at `step` (0-based): linear from 1/warm-up to 1, then half a cosine."""
    warmup = max(1, round(warmup_share * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return final_lr_share + (1 - final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    config: OptimConfig, named: Mapping[str, Iterable[nn.Parameter]], total_steps: int
) -> tuple[AdamW, LambdaLR]:
    """AdamW over the named groups and its schedule, to be stepped once per optimizer step."""
    optimizer = AdamW(parameter_groups(config, named), lr=config.lr, betas=config.betas, fused=True)
    schedule = LambdaLR(
        optimizer,
        lambda step: warmup_cosine(
            step, total_steps=total_steps, warmup_share=config.warmup_share, final_lr_share=config.final_lr_share
        ),
    )
    return optimizer, schedule


def restate(config: OptimConfig, optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
    """Lets `config` and the schedule's length speak again after a checkpoint has restored its own, moments apart.

    Where both are those that wrote the checkpoint, nothing changes, to the bit.
    """
    for number, group in enumerate(optimizer.param_groups):
        stated = _stated(config, str(group["name"]), group["params"][0])
        schedule.base_lrs[number] = group["initial_lr"] = stated["lr"]
        group["lr"] = stated["lr"] * schedule.lr_lambdas[number](schedule.last_epoch)
        group["weight_decay"], group["betas"] = stated["weight_decay"], config.betas


def clip_groups(optimizer: torch.optim.Optimizer, clip_norm: float) -> dict[str, Tensor]:
    """Clips each named group to `clip_norm`; returns the norms before clipping. Never synchronises with the host.

    Under FSDP2 gradients are sharded and so is their norm; it is made whole here (a collective, on every rank).
    """
    norms: dict[str, Tensor] = {}
    for name, parameters in named_members(optimizer).items():
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm).detach()
        norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms


def named_members(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    """Parameters by group name; the decayed and undecayed parts of a group belong together."""
    members: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        members.setdefault(group["name"], []).extend(group["params"])
    return members
