"""Gradients of a training step under autocast, and those of its own forward differentiated outside and inside of it."""

from typing import Any

import lightning.pytorch as pl
import torch
from fakes.runs import gradients_of
from torch import Tensor


class Compared(pl.Callback):
    """Keeps all three of the first step, by name; B is drawn before, so that thresholds have a gradient."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for adapter in pl_module.model.adapters.values():
            torch.nn.init.normal_(adapter.lora_B.weight, std=0.02, generator=torch.Generator().manual_seed(0))
        self.outside = self._gradients(trainer, pl_module, batch, cast_again=False)
        self.inside = self._gradients(trainer, pl_module, batch, cast_again=True)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.found = gradients_of(pl_module)

    def _gradients(self, trainer: Any, module: Any, batch: Any, *, cast_again: bool) -> dict[str, Tensor]:
        for micro in batch.micro:
            with trainer.precision_plugin.forward_context():
                out = module.model(micro, predicted_share=module.predicted_share())
                loss = out.ce_sum / batch.n_supervised + module.lambda_eff() * out.nll_sum / batch.nll_weight
            with trainer.precision_plugin.forward_context() if cast_again else torch.autocast("cpu", enabled=False):
                loss.backward()
        found = gradients_of(module)
        module.zero_grad()
        return found
