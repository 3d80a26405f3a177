"""A trained model that answers: the Python API, and what `ask`, the server, the viewer and the harnesses stand on.

    import scaleearth_pl
    earth = scaleearth_pl.load("runs/stage2-tiny-world/latest")       # = ScaleEarth.from_pretrained(...)
    answer = earth.ask("tile.tif", "How wide is the road?")           # one question -> Answer
    answers = earth.ask("tile.tif", ["Is there water?", "How wide?"]) # several share one pass -> list[Answer]
    answer.text, answer.scale.gsd_m, answer.scale.source, answer.scale.sigma_log10

Who batches (a server, a slider, a harness) uses the three steps below. Queries of different GSDs and policies share one
packed forward, because the gate is per tree:

    Query(image=..., questions=(...), policy=..., gsd_m=..., spoof_gsd_m=...)     what is asked, checked at once
        |  prepare(query) -> Prepared      host work: open, resize, tokenise; every fault of a user raises HERE
        v                                  (SampleError, GsdError, ConfigError); thread-safe; `Prepared.size` to budget by
    run([Prepared, ...]) -> list[list[Answer]]     one packed pass per `max_batch_tokens`: vision once an image, SSE-U,
        |                                          resolver, prefill, KV-cached greedy decoding; one caller at a time
        v                                          (a lock); `on_token(query, question, text so far)` streams
    answer([Query, ...]) = run of the prepared queries, in order

`run` raises what no single query is to blame for (memory, a broken model). Answers do not depend on who shares the
pass: packed equals alone up to float rounding (tested).

Two GSDs (`contracts.md`): what users say, `gsd_m`, is per pixel of the *file*; what the gate, SSE-U and the spoofing
slider speak of is per pixel *seen by the model*. `ScaleUsed` gives both.
"""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self, overload

import torch
from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.collate import Tree, collate, encode_tree
from scaleearth_pl.data.processor import ProcessedImage
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.loading.model import LoadedModel, Precision, load_model
from scaleearth_pl.model.generate import prompts_only
from scaleearth_pl.serving.images import ImageInput, OpenedImage, open_image
from scaleearth_pl.serving.query import Answer, Prepared, Prompt, Query, as_sample, users_word
from scaleearth_pl.serving.scale import Policy, ScaleChoice, ScaleUsed, disagreement, resolve_scales, source_of, unheard
from scaleearth_pl.serving.stream import OnToken, Streams, passes, shifted

__all__ = ["Answer", "Assistant", "Prepared", "Prompt", "Query", "ScaleUsed"]

READ_FACTOR = 16
"""An image is read at up to so many times the pixels that the model sees; see `images.py` for larger ones."""


