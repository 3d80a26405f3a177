"""ScaleEarth: READ THIS FIRST.

One line: the ground sampling distance (GSD) opens or closes each LoRA rank, and a head learns to read that distance
from the image.

        image --> vision tower (frozen) --+--> SSE-U --> (mu, log sigma^2) of s = log10 GSD --+
                                          |                                                   |
        metadata GSD, provenance ---------+-----------------> resolver <----------------------+
                                          |                      | (s, sigma), one pair per image
                                          v                      v
        question --> tokens --> LLM blocks in 4-bit, every linear:  y = W x + (a/r) B ( h(s) * A x )
                                          |
                                          v
                              answer:  L = L_VLM + lambda_eff * L_NLL

The forward pass, in its order: `encode_images` once per image; SSE-U on those features; the resolver turns metadata and
prediction into what the gate may know; `ScaleState` hands it to every adapted linear; the LLM reads the tree (one
image, many questions); `lm_head` runs at supervised positions only. Stage 1 is the same class without adapters and
without head.

Legend of shape suffixes: T tokens, G trees (images), B branches (questions), N supervised tokens, V vocabulary,
S scales, M adapted modules, r ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.model.backbone import freeze
from scaleearth_pl.model.gated_lora import AdapterConfig, GatedLoRALinear, ScaleState, attach, update_magnitude
from scaleearth_pl.model.generate import greedy, keep_quiet, prompts_only
from scaleearth_pl.model.gsd_head import GsdHead, GsdHeadConfig
from scaleearth_pl.model.losses import gaussian_nll, vlm_cross_entropy_sum
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.model.shared_image import TreeLayout, encode_images, hidden_states
from scaleearth_pl.model.texture import patch_texture, texture_width

Scale = tuple[Float[Tensor, " G"], Float[Tensor, " G"]]
"""log10 GSD of each tree, in log10 metres, and its deviation in decades: all that a gate is told."""


@dataclass(frozen=True, kw_only=True)
class TreeLosses:
    """Raw sums of one micro-batch; the caller knows the global normalisers.

    Args:
        ce_sum: cross-entropy over supervised tokens, in nats.
        nll_sum: trust-weighted Gaussian NLL over images; None without SSE-U.
        mu_G: SSE-U's mean of s per tree; log_var_G: its log variance.
        argmax_N: the most likely token at each supervised position.
    """

    ce_sum: Float[Tensor, ""]
    nll_sum: Float[Tensor, ""] | None
    mu_G: Float[Tensor, " G"] | None
    log_var_G: Float[Tensor, " G"] | None
    argmax_N: Int[Tensor, " N"]

    def detach(self) -> Self:
        """The same numbers without their graph."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.detach() for k, v in values.items() if v is not None})


