"""Stage 2: CS-HLoRA and SSE-U on the frozen 4-bit backbone, the paper's Figures 8 and 9.

Starts from stage 1's folder through `init_from` (never through `--ckpt_path`, which would bring stage 1's own
settings along). A, B, thresholds and SSE-U train; vision tower, merger, embeddings, LLM and lm_head are frozen.
The total is L = L_VLM + lambda_eff * L_NLL. With the vision tower frozen and the prediction detached before it reaches
the gate, the two losses share no trainable parameter: lambda_eff only scales SSE-U's own gradient, and is not tuned.
"""

import json
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.core.run_files import RUN
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.loading.folders import check_base
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.adapter_io import AdapterMeta, apply_adapter, load_adapter, save_adapter
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gate_formula import FORMULA, formula_values, refuse_other_formula
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.losses import lambda_eff
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.base import TreeTraining
from scaleearth_pl.training.memory import decide_checkpointing
from scaleearth_pl.training.optim import OptimConfig
from scaleearth_pl.training.process import writing
from scaleearth_pl.training.sharding import average_gradients, shard_frozen


class Stage2(TreeTraining):
    """QLoRA with a gate, and the head that reads the GSD.

    Args:
        init_from: stage 1's `hf/` folder; None only where `backbone.source` is a trained model of its own.
        backbone: quantisation and precision; `source` is used where `init_from` is null.
        adapters: rank, LoRA alpha, targets and gate (continuous; open = plain LoRA; bucketed = MoE-LoRA).
        head: SSE-U; null leaves it out (ablation).
        resolver: what the gate may know: metadata, predicted, fused, spoof.
        optim: learning rates and clipping of the groups `adapters`, `thresholds`, `sse_u`.
        lambda_gsd: weight of the NLL after its ramp.
        nll_warmup_share: share of all steps over which lambda_eff ramps from 0.
        adapter: an `adapter/` folder to load after building, for validate and test.
        generate: see `TreeTraining`.
        max_new_tokens: see `TreeTraining`.
    """

    def __init__(
        self,
        *,
        init_from: str | None,
        backbone: BackboneConfig,
        adapters: AdapterConfig,
        head: GsdHeadConfig | None,
        resolver: ResolverConfig,
        optim: OptimConfig,
        lambda_gsd: float = 0.1,
        nll_warmup_share: float = 0.1,
        adapter: str | None = None,
        generate: bool = False,
        max_new_tokens: int = 24,
    ) -> None:
        super().__init__(optim=optim, generate=generate, max_new_tokens=max_new_tokens)
        if not 0 <= nll_warmup_share <= 1:
            raise ConfigError("must be a share", field="nll_warmup_share", value=nll_warmup_share)
        if init_from is not None and not Path(init_from).is_dir():
            raise CheckpointError(
                "stage 2 starts from a folder that is not there",
                file=init_from,
                field="init_from",
                remedy="run stage 1 first, or name a Hugging Face folder: --model.init_args.init_from "
                "runs/stage1-tiny-world/latest/hf is what make stage1 writes",
            )
        self.init_from, self.backbone_config = init_from, backbone
        self.adapter_config, self.head_config, self.resolver_config = adapters, head, resolver
        self.lambda_gsd, self.nll_warmup_share, self.adapter = lambda_gsd, nll_warmup_share, adapter
        self.strict_loading = False

    @property
    def source(self) -> str | None:
        """Folder or hub name of the frozen base, as configured."""
        return self.init_from or self.backbone_config.source

    @cached_property
    def base_hash(self) -> str:
        """What the frozen base is, whatever its folder is called: one pass over its files."""
        return base_hash(str(self.base))

    def configure_model(self) -> None:
        """Loads the 4-bit backbone, attaches CS-HLoRA and SSE-U; nothing else trains."""
        if hasattr(self, "model"):
            return
        if self.datamodule.gsd_text != "none" and self.resolver_config.policy != "metadata":
            raise ConfigError(
                "the GSD in the prompt is the metadata's, whatever the policy: told another, the model would be compared "
                "unfairly",
                field="resolver.policy",
                value=self.resolver_config.policy,
                remedy="train and test under metadata; `scaleearth evaluate --policy` and `ask` write the policy's GSD "
                "into the prompt",
            )
        # A link such as stage1/latest may point elsewhere before this run ends.
        self.base = without_links(self.source) if self.source and Path(self.source).is_dir() else self.source
        device = self.trainer.strategy.root_device
        if self.fitting:
            refuse_stale_stage1(str(self.base), self.datamodule.index)
            self._agree_on_base()
        backbone = build_backbone(
            self.backbone_config, source=self.base, token_ids=self.datamodule.processor.token_ids, device=device
        )
        self.model = ScaleEarth(
            backbone=backbone, adapters=self.adapter_config, head=self.head_config, resolver=self.resolver_config
        )
        if self.adapter is not None:
            folder = load_adapter(Path(self.adapter))
            check_base(str(self.base), folder.meta, folder.path)
            apply_adapter(folder, adapters=self.model.adapters, gsd_head=self.model.gsd_head)
        if self.backbone_config.checkpointing == "auto" and self.fitting:
            decide_checkpointing(self.model, tokens=self.datamodule.micro_tokens, device=device)
        if self.device_mesh is not None:
            shard_frozen(self, self.model, self.datamodule.step_batch(0).micro[0])

    def _agree_on_base(self) -> None:
        """Reads the base once and now: at the first checkpoint a job may have two minutes left, and all ranks would."""
        found = base_hash(str(self.base)) if self.trainer.is_global_zero else ""
        self.base_hash = str(self.trainer.strategy.broadcast(found))

    def named_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """Adapters, thresholds (empty where the gate does not learn) and SSE-U (empty where there is none)."""
        head = self.model.gsd_head
        return {
            "adapters": self.model.adapter_parameters(),
            "thresholds": [p for p in self.model.gate_parameters() if p.requires_grad],
            "sse_u": [] if head is None else list(head.parameters()),
        }

    def finish_gradients(self) -> None:
        """DDP has averaged already; where the base is sharded, what trains is replicated and averaged here."""
        if self.device_mesh is not None:
            average_gradients(p for p in self.parameters() if p.requires_grad)

    def lambda_eff(self) -> float:
        """lambda_gsd times its ramp."""
        warmup_steps = round(self.nll_warmup_share * self.total_steps)
        return lambda_eff(self.global_step, lambda_gsd=self.lambda_gsd, warmup_steps=warmup_steps)

    def predicted_share(self) -> float:
        """Share of trees gated by the prediction: 0 until SSE-U's warm-up is over."""
        if self.model.gsd_head is None:
            return 0.0
        return self.model.resolver.predicted_share(self.global_step / max(1, self.total_steps))

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what trains; the frozen base is named by the configuration, not copied."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["base_hash"] = self.base_hash
        checkpoint[FORMULA] = formula_values(self.adapter_config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another base or gate, or with other names: `strict` is off only for the frozen base."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("base_hash", self.base_hash) != self.base_hash:
            raise CheckpointError(
                "the checkpoint's adapters were trained on another base",
                field="init_from",
                value=self.source,
                remedy="name the stage 1 that it grew from (stage1/latest may have moved on), or start without resume",
            )
        writer = " and its gate settings"
        refuse_other_formula("the checkpoint was trained", checkpoint.get(FORMULA), self.adapter_config, writer=writer)
        if "state_dict" not in checkpoint:  # FSDP2 has loaded it, after the same check
            return
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        found = set(checkpoint["state_dict"])
        if trained != found:
            raise CheckpointError(
                "checkpoint does not hold exactly the trained parameters",
                field="state_dict",
                value=sorted(trained ^ found)[:3],
                remedy="resume with the configuration that wrote it",
            )

    def on_train_end(self) -> None:
        """Writes `adapter/` into the run folder, once."""
        head = self.model.gsd_head
        with writing():
            if self.trainer.is_global_zero:
                save_adapter(
                    Path(self.trainer.default_root_dir) / "adapter",
                    adapters=self.model.adapters,
                    gsd_head_state={} if head is None else head.state_dict(),
                    meta=self.adapter_meta(),
                )
            self.trainer.strategy.barrier()

    def adapter_meta(self) -> AdapterMeta:
        """Everything a loader of the adapter must know, the pixels it was trained on included."""
        head, processor = self.model.gsd_head, self.datamodule.processor
        return AdapterMeta(
            adapters=self.adapter_config,
            sse_u=self.head_config,
            sse_u_dims=() if head is None else tuple(head.feature_dims),
            resolver=self.resolver_config,
            base_path=str(self.base),
            base_hash=self.base_hash,
            quantisation=self.backbone_config.quantise,
            commit=current_commit(),
            extra={
                "dtype": self.backbone_config.dtype,
                "steps": self.global_step,
                "processor": {
                    "min_pixels": processor.min_pixels,
                    "max_pixels": processor.max_pixels,
                    "gsd_text": processor.gsd_text,
                },
            },
        )


def refuse_stale_stage1(base: str, index: ShardIndex) -> None:
    """`ConfigError` for a stage 1 of an earlier build of this corpus: what it was trained on may be evaluated now."""
    record = Path(base).parent / RUN
    if not record.is_file():
        return
    trained = json.loads(record.read_text())
    if trained.get("corpus") == index.root.name and trained.get("corpus_hash") != index.content_hash:
        raise ConfigError(
            "stage 1 was trained on another build of this corpus, whose images may be evaluated now",
            file=record,
            field="corpus_hash",
            value=trained.get("corpus_hash"),
            remedy="remove that run and train stage 1 again (`make stage2` does); or name its weights by another folder",
        )


def without_links(folder: str) -> str:
    """Where `folder` leads, without links below the first of its parents that holds it: relative if `folder` is.

    So runs that are moved as a whole still find each other, even where `runs` itself is a link to another disk.
    """
    real = Path(os.path.realpath(folder))
    holders = [parent for parent in Path(folder).parents if real.is_relative_to(parent.resolve())]
    return str(holders[-1] / real.relative_to(holders[-1].resolve())) if holders else str(real)
