"""Proof at export: what PEFT loads from the written folder is the gated model, and is not the base.

One probe (an image of noise and gradients, a few questions) goes through one backbone three ways: bare, with our gated
layers, and with the folder as PEFT itself reads it, all in the same precision and through the same attention, so that
the adapter is all that can differ. A folder whose keys a reader does not match loads without an error and changes
*nothing*; hence "differs from the base" is checked as well, and hence it is PEFT that loads, not our own reader.

Legend: K compared positions, V vocabulary.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.data.collate import collate
from scaleearth_pl.model.generate import prompts_only
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shared_image import TreeLayout, hidden_states
from scaleearth_pl.serving.engine import Assistant, Query
from scaleearth_pl.serving.fold import FoldScale

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest difference of a logit, relative to the largest logit where that exceeds 1; by the coarser dtype of folder and
backbone (`tolerance_of`).

Relative, because float32 itself is: two exact evaluations of one gated model (another form of attention, or float64)
differ by as much as folded and gated do, and by more in absolute terms the larger the logits are
(`python -m bench.fold`; docs/serving.md has the figures). A backbone in bfloat16 rounds every layer's output to 8 bits,
in another order with PEFT's layers than with ours, so there a folder of float32 is no nearer than one of bfloat16."""

NOTHING = 10 * TOLERANCE["float32"]
"""A folder that moves no logit by more than this, in the same unit, changes nothing. The same for every dtype: the rounding
of A' and B scales with the update, and an adapter that does nothing rounds to one that does nothing, in any backbone."""

PROBE_QUESTIONS = ("What is the land cover?", "Is there a road?", "How wide is it, in metres?")
_NAME = "folded"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of logits: folded against gated and against the bare base in the unit of `TOLERANCE`, and the former in logits."""

    to_gated: float
    to_base: float
    to_gated_absolute: float


class Verifier:
    """Compares folders with the gated model they were folded from.

    Args:
        assistant: holds the gated model, on the base that the folders are meant for (dequantised, full precision).
    """

    def __init__(self, assistant: Assistant) -> None:
        self.model: ScaleEarth = assistant.model
        self._batch, self._features = probe(assistant)
        with detached(self.model):
            self._base_KV = self._logits()

    @torch.no_grad()
    def gated(self, scale: FoldScale) -> Tensor:
        """Logits [K, V] of the gated model at one scale."""
        like_G = torch.zeros_like(self._batch.log10_gsd_G)
        s_G, sigma_G = like_G + log10_gsd(scale.gsd_m), like_G + scale.sigma_log10
        self.model.scale.set(s_G, sigma_G, self._batch.tree_of_token_T[None])
        return self._logits()

    def compare(self, folders: Sequence[Path], scales: Sequence[FoldScale]) -> Iterator[Difference]:
        """Loads every folder through PEFT and compares it at its scale."""
        for folder, scale in zip(folders, scales, strict=True):
            gated_KV = self.gated(scale)
            with detached(self.model), _through_peft(self.model.backbone, folder):
                folded_KV = self._logits()
            yield Difference(
                to_gated=difference(folded_KV, gated_KV),
                to_base=difference(folded_KV, self._base_KV),
                to_gated_absolute=float((folded_KV - gated_KV).abs().max()),
            )

    @torch.no_grad()
    def _logits(self) -> Tensor:
        layout = TreeLayout.from_batch(self._batch)
        hidden_TW = hidden_states(self.model.backbone, self._batch, self._features, layout)
        own_T = torch.arange(len(hidden_TW), device=hidden_TW.device) >= self._batch.prefix_len_G[0]
        logits: Tensor = self.model.backbone.lm_head(hidden_TW[own_T]).float()
        return logits


def tolerance_of(folder: str, backbone: str) -> float:
    """Largest difference allowed between a folder of one dtype and the gated model, both on a backbone of another."""
    return max(TOLERANCE[folder], TOLERANCE[backbone])


def check(found: Difference, folder: Path, *, tolerance: float) -> None:
    """Raises `CheckpointError` where a folder is not the gated model, or is the base."""
    if not found.to_gated <= tolerance:
        raise CheckpointError(
            "the folded adapter, read back through PEFT, is not the gated model",
            file=folder,
            field="difference of logits",
            value=found.to_gated,
            remedy=f"at most {tolerance:g} was expected; report this with the adapter's scaleearth.json",
        )
    if not found.to_base > NOTHING:
        raise CheckpointError(
            "the folded adapter changes nothing: its gates are shut at this GSD, or it was never trained",
            file=folder,
            field="difference of logits",
            value=found.to_base,
            remedy="export GSDs at which the adapter works; see gates.json of the run",
        )


def difference(a_KV: Tensor, b_KV: Tensor) -> float:
    """Largest absolute difference, relative to the largest value of `b_KV` where that exceeds 1."""
    return float((a_KV - b_KV).abs().max() / b_KV.abs().max().clamp(min=1.0))


def check_keys(folder: Path, keys: Sequence[str]) -> None:
    """Raises `CheckpointError` unless every key is a LoRA matrix of the language model."""
    wrong = [k for k in keys if ".language_model." not in k or not k.startswith("base_model.model.")]
    if wrong:
        raise CheckpointError("a server would load this key and activate nothing", file=folder, field=wrong[0])


def probe(assistant: Assistant) -> tuple[TreeBatch, Any]:
    """What is compared: one image's tree and its vision features; deterministic."""
    side = 2 * assistant.processor.factor
    ramp = np.linspace(0, 255, side)
    noise = np.random.default_rng(0).integers(0, 256, (side, side))
    pixels = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), noise], axis=-1).astype(np.uint8)
    query = Query(image=pixels, questions=PROBE_QUESTIONS, gsd_m=1.0)
    device = next(assistant.model.backbone.parameters()).device
    batch = collate([assistant.prepare(query).tree]).to(device)
    with torch.no_grad():
        features = assistant.model.encode(batch)
    return prompts_only(batch), features


@contextmanager
def detached(model: ScaleEarth) -> Iterator[None]:
    """The bare backbone inside the block; our layers come back after it."""
    for name, layer in model.adapters.items():
        model.backbone.set_submodule(name, layer.base)
    try:
        yield
    finally:
        for name, layer in model.adapters.items():
            model.backbone.set_submodule(name, layer)


@contextmanager
def _through_peft(backbone: Any, folder: Path) -> Iterator[None]:
    """The folder's adapter inside `backbone`, loaded by PEFT; gone after the block."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError(
            "verifying needs peft, which is not installed",
            field="verify",
            remedy="pip install 'scaleearth_pl[serve]', or --no-verify",
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5.23 by an old name
        loaded = PeftModel.from_pretrained(backbone, folder, adapter_name=_NAME, low_cpu_mem_usage=True)
    loaded.eval()
    try:
        yield
    finally:
        loaded.unload()
