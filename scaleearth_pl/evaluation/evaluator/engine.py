"""The engine of every protocol: some images, all their questions, any number of views, one vision pass.

    images --> trees --> one packed batch --> vision tower once --> SSE-U once
                                                  |
                          for each view:  resolver --> gate --> LLM --> right or wrong per question

All questions of an image share one packed forward, and all views share the image features: a spoofing curve of 17 grid
points costs 17 passes of the LLM and one of everything else. Right or wrong is teacher-forced exact match (every answer
token is the most likely one), which *is* greedy decoding's exact match at a fraction of its time; text is generated only
where asked for. Baseline B3 reads the GSD as text, so its tokens differ by view and its tree is rebuilt for each (the
image features are not).

Memory is bounded by one group of images: `grouped` cuts a stream of any length by tokens, and by slots of the decoding
cache where text is generated.

Legend: B questions, G images (trees), V views.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.gsd import TierBoundaries, effective_gsd_m
from scaleearth_pl.core.run_files import SseuReading
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.collate import collate, encode_tree
from scaleearth_pl.data.processor import ProcessedImage
from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.evaluation.evaluator.views import View, standard_normal
from scaleearth_pl.model.generate import prompts_only
from scaleearth_pl.model.pass_size import PassSize
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.model.scaleearth import Scale, ScaleEarth


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """An image (or several of one GSD) with the questions that are asked of it."""

    sample: Sample
    images: tuple[ProcessedImage, ...]
    questions: tuple[Question, ...]

    @property
    def gsd_m(self) -> float | None:
        """True GSD of the pixels that are seen, in metres; None where unknown."""
        native, size = self.sample.gsd_m_native, (self.sample.width, self.sample.height)
        return None if native is None else effective_gsd_m(native, size, self.images[0].seen_size)

    def size(self, subject: Subject, max_new_tokens: int) -> PassSize:
        """About what a pass that holds it alone takes: its prefix has a few tokens more than its images."""
        n_patches = sum(image.pixel_values_PD.shape[0] for image in self.images)
        prefix = n_patches // subject.processor.merge_size**2
        branches = [subject.processor.branch(q) for q in self.questions]
        return PassSize.of(
            n_tokens=prefix + sum(len(b.prompt) + len(b.answer) for b in branches),
            prefix=prefix,
            prompts=[len(b.prompt) for b in branches],
            max_new_tokens=max_new_tokens,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupAnswers:
    """What one group said. `texts` holds a tuple per view where text was generated, else None.

    Attributes:
        batch: trees and branches of the group.
        correct_VB: right or wrong.
        answer_nll_VB: cross-entropy of the true answer, in nats per token: a curve without the steps of an accuracy.
        mu_G, sigma_G: SSE-U's word in log10 metres; None in a model without it.
    """

    batch: TreeBatch
    correct_VB: NDArray[np.bool_]
    answer_nll_VB: NDArray[np.float32]
    texts: tuple[tuple[str, ...], ...] | None
    mu_G: NDArray[np.float32] | None
    sigma_G: NDArray[np.float32] | None

    @property
    def readings(self) -> list[SseuReading]:
        """SSE-U's word on each image of the group; empty in a model without it."""
        if self.mu_G is None or self.sigma_G is None:
            return []
        numbers = zip(self.batch.nll_weight_G.tolist(), self.mu_G.tolist(), self.sigma_G.tolist(), strict=True)
        return [
            SseuReading.of(tree, provenance_weight=weight, mu=mu, sigma=sigma)
            for tree, (weight, mu, sigma) in zip(self.batch.trees, numbers, strict=True)
        ]


def grouped(
    stream: Iterable[Asked], subject: Subject, *, budget_tokens: int = 8192, max_new_tokens: int = 0
) -> Iterator[list[Asked]]:
    """Consecutive images up to a budget; an image larger than the budget is a group of its own.

    Args:
        stream: the images.
        subject: the model, whose processor counts tokens.
        budget_tokens: of a group; where answers are generated, its decoding cache is bounded with it (`model/pass_size.py`).
        max_new_tokens: of a generated answer; 0 where none is, and no cache is kept.
    """
    group: list[Asked] = []
    size: PassSize | None = None
    for asked in stream:
        alone = asked.size(subject, max_new_tokens)
        joined = alone if size is None else size + alone
        fits = joined.fits(budget_tokens) if max_new_tokens else joined.n_tokens <= budget_tokens
        if group and not fits:
            yield group
            group, joined = [], alone
        group.append(asked)
        size = joined
    if group:
        yield group


