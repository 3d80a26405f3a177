"""Which scale the gate is told, tree by tree: one batch may hold every policy at once.

    policy      what the gate gets (s = log10 GSD of the pixels the model sees, and its sigma)
    metadata    the file's GSD, or the user's `gsd_m` in its place; an error where neither is known
    predicted   SSE-U's word
    fused       both, as a product of Gaussians; SSE-U's word alone where nothing else is known
    spoof       `spoof_gsd_m`, whatever the truth; sigma 0
    open        s = -infinity: every gate is exactly 1, so this *is* plain LoRA, beside the others in one batch

The arithmetic is the resolver's (`model/resolver.py`), applied once per policy to the trees that ask for it; only
`open` is of this file, because no training or evaluation knows it. The default is `fused` in a model with SSE-U: exact
metadata (0.01 decades) then keep the last word, a nominal product GSD is corrected a little, and a bare photograph is
answered by what the image shows, with that uncertainty in the gate. Both words may be wrong by more than they admit, SSE-U's
above all on imagery unlike its training; a product of Gaussians cannot see that, so `disagreement` says it aloud.

Legend of shape suffixes: G trees.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import check_gsd_m
from scaleearth_pl.model.resolver import Resolver, ResolverConfig

DISAGREEMENT = 3.0
"""Joint sigmas between the file's word and SSE-U's from which they are said to contradict each other: 1 in 370 by chance."""

Policy = Literal["metadata", "predicted", "fused", "spoof", "open"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True, kw_only=True)
class ScaleChoice:
    """Whom the gate should believe for one image.

    Attributes:
        policy: see the module's table.
        spoof_gsd_m: the pretended GSD of policy "spoof", in metres per pixel *seen by the model*.
    """

    policy: Policy
    spoof_gsd_m: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError("no such policy", field="policy", value=self.policy, remedy=f"one of {POLICIES}")
        if (self.policy == "spoof") != (self.spoof_gsd_m is not None):
            raise ConfigError(
                "spoof_gsd_m belongs to policy 'spoof', and policy 'spoof' needs it",
                field="spoof_gsd_m",
                value=self.spoof_gsd_m,
                remedy="set both or neither",
            )
        if self.spoof_gsd_m is not None:
            check_gsd_m(self.spoof_gsd_m, field="spoof_gsd_m")


@dataclass(frozen=True, kw_only=True)
class ScaleUsed:
    """What the gate was told of one image, and on whose word. GSDs in metres per pixel, sigmas in decades.

    Attributes:
        policy: that decided.
        source: on whose word, such as "transform", "name:naip", "user", "SSE-U", "transform and SSE-U", "spoof".
        gsd_m: of the pixels the model saw, as the gate took it; None for policy "open".
        sigma_log10: how sure; 0 for "spoof" and "open".
        gsd_m_file: `gsd_m` per pixel of the file.
        tier: of `gsd_m`.
        metadata_gsd_m: the file's or the user's word, per pixel of the *file*; None where unknown.
        metadata_source: whose word that is, such as "transform" or "user"; None where unknown.
        provenance: how that word is known (exact, nominal, imprecise, unknown).
        metadata_sigma_log10: its sigma.
        sse_u_gsd_m: SSE-U's word, per pixel seen; None in a model without SSE-U.
        sse_u_sigma_log10: SSE-U's sigma.
        native_size: (width, height) of the file, or of the window that was read.
        seen_size: (width, height) that the model saw.
        notes: of reading, resizing and georeferencing.
    """

    policy: Policy
    source: str
    gsd_m: float | None
    sigma_log10: float
    gsd_m_file: float | None
    tier: str
    metadata_gsd_m: float | None
    metadata_source: str | None
    provenance: str
    metadata_sigma_log10: float | None
    sse_u_gsd_m: float | None
    sse_u_sigma_log10: float | None
    native_size: tuple[int, int]
    seen_size: tuple[int, int]
    notes: tuple[str, ...]


def resolve_scales(
    choices: Sequence[ScaleChoice],
    batch: TreeBatch,
    mu_G: Tensor | None,
    log_var_G: Tensor | None,
    base: ResolverConfig,
) -> tuple[Tensor, Tensor]:
    """What the gate takes for every tree: (log10 GSD, sigma in decades), float32.

    Args:
        choices: one for each tree of the batch.
        batch: carries the metadata; NaN where unknown.
        mu_G: SSE-U's mean; None in a model without it, together with `log_var_G`.
        log_var_G: SSE-U's log variance.
        base: the resolver that training used; its `marginal` holds here too.

    Raises:
        GsdError: policy "metadata" for an image without GSD.
        ConfigError: a prediction asked of a model without SSE-U.
    """
    log10_G = torch.full_like(batch.log10_gsd_G, -math.inf, dtype=torch.float32)
    sigma_G = torch.zeros_like(log10_G)
    groups: dict[ScaleChoice, list[int]] = defaultdict(list)
    for tree, choice in enumerate(choices):
        groups[choice].append(tree)
    for choice, trees in groups.items():
        if choice.policy == "open":
            continue
        config = replace(base, policy=choice.policy, spoof_gsd_m=choice.spoof_gsd_m)
        row = torch.tensor(trees, device=log10_G.device)
        log10_G[row], sigma_G[row] = _resolve_rows(Resolver(config), row, batch, mu_G, log_var_G)
    return log10_G, sigma_G


def _resolve_rows(
    resolver: Resolver, row: Tensor, batch: TreeBatch, mu_G: Tensor | None, log_var_G: Tensor | None
) -> tuple[Tensor, Tensor]:
    def pick(x_G: Any) -> Any:
        return None if x_G is None else x_G.index_select(0, row)

    return resolver.resolve(
        log10_gsd_G=pick(batch.log10_gsd_G),
        sigma_log10_G=pick(batch.sigma_log10_G),
        mu_G=pick(mu_G),
        log_var_G=pick(log_var_G),
        gate_draw_G=pick(batch.gate_draw_G),
        predicted_share=0.0,
        training=False,
    )


def source_of(policy: Policy, metadata_source: str | None) -> str:
    """On whose word the gate acts, in words."""
    if policy in ("spoof", "open"):
        return "spoof" if policy == "spoof" else "gate off"
    if policy == "predicted" or (policy == "fused" and metadata_source is None):
        return "SSE-U"
    assert metadata_source is not None  # policy "metadata" without a GSD was refused
    return metadata_source if policy == "metadata" else f"{metadata_source} and SSE-U"


def unheard(policy: Policy, metadata_source: str | None) -> tuple[str, ...]:
    """A note where the user states a GSD and names a policy that does not ask for it, else nothing."""
    if metadata_source != "user" or policy in ("metadata", "fused"):
        return ()
    return (f"the gate does not use gsd_m under policy {policy!r}; 'metadata' or 'fused' would",)


def disagreement(
    policy: Policy, metadata: tuple[float | None, float | None], sse_u: tuple[float, float]
) -> tuple[str, ...]:
    """A note where SSE-U has a say and contradicts the file (or the user), else nothing.

    Args:
        policy: that decided.
        metadata: (metres per pixel of the file, sigma in decades); None where unknown.
        sse_u: the same of SSE-U, per pixel of the file too; NaN in a model without it.
    """
    gsd_m, sigma = metadata
    heard = policy in ("fused", "predicted")
    if not heard or gsd_m is None or sigma is None or not all(map(math.isfinite, sse_u)):
        return ()
    apart = abs(math.log10(sse_u[0] / gsd_m)) / math.hypot(sigma, sse_u[1])
    if apart <= DISAGREEMENT:
        return ()
    found = f"metadata say {gsd_m:.4g} m and SSE-U {sse_u[0]:.4g} m, {apart:.0f} sigma apart"
    return (f"{found}: one is wrong; policy 'metadata' leaves SSE-U out",)