class Assistant:
    """A loaded model with its processor; see the module's docstring. Public as `scaleearth_pl.ScaleEarth`.

    Args:
        loaded: from `load_model`.
        max_new_tokens: longest answer.
        max_batch_tokens: prompt tokens of one packed pass, and by `pass_size.SLOTS_PER_TOKEN` slots of its cache; more
            queries take more passes.
    """

    def __init__(self, loaded: LoadedModel, *, max_new_tokens: int = 24, max_batch_tokens: int = 16_384) -> None:
        if min(max_new_tokens, max_batch_tokens) < 1:
            raise ConfigError("must be positive", field="max_new_tokens", value=(max_new_tokens, max_batch_tokens))
        self.loaded, self.model, self.processor = loaded, loaded.model, loaded.processor
        self.max_new_tokens, self.max_batch_tokens = max_new_tokens, max_batch_tokens
        self.default_policy: Policy = "metadata" if self.model.gsd_head is None else "fused"
        self.boundaries = TierBoundaries()
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str | None = None,
        *,
        base: Path | str | None = None,
        precision: Precision = "trained",
        device: str = "auto",
        max_new_tokens: int = 24,
    ) -> Self:
        """Loads a run, its `adapter/` folder, or what `save_pretrained` wrote; arguments as `loading.load_model`."""
        loaded = load_model(folder, base=base, precision=precision, device=device)
        return cls(loaded, max_new_tokens=max_new_tokens)

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes the native format, with a model card; see `native.py`."""
        from scaleearth_pl.serving.native import save_pretrained

        return save_pretrained(self.loaded, Path(folder))

    @property
    def max_read_pixels(self) -> int:
        """Pixels at which images are read at most."""
        return READ_FACTOR * self.processor.max_pixels

    @overload
    def ask(
        self,
        image: ImageInput,
        question: str | Prompt,
        *,
        policy: Policy | None = ...,
        gsd_m: float | None = ...,
        spoof_gsd_m: float | None = ...,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        image: ImageInput,
        question: list[str | Prompt] | tuple[str | Prompt, ...],
        *,
        policy: Policy | None = ...,
        gsd_m: float | None = ...,
        spoof_gsd_m: float | None = ...,
    ) -> list[Answer]: ...

    def ask(
        self,
        image: ImageInput,
        question: str | Prompt | list[str | Prompt] | tuple[str | Prompt, ...],
        *,
        policy: Policy | None = None,
        gsd_m: float | None = None,
        spoof_gsd_m: float | None = None,
    ) -> Answer | list[Answer]:
        """One question gives one answer, a list gives a list; the other arguments as in `Query`."""
        single = not isinstance(question, list | tuple)
        questions = tuple(question) if isinstance(question, list | tuple) else (question,)
        query = Query(image=image, questions=questions, policy=policy, gsd_m=gsd_m, spoof_gsd_m=spoof_gsd_m)
        answers = self.answer([query])[0]
        return answers[0] if single else answers

    def answer(self, queries: Sequence[Query], *, on_token: OnToken | None = None) -> list[list[Answer]]:
        """Answers of every query, in order; as few packed passes as `max_batch_tokens` allows."""
        return self.run([self.prepare(query) for query in queries], on_token=on_token)

    def prepare(self, query: Query) -> Prepared:
        """Everything that can go wrong with one query, and no device work.

        Raises:
            SampleError: the image cannot be read, or a text spells a special token.
            GsdError: policy "metadata" for an image whose GSD nobody knows.
            ConfigError: a policy that this model cannot follow.
        """
        image = query.image
        if not isinstance(image, OpenedImage):
            image = open_image(image, max_read_pixels=self.max_read_pixels)
        gsd = image.gsd if query.gsd_m is None else users_word(query.gsd_m, query.gsd_sigma_log10, image.gsd)
        choice = query.choice(self.default_policy, self.model.resolver.config)
        self._check_choice(choice, gsd, image)
        prompts = tuple(Prompt(text=q) if isinstance(q, str) else q for q in query.questions)
        sample = as_sample(image, gsd, prompts, self.boundaries)
        processed = self.processor.image(image.pixels)
        tree = self._tree(sample, processed, None)
        return Prepared(
            image=image, gsd=gsd, choice=choice, sample=sample, processed=processed, tree=tree, questions=prompts
        )

    def run(
        self, prepared: Sequence[Prepared], *, max_new_tokens: int | None = None, on_token: OnToken | None = None
    ) -> list[list[Answer]]:
        """Answers of prepared queries, in order. `max_new_tokens` replaces the engine's own."""
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        answers: list[list[Answer]] = []
        with self._lock:
            for first, part in passes(prepared, self.max_batch_tokens, limit):
                answers += self._one_pass(part, limit, shifted(on_token, first))
        return answers

    @torch.no_grad()
    def _one_pass(self, prepared: Sequence[Prepared], limit: int, on_token: OnToken) -> list[list[Answer]]:
        model, device = self.model, next(self.model.backbone.parameters()).device
        batch = collate([p.tree for p in prepared]).to(device)
        features = model.encode(batch)
        mu_G, log_var_G = model.read_gsd(features, batch)
        log10_G, sigma_G = resolve_scales([p.choice for p in prepared], batch, mu_G, log_var_G, model.resolver.config)
        scales = self._scales(prepared, log10_G, sigma_G, mu_G, log_var_G)
        if self.processor.gsd_text != "none":  # baseline B3 reads the GSD: in its prompt goes what the gate would get
            trees = [self._tree(p.sample, p.processed, s.gsd_m) for p, s in zip(prepared, scales, strict=True)]
            batch = collate(trees).to(device)
        prompts = prompts_only(batch)
        streams = Streams(prompts, on_token, self._text, self.processor.end_id)
        rows = model.generate(prompts, features, (log10_G, sigma_G), max_new_tokens=limit, on_tokens=streams)
        return self._collect(prepared, prompts, rows, scales, limit)

    def _collect(
        self,
        prepared: Sequence[Prepared],
        prompts: TreeBatch,
        rows: list[list[int]],
        scales: Sequence[ScaleUsed],
        limit: int,
    ) -> list[list[Answer]]:
        answers: list[list[Answer]] = [[] for _ in prepared]
        lengths = (prompts.prefix_len_G[prompts.tree_of_branch_B] + prompts.branch_len_B).tolist()
        for tree, length, row in zip(prompts.tree_of_branch_B.tolist(), lengths, rows, strict=True):
            asked = prepared[tree].questions[len(answers[tree])]
            answers[tree].append(
                Answer(
                    question=asked.text,
                    text=self._text(row),
                    complete=len(row) < limit,
                    n_prompt_tokens=length,
                    n_new_tokens=len(row),
                    scale=scales[tree],
                )
            )
        return answers

    def _text(self, row: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(list(row), skip_special_tokens=True)).strip()

    def _tree(self, sample: Sample, processed: ProcessedImage, text_gsd_m: float | None) -> Tree:
        return encode_tree(
            sample, [processed], sample.qas, self.processor, boundaries=self.boundaries, text_gsd_m=text_gsd_m
        )

    @property
    def has_open_state(self) -> bool:
        """Whether policy "open" means something: not to a bucketed gate, nor where the prompt tells the GSD."""
        return self.loaded.adapter.meta.adapters.gate.kind != "bucketed" and self.processor.gsd_text == "none"

    def _check_choice(self, choice: ScaleChoice, gsd: Resolution, image: OpenedImage) -> None:
        if choice.policy == "metadata" and gsd.gsd_m is None:
            raise GsdError(
                "nothing says the GSD of this image, which policy 'metadata' needs",
                file=image.name,
                field="gsd_m",
                value=None,
                remedy="say it (--gsd-m METRES), or let SSE-U read it (--policy predicted or fused)",
            )
        if choice.policy in ("predicted", "fused") and self.model.gsd_head is None:
            raise ConfigError(
                "this model has no SSE-U to predict a GSD with",
                field="policy",
                value=choice.policy,
                remedy="use policy 'metadata', with --gsd-m where the file says nothing",
            )
        if choice.policy == "open" and not self.has_open_state:
            raise ConfigError(
                "a bucketed gate has no open state, and a model that reads the GSD in its prompt no gate to open",
                field="policy",
                value="open",
                remedy="use another policy",
            )

    def _scales(
        self,
        prepared: Sequence[Prepared],
        log10_G: Tensor,
        sigma_G: Tensor,
        mu_G: Tensor | None,
        log_var_G: Tensor | None,
    ) -> list[ScaleUsed]:
        """One copy from the device for the whole batch."""
        nothing_G = torch.full_like(log10_G, math.nan)
        spread_G = nothing_G if log_var_G is None else torch.exp(0.5 * log_var_G.float())
        numbers = torch.stack([log10_G, sigma_G, nothing_G if mu_G is None else mu_G.float(), spread_G])
        return [self._scale(p, *row) for p, row in zip(prepared, numbers.T.tolist(), strict=True)]

    def _scale(self, prepared: Prepared, log10: float, sigma: float, mu: float, spread: float) -> ScaleUsed:
        gsd, image, seen = prepared.gsd, prepared.image, prepared.processed.seen_size
        told = None if gsd.chosen is None else gsd.chosen.source
        gsd_m = 10**log10 if math.isfinite(log10) else None
        ratio = math.sqrt(math.prod(image.native_size) / math.prod(seen))
        enlarged = ["enlarged to the smallest size the model takes"] if prepared.processed.upsampled else []
        apart = disagreement(prepared.choice.policy, (gsd.gsd_m, gsd.sigma_log10), (10**mu / ratio, spread))
        return ScaleUsed(
            policy=prepared.choice.policy,
            source=source_of(prepared.choice.policy, told),
            gsd_m=gsd_m,
            sigma_log10=sigma,
            gsd_m_file=None if gsd_m is None else gsd_m / ratio,
            tier=str(self.boundaries.tier_of(gsd_m)),
            metadata_gsd_m=gsd.gsd_m,
            metadata_source=told,
            provenance=str(gsd.provenance),
            metadata_sigma_log10=gsd.sigma_log10,
            sse_u_gsd_m=None if math.isnan(mu) else 10**mu,
            sse_u_sigma_log10=None if math.isnan(spread) else spread,
            native_size=image.native_size,
            seen_size=seen,
            notes=(*gsd.all_notes, *image.notes, *enlarged, *unheard(prepared.choice.policy, told), *apart),
        )