class ScaleEarth(nn.Module):
    """The backbone with CS-HLoRA, SSE-U and the resolver; with none of them it is stage 1.

    Args:
        backbone: a `Qwen3VLForConditionalGeneration` from `build_backbone`, quantised or not.
        adapters: CS-HLoRA's settings; None leaves the backbone bare and trainable (stage 1).
        head: SSE-U's settings; None for no head.
        resolver: what the gate may know of the GSD.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        adapters: AdapterConfig | None = None,
        head: GsdHeadConfig | None = None,
        resolver: ResolverConfig | None = None,
    ) -> None:
        super().__init__()
        backbone.train()  # from_pretrained leaves eval mode, in which transformers checkpoints no activations
        keep_four_bit_trainable(backbone)
        self.backbone: Any = backbone
        self.resolver = Resolver(resolver or ResolverConfig())
        self.scale = ScaleState()
        self.adapters: dict[str, GatedLoRALinear] = {}
        self.vision_frozen = adapters is not None
        if adapters is not None:
            freeze(backbone)
            self.adapters = attach(backbone, adapters, self.scale)
        self.gsd_head = None if head is None else GsdHead(head, feature_dims(backbone, texture=head.texture))

    def forward(self, batch: TreeBatch, *, predicted_share: float = 0.0) -> TreeLosses:
        """Losses of one micro-batch. `predicted_share` of the trees are gated by SSE-U's prediction."""
        features = self.encode(batch)
        mu_G, log_var_G = self.read_gsd(features, batch)
        scale = self.resolve(batch, mu_G, log_var_G, predicted_share=predicted_share)
        supervised_N = batch.supervised_T.nonzero()[:, 0]
        logits_NV = self.logits(batch, features, scale, supervised_N)
        nll_sum = None
        if mu_G is not None and log_var_G is not None:
            nll_sum = gaussian_nll(mu_G, log_var_G, batch.log10_gsd_G, batch.nll_weight_G)
        return TreeLosses(
            ce_sum=vlm_cross_entropy_sum(logits_NV, batch.target_ids_T.index_select(0, supervised_N)),
            nll_sum=nll_sum,
            mu_G=mu_G,
            log_var_G=log_var_G,
            argmax_N=logits_NV.detach().argmax(-1),
        )

    def encode(self, batch: TreeBatch) -> Any:
        """One vision pass per image; the same features feed SSE-U and the LLM."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_frozen):
            return encode_images(self.backbone, batch.pixel_values_PD, batch.image_grid_I3)

    def read_gsd(self, features: Any, batch: TreeBatch) -> tuple[Tensor | None, Tensor | None]:
        """SSE-U's (mu, log variance) of s per tree; (None, None) without a head."""
        if self.gsd_head is None:
            return None, None
        levels = [features.last_hidden_state, torch.cat(list(features.pooler_output))]
        levels += [torch.cat(list(level)) for level in features.deepstack_features]
        patches_I = batch.image_grid_I3.prod(-1)
        merge = patches_I.sum() // levels[1].shape[0]
        rows = [patches_I] + [patches_I // merge] * (len(levels) - 1)
        if self.gsd_head.config.texture:
            levels.insert(0, patch_texture(batch.pixel_values_PD, self.backbone.config.vision_config.patch_size))
            rows.insert(0, patches_I)
        tree_rows = [
            torch.repeat_interleave(batch.tree_of_image_I, n, output_size=len(level))  # told, so that no host waits
            for n, level in zip(rows, levels, strict=True)
        ]
        mu_G, log_var_G = self.gsd_head(levels, tree_rows, batch.log10_gsd_G.shape[0])
        return mu_G, log_var_G

    def resolve(
        self, batch: TreeBatch, mu_G: Tensor | None, log_var_G: Tensor | None, *, predicted_share: float
    ) -> Scale:
        """What the gate may know of each tree's GSD; without adapters nobody looks at it, and it is the metadata."""
        if not self.adapters:
            return batch.log10_gsd_G, batch.sigma_log10_G
        return self.resolver.resolve(
            log10_gsd_G=batch.log10_gsd_G,
            sigma_log10_G=batch.sigma_log10_G,
            mu_G=mu_G,
            log_var_G=log_var_G,
            gate_draw_G=batch.gate_draw_G,
            predicted_share=predicted_share,
            training=self.training,
        )

    def logits(self, batch: TreeBatch, features: Any, scale: Scale, place_N: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """What is said after the tokens at these places of the stream; the gates keep the scale until the next call."""
        self.scale.set(*scale, batch.tree_of_token_T[None], place_N)
        hidden_NW = hidden_states(self.backbone, batch, features, TreeLayout.from_batch(batch), kept_K=place_N)
        logits_NV: Tensor = self.backbone.lm_head(hidden_NW)
        return logits_NV

    def generate(
        self,
        prompts: TreeBatch,
        features: Any,
        scale: Scale,
        *,
        max_new_tokens: int,
        on_tokens: Callable[[Tensor], None] = keep_quiet,
    ) -> list[list[int]]:
        """Greedy answers of every branch of a batch from `prompts_only`, as token ids; arguments as of `greedy`."""
        self.scale.set(*scale, prompts.tree_of_token_T[None])
        return greedy(
            self.backbone,
            prompts,
            features,
            max_new_tokens=max_new_tokens,
            set_rows=self.scale.set_rows,
            on_tokens=on_tokens,
        )

    def answer(self, batch: TreeBatch, *, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers of every branch, as token ids; all branches of all images in one packed pass."""
        features = self.encode(batch)
        mu_G, log_var_G = self.read_gsd(features, batch)
        scale = self.resolve(batch, mu_G, log_var_G, predicted_share=0.0)
        return self.generate(prompts_only(batch), features, scale, max_new_tokens=max_new_tokens)

    @staticmethod
    def exact_match(argmax_N: Int[Tensor, " N"], batch: TreeBatch) -> Bool[Tensor, " B"]:
        """True per branch where every supervised argmax is the target, which is greedy decoding's exact match."""
        position_N = batch.supervised_T.nonzero()[:, 0]
        branch_N = batch.branch_of(position_N)
        wrong_N = (argmax_N != batch.target_ids_T[position_N]).long()
        n_branches = batch.branch_start_B.shape[0]
        wrong_B = torch.zeros(n_branches, dtype=torch.long, device=wrong_N.device).index_add_(0, branch_N, wrong_N)
        seen_B = torch.zeros_like(wrong_B).index_add_(0, branch_N, torch.ones_like(wrong_N))
        return (wrong_B == 0) & (seen_B > 0)

    # -- what one may look at ----------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """LoRA rank r; 0 without adapters."""
        return next((int(a.lora_A.weight.shape[0]) for a in self.adapters.values()), 0)

    def gate_values(self, log10_gsd_S: Float[Tensor, " S"]) -> Float[Tensor, "M r S"]:
        """h_k(s) of every adapted module at exact scales, for curves."""
        with torch.no_grad():
            sigma_S = torch.zeros_like(log10_gsd_S)
            return torch.stack([a.gate(log10_gsd_S, sigma_S).T for a in self.adapters.values()])

    def update_magnitudes(self) -> dict[str, float]:
        """(a/r) sqrt(tr(B^T B A A^T)) per adapted module: the size of its update with every rank open."""
        return {name: float(update_magnitude(adapter)) for name, adapter in self.adapters.items()}

    def adapter_parameters(self) -> Sequence[nn.Parameter]:
        """A and B of every adapted linear."""
        return [p for a in self.adapters.values() for p in (a.lora_A.weight, a.lora_B.weight)]

    def gate_parameters(self) -> Sequence[nn.Parameter]:
        """Thresholds (and sharpness, where learnt) of all gates, each once."""
        return list(dict.fromkeys(p for a in self.adapters.values() for p in a.gate.parameters()))


def keep_four_bit_trainable(backbone: nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit weights for inference, in place.

    On CPUs with AVX512-BF16 its first forward without gradient (a validation) would repack every layer for good, for a
    bfloat16 kernel that has no backward: from then on gradients stop at each base layer, with no more than a warning.
    """
    layers: list[Any] = [layer for layer in backbone.modules() if hasattr(layer, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def feature_dims(backbone: Any, *, texture: bool) -> list[int]:
    """Widths of the levels that SSE-U reads: texture of the pixels, vision tower's output, merger, DeepStack."""
    vision = backbone.config.vision_config
    pixels = [texture_width(vision.patch_size)] if texture else []
    return pixels + [vision.hidden_size] + [vision.out_hidden_size] * (1 + len(vision.deepstack_visual_indexes))
