"""How much each adapted module has moved: Figure 8 (f) of the paper."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.figures import SEQUENTIAL, new_figure
from scaleearth_pl.training.callbacks.board import add_figure, board, check_every, gated_model, report_of
from scaleearth_pl.training.report import StepReport

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:.*\.)?(\w+)$")


class UpdateMagnitude(Callback):
    """Writes (a/r) ||B A||_F = (a/r) sqrt(tr(B^T B A A^T)) of every adapted module, every rank open.

    The trace needs two r x r products instead of the [out, in] matrix: that is what makes 252 modules of the 8B model
    cheap enough to look at. Only rank zero looks.

    Tags (x = optimizer steps done):
        update/<layer>.<projection>: per module, such as update/03.q_proj.
        update/mean: mean over modules.
        figures/update_magnitude: heat map, projections by layers.

    Args:
        every_n_steps: steps between looks; the last step is always looked at.
    """

    def __init__(self, *, every_n_steps: int = 50) -> None:
        self.every_n_steps = check_every(every_n_steps)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Looks every n steps."""
        step = report_of(outputs, StepReport).step
        if step % self.every_n_steps == 0:
            self._look(trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the end."""
        self._look(trainer, pl_module, trainer.global_step)

    def _look(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        model = gated_model(pl_module, self)
        writer = board(trainer)
        if writer is None:
            return
        magnitudes = short_names(model.update_magnitudes())
        for name, value in magnitudes.items():
            writer.add_scalar(f"update/{name}", value, step)
        writer.add_scalar("update/mean", sum(magnitudes.values()) / len(magnitudes), step)
        add_figure(writer, "figures/update_magnitude", heat_map(magnitudes, step), step)


def short_names(magnitudes: Mapping[str, float]) -> dict[str, float]:
    """Keys as `<layer>.<projection>`: `...layers.3.self_attn.q_proj` -> `03.q_proj`; other names stay as they are.

    Raises:
        ConfigError: two modules would share a name, so that one would hide the other.
    """
    short: dict[str, float] = {}
    for name, value in magnitudes.items():
        match = _LAYER.search(name)
        key = f"{int(match[1]):02d}.{match[2]}" if match else name
        if key in short:
            raise ConfigError("two adapted modules share a short name", field=key, value=name)
        short[key] = value
    return short


def heat_map(magnitudes: Mapping[str, float], step: int) -> Figure:
    """Projections (rows, in the order of a block) by layers (columns); cells that are not adapted stay blank."""
    cells = [(layer, projection) for layer, _, projection in (name.rpartition(".") for name in magnitudes)]
    layers, projections = sorted({c[0] for c in cells}), list(dict.fromkeys(c[1] for c in cells))
    grid = np.full((len(projections), len(layers)), np.nan)
    for (layer, projection), value in zip(cells, magnitudes.values(), strict=True):
        grid[projections.index(projection), layers.index(layer)] = value
    figure, (ax,) = new_figure(panel_size=(min(12.0, 3.6 + 0.3 * len(layers)), 3.2))
    ax.grid(visible=False)
    image = ax.imshow(grid, cmap=SEQUENTIAL, aspect="auto", vmin=0, vmax=max(float(np.nanmax(grid)), 1e-12))
    ax.set_yticks(range(len(projections)), projections, fontsize=8)
    stride = -(-len(layers) // 12)
    ax.set_xticks(range(0, len(layers), stride), layers[::stride], fontsize=8)
    ax.set_xlabel("layer of the LLM")
    ax.set_ylabel("adapted projection")
    ax.set_title(f"Effective update magnitude, step {step}", fontsize=10)
    figure.colorbar(image, ax=ax, label="(a/r) sqrt(tr(BᵀB AAᵀ))")
    return figure
