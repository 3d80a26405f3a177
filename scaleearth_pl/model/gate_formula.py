"""What the gate's formula gives, kept beside everything that was trained under it.

Thresholds mean something under one formula only. After `gate.openness` is edited, an adapter or a checkpoint from before
still fits by names and shapes, and would answer, or go on training, wrongly and without a word: here it is refused.

Legend of shape suffixes, as in `gate`: G scales, r LoRA ranks, M gates.
"""

from pathlib import Path

import torch

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.model import gate
from scaleearth_pl.model.gated_lora import AdapterConfig

FORMULA = "gate_values"
"""Key of `scaleearth.json` and of checkpoints: `formula_values` when they were written."""
TOLERANCE = 1e-3
"""Far above what processors differ by, far below what another formula does."""


def formula_values(adapters: AdapterConfig) -> list[float] | None:
    """What `openness` makes of fixed thresholds at six scales, certain and doubted: equal where the formula is equal.

    None for gates without thresholds to be wrong about; those hold no formula that anybody edits.
    """
    if adapters.gate.kind != "continuous":
        return None
    tau_Mr = torch.linspace(-1.0, 2.5, adapters.rank)[None]
    log10_gsd_G, sigma_G = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.5])
    with torch.no_grad():
        h_MGr = gate.openness(tau_Mr, adapters.gate.sharpness, log10_gsd_G, sigma_G)
    return [round(value, 5) for value in h_MGr[0].mean(-1).tolist()]


def refuse_other_formula(
    what: str, written: object, adapters: AdapterConfig, *, file: Path | None = None, writer: str = ""
) -> None:
    """Compares what was `written` with this code's formula; what holds none, being older, is taken at its word.

    Raises:
        CheckpointError: they differ; `what` begins its text, `writer` says more of the code that would fit.
    """
    now = formula_values(adapters)
    if now is None or written is None:
        return
    numbers = [value for value in written if isinstance(value, float)] if isinstance(written, list) else []
    if len(numbers) != len(now) or max(abs(a - b) for a, b in zip(now, numbers, strict=True)) > TOLERANCE:
        raise CheckpointError(
            f"{what} under another gate: this code's `openness` gives {now}",
            file=file,
            field=FORMULA,
            value=written,
            remedy=f"use the code that wrote it{writer}, or train again",
        )
