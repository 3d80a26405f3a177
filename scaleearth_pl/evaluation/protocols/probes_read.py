"""What every rank of every adapted module makes of an image: the mean over its tokens of the ungated A x.

Read by hooks on A while the images pass through the LLM, one group at a time; kept are M x r floats an image (1,792 at tiny
size, 16,128 at 8B), so 5,000 images take 36 MB and 320 MB. The gates of *earlier* modules are at work as in any forward,
because A x is to be read where the trained model meets it: under the metadata GSD.

Legend: I images, G images of a group, T tokens, M modules, r ranks, F factors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.data.collate import collate, encode_tree
from scaleearth_pl.evaluation.evaluator.engine import Asked, grouped
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.model.shared_image import TreeLayout, hidden_states


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitReadings:
    """Readings and truths of some images.

    Attributes:
        unit_IMr: mean ungated A x over the image's tokens.
        factor_IF: known factors; `factors` names them "group/name".
        log10_gsd_I: s of the pixels seen, NaN where unknown.
        place_I: place of each image.
        modules: names of the adapted modules.
    """

    unit_IMr: NDArray[np.float32]
    factor_IF: NDArray[np.float64]
    log10_gsd_I: NDArray[np.float64]
    place_I: NDArray[np.str_]
    modules: tuple[str, ...]
    factors: tuple[str, ...]


@torch.inference_mode()
def read_units(
    subject: Subject,
    images: Iterable[Asked],
    *,
    max_images: int = 5000,
    modules: Sequence[str] | None = None,
    boundaries: TierBoundaries | None = None,
    budget_tokens: int = 8192,
) -> UnitReadings:
    """Passes images through the model and reads every unit.

    Args:
        subject: a model with adapters.
        images: with factors; those without are passed over. One question of each goes along, unread.
        max_images: stops there.
        modules: names of adapted modules; None for all.
        boundaries: tiers, for the trees' records only.
        budget_tokens: of one forward.

    Raises:
        ConfigError: a model without adapters, an unknown module, or no image with factors.
    """
    adapters = subject.model.adapters
    names = tuple(adapters if modules is None else modules)
    if not names or any(name not in adapters for name in names):
        raise ConfigError("no such adapted module", field="modules", value=names, remedy=f"{list(adapters)[:3]} ...")
    with_factors = (_one_question(asked) for asked in images if asked.sample.factors)
    units: list[NDArray[np.float32]] = []
    seen: list[Asked] = []
    scales: list[float] = []
    for group in grouped(islice(with_factors, max_images), subject, budget_tokens=budget_tokens):
        trees = [
            encode_tree(a.sample, a.images, a.questions, subject.processor, boundaries=boundaries or TierBoundaries())
            for a in group
        ]
        batch = collate(trees).to(subject.device)
        units.append(_read_group(subject, batch, names))
        scales += batch.log10_gsd_G.tolist()
        seen += group
    if not seen:
        raise ConfigError("no image has factors", field="factors", remedy="probe a split of the procedural world")
    factors, factor_IF = _factors(seen)
    return UnitReadings(
        unit_IMr=np.concatenate(units),
        factor_IF=factor_IF,
        log10_gsd_I=np.array(scales),
        place_I=np.array([a.sample.place_id or a.sample.image_id for a in seen]),
        modules=names,
        factors=factors,
    )


def _read_group(subject: Subject, batch: TreeBatch, names: Sequence[str]) -> NDArray[np.float32]:
    """[G, M, r]."""
    model = subject.model
    image_T = batch.input_ids_T == subject.processor.image_token_id
    row_N = batch.tree_of_token_T[image_T]
    n_trees = len(batch.trees)
    count_G1 = torch.bincount(row_N, minlength=n_trees).clamp(min=1)[:, None].float()
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, low_1Tr: Tensor) -> None:
            low_Nr = low_1Tr[0][image_T].float()
            total_Gr = low_Nr.new_zeros(n_trees, low_Nr.shape[1]).index_add_(0, row_N, low_Nr)
            found[name] = total_Gr / count_G1

        return hook

    handles = [model.adapters[name].lora_A.register_forward_hook(keep(name)) for name in names]
    try:
        features = model.encode(batch)
        mu_G, log_var_G = model.read_gsd(features, batch)
        # Training's leniency for an unknown GSD is not wanted: the model is in eval mode, so the resolver refuses it.
        scale = model.resolve(batch, mu_G, log_var_G, predicted_share=0.0)
        model.scale.set(*scale, batch.tree_of_token_T[None])
        hidden_states(model.backbone, batch, features, TreeLayout.from_batch(batch))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([found[name] for name in names], dim=1).cpu().numpy()


def _one_question(asked: Asked) -> Asked:
    return Asked(sample=asked.sample, images=asked.images, questions=asked.questions[:1])


def _factors(seen: Sequence[Asked]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Factors that every image has, by sorted name."""
    rows = [
        {
            f"{group}/{name}": value
            for group, values in (a.sample.factors or {}).items()
            for name, value in values.items()
        }
        for a in seen
    ]
    names = tuple(sorted(set.intersection(*(set(row) for row in rows))))
    return names, np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