@torch.inference_mode()
def run_views(
    subject: Subject,
    group: Sequence[Asked],
    views: Sequence[View],
    *,
    boundaries: TierBoundaries | None = None,
    generate: bool = False,
    max_new_tokens: int = 24,
) -> GroupAnswers:
    """Answers every question of the group under every view.

    Args:
        subject: the model.
        group: images and questions.
        views: what it is told of the GSD.
        boundaries: tiers in which accuracies are reported.
        generate: also decode greedily; `correct_VB` is then equality of the stripped texts.
        max_new_tokens: bound on a generated answer.

    Raises:
        GsdError: policy "metadata" for an image of unknown GSD.
        ConfigError: "predicted" or "fused" of a model without SSE-U.
    """
    model, tiers = subject.model, boundaries or TierBoundaries()
    batch = _batch(subject, group, tiers)
    features = model.encode(batch)
    mu_G, log_var_G = model.read_gsd(features, batch)
    said: dict[Any, tuple[NDArray[np.bool_], NDArray[np.float32], tuple[str, ...]]] = {}
    keys = []
    for view in views:
        told = _told(subject, batch, view)
        scale = _resolve(subject, told, view, mu_G, log_var_G)
        # Equal scales are equal answers, and to plain LoRA every scale is.
        keys.append(tuple(torch.stack(scale).flatten().tolist()) if subject.reads_scale else ())
        if keys[-1] not in said:
            if subject.gsd_text != "none":
                told = _with_text(subject, group, tiers, told, scale[0])
            said[keys[-1]] = _answer(subject, told, features, scale, max_new_tokens if generate else 0)
    return GroupAnswers(
        batch=batch,
        correct_VB=np.stack([said[key][0] for key in keys]),
        answer_nll_VB=np.stack([said[key][1] for key in keys]),
        texts=tuple(said[key][2] for key in keys) if generate else None,
        mu_G=None if mu_G is None else mu_G.float().cpu().numpy(),
        sigma_G=None if log_var_G is None else torch.exp(0.5 * log_var_G.float()).cpu().numpy(),
    )


def _answer(
    subject: Subject, batch: TreeBatch, features: Any, scale: Scale, max_new_tokens: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32], tuple[str, ...]]:
    """(right or wrong, answer NLL, texts) at one scale; without new tokens nothing is generated."""
    right_B, nll_B = teacher_forced(subject.model, batch, features, scale)
    if not max_new_tokens:
        return right_B, nll_B, ()
    texts = _decode(subject, batch, features, scale, max_new_tokens)
    right_B = np.array([a == b.answer.strip() for a, b in zip(texts, batch.branches, strict=True)], bool)
    return right_B, nll_B, texts


def teacher_forced(
    model: ScaleEarth, batch: TreeBatch, features: Any, scale: Scale
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(right or wrong [B], mean cross-entropy of the answer's tokens [B]) from ready image features."""
    place_N = batch.supervised_T.nonzero()[:, 0]
    logits_NV = model.logits(batch, features, scale, place_N).float()
    nll_N = cross_entropy(logits_NV, batch.target_ids_T[place_N], reduction="none")
    branch_N = batch.branch_of(place_N)
    total_B = nll_N.new_zeros(len(batch.branches)).index_add_(0, branch_N, nll_N)
    n_B = torch.bincount(branch_N, minlength=len(batch.branches)).clamp(min=1)
    right_B = model.exact_match(logits_NV.argmax(-1), batch)
    return right_B.cpu().numpy(), (total_B / n_B).cpu().numpy()


def _batch(subject: Subject, group: Sequence[Asked], tiers: TierBoundaries) -> TreeBatch:
    trees = [
        encode_tree(asked.sample, asked.images, asked.questions, subject.processor, boundaries=tiers) for asked in group
    ]
    return collate(trees).to(subject.device)


def _told(subject: Subject, batch: TreeBatch, view: View) -> TreeBatch:
    """The batch with the view's shift and noise on its metadata."""
    if not (view.noise_decades or view.shift_decades):
        return batch
    z_G = torch.tensor([standard_normal(tree.image_id, view.seed) for tree in batch.trees], device=subject.device)
    sigma_G = batch.sigma_log10_G
    if view.tell_noise:
        sigma_G = torch.sqrt(sigma_G**2 + view.noise_decades**2)
    log10_G = batch.log10_gsd_G + view.shift_decades + view.noise_decades * z_G
    return replace(batch, log10_gsd_G=log10_G, sigma_log10_G=sigma_G)


def _resolve(subject: Subject, batch: TreeBatch, view: View, mu_G: Tensor | None, log_var_G: Tensor | None) -> Scale:
    """What the gate is told."""
    pinned = subject.resolver.policy == "spoof"
    config = ResolverConfig(
        policy="spoof" if pinned else view.policy,
        spoof_gsd_m=subject.resolver.spoof_gsd_m if pinned else view.spoof_gsd_m,
        marginal=subject.resolver.marginal,
    )
    return Resolver(config).resolve(
        log10_gsd_G=batch.log10_gsd_G,
        sigma_log10_G=batch.sigma_log10_G,
        mu_G=mu_G,
        log_var_G=log_var_G,
        gate_draw_G=batch.gate_draw_G,
        predicted_share=0.0,
        training=False,
    )


def _with_text(
    subject: Subject, group: Sequence[Asked], tiers: TierBoundaries, told: TreeBatch, log10_G: Tensor
) -> TreeBatch:
    """B3's batch: the resolved GSD written into every prefix."""
    trees = [
        encode_tree(
            asked.sample,
            asked.images,
            asked.questions,
            subject.processor,
            boundaries=tiers,
            text_gsd_m=10.0 ** float(log10_m),
        )
        for asked, log10_m in zip(group, log10_G.tolist(), strict=True)
    ]
    batch = collate(trees).to(subject.device)
    return replace(batch, log10_gsd_G=told.log10_gsd_G, sigma_log10_G=told.sigma_log10_G)


def _decode(subject: Subject, batch: TreeBatch, features: Any, scale: Scale, max_new_tokens: int) -> tuple[str, ...]:
    tokens = subject.model.generate(prompts_only(batch), features, scale, max_new_tokens=max_new_tokens)
    decode = subject.processor.tokenizer.decode
    return tuple(decode(answer, skip_special_tokens=True).strip() for answer in tokens)
