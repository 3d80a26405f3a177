"""Stage 1: full-parameter supervised fine-tuning on remote-sensing questions, the paper's Figure 7.

Vision tower, merger and LLM all train in full precision; there is no adapter, no SSE-U and no GSD: what stage 1 learns
is the domain, not the scale. It ends in a Hugging Face folder (`hf/`: weights, config, tokenizer, image processor)
that stage 2 and every other tool of that ecosystem can load.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import replacing_folder
from scaleearth_pl.data.tokenizer import load_tokenizer
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone, save_backbone
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.base import TreeTraining
from scaleearth_pl.training.memory import decide_checkpointing
from scaleearth_pl.training.optim import OptimConfig
from scaleearth_pl.training.process import writing
from scaleearth_pl.training.sharding import full_state_dict, shard_model


class Stage1(TreeTraining):
    """Full-parameter SFT of the backbone.

    Args:
        backbone: which Qwen3-VL, in which precision; quantisation is stage 2's.
        optim: learning rate, schedule, clipping; the only group is `model`.
        init_from: a Hugging Face folder to start from instead of `backbone.source`.
        generate: see `TreeTraining`.
        max_new_tokens: see `TreeTraining`.
    """

    def __init__(
        self,
        *,
        backbone: BackboneConfig,
        optim: OptimConfig,
        init_from: str | None = None,
        generate: bool = False,
        max_new_tokens: int = 24,
    ) -> None:
        super().__init__(optim=optim, generate=generate, max_new_tokens=max_new_tokens)
        self.backbone_config, self.init_from = backbone, init_from

    def configure_model(self) -> None:
        """Builds the backbone once, with the special tokens of the DataModule's tokenizer; shards it under FSDP2."""
        if hasattr(self, "model"):
            return
        if self.init_from is not None:
            refuse_another_tokenizer(self.init_from, self.datamodule)
        backbone = build_backbone(
            self.backbone_config, source=self.init_from, token_ids=self.datamodule.processor.token_ids
        )
        self.model = ScaleEarth(backbone=backbone)
        if self.backbone_config.checkpointing == "auto" and self.fitting:
            device = self.trainer.strategy.root_device
            decide_checkpointing(self.model, tokens=self.datamodule.micro_tokens, device=device)
        shard_model(self, self.model)

    def named_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """One group: the whole model."""
        return {"model": self.model.backbone.parameters()}

    def on_train_end(self) -> None:
        """Writes `hf/` into the run folder, once, also under FSDP2 (gathered to rank 0)."""
        with writing():
            state: dict[str, Any] = full_state_dict(self.model.backbone)
            if self.trainer.is_global_zero:
                with replacing_folder(Path(self.trainer.default_root_dir) / "hf") as folder:
                    save_backbone(self.model.backbone, folder, state_dict=state)
                    self.datamodule.processor.save(folder)
            self.trainer.strategy.barrier()


def refuse_another_tokenizer(init_from: str, datamodule: Any) -> None:
    """`ConfigError` where a folder's weights were trained on other ids than the data now speak.

    The tiny tokenizer is made from the splits that are not evaluated: another `test_splits`, another tokenizer.
    """
    if not (Path(init_from) / "tokenizer.json").is_file():
        return
    if load_tokenizer(init_from).get_vocab() != datamodule.processor.tokenizer.get_vocab():
        raise ConfigError(
            "the weights were trained with another tokenizer than the data's",
            file=init_from,
            field="data.tokenizer",
            value=str(datamodule.tokenizer_dir),
            remedy=f"--data.tokenizer {init_from}",
        )
