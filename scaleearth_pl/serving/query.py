"""What is asked and what comes back: `Prompt`, `Query`, `Prepared`, `Answer`.

A query is one image with its questions: one tree of the packed pass. Its GSD may be the file's, the user's, SSE-U's or
a pretended one (`scale.py`); queries that differ in all of that still share a pass.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance, TierBoundaries, check_gsd_m
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.collate import Tree
from scaleearth_pl.data.processor import ProcessedImage
from scaleearth_pl.geo.candidates import Candidate, Resolution, Stage
from scaleearth_pl.model.pass_size import PassSize
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.serving.images import ImageInput, OpenedImage
from scaleearth_pl.serving.scale import Policy, ScaleChoice, ScaleUsed

USER = "user"
"""Source of a GSD that the user said."""

SIGMAS_LOG10 = (1e-6, 10.0)
"""Sigmas that a user may state, in decades. The resolver squares them in float32: beyond 1e19 the product of Gaussians is
NaN, and the gate would be told nothing without a word."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question with choices, or with earlier (question, answer) turns of the conversation."""

    text: str
    options: tuple[str, ...] | None = None
    turns: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """One image and what is asked about it.

    Attributes:
        image: anything that `images.open_image` takes, or what it returned.
        questions: texts or `Prompt`s; they share one pass over the image.
        policy: see `scale.py`; None is "metadata" with `gsd_m`, "spoof" with `spoof_gsd_m`, else the engine's default.
        gsd_m: metres per pixel of the *file*, by the user's word; takes the place of what the file says.
        gsd_sigma_log10: how sure the user is, in decades; the default is that of an exact GSD.
        spoof_gsd_m: pretend this GSD, metres per pixel *seen by the model*.
    """

    image: ImageInput
    questions: Sequence[str | Prompt]
    policy: Policy | None = None
    gsd_m: float | None = None
    gsd_sigma_log10: float = 0.01
    spoof_gsd_m: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.questions, str) or not self.questions:
            raise ConfigError("no question", field="questions", value=self.questions, remedy="give a list of texts")
        if odd := [q for q in self.questions if not isinstance(q, str | Prompt)]:
            raise ConfigError("not a question", field="questions", value=odd[0], remedy="give a text or a Prompt")
        if self.gsd_m is not None:
            check_gsd_m(self.gsd_m, field="gsd_m")
        low, high = SIGMAS_LOG10
        if not low <= self.gsd_sigma_log10 <= high:
            raise GsdError(
                "no GSD is known so well, or so badly",
                field="gsd_sigma_log10",
                value=self.gsd_sigma_log10,
                remedy=f"decades, between {low:g} and {high:g}; 0.01 is an exact GSD",
            )

    def choice(self, default: Policy, trained: ResolverConfig) -> ScaleChoice:
        """The policy that applies to a model that was trained with the resolver `trained`.

        A gate that was trained at one GSD (baseline constant_gate) is asked at that GSD, or open: anything else would be
        another model.

        Raises:
            ConfigError: another policy, or another GSD, is asked of such a model.
        """
        implied: Policy = "metadata" if self.gsd_m is not None else default
        implied = "spoof" if self.spoof_gsd_m is not None else implied
        asked = ScaleChoice(policy=self.policy or implied, spoof_gsd_m=self.spoof_gsd_m)
        if trained.policy != "spoof" or asked.policy == "open":
            return asked
        pinned = ScaleChoice(policy="spoof", spoof_gsd_m=trained.spoof_gsd_m)
        if asked != pinned and (self.policy, self.spoof_gsd_m) != (None, None):
            raise ConfigError(
                f"this model's gate was trained at {trained.spoof_gsd_m:g} m alone",
                field="policy, spoof_gsd_m",
                value=(asked.policy, asked.spoof_gsd_m),
                remedy="leave both out",
            )
        return pinned


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A checked query, ready to be packed: nothing in it waits for a file any more."""

    image: OpenedImage
    gsd: Resolution
    choice: ScaleChoice
    sample: Sample
    processed: ProcessedImage
    tree: Tree
    questions: tuple[Prompt, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of image and prompts, without the answers."""
        return self.tree.n_tokens

    def size(self, max_new_tokens: int) -> PassSize:
        """Of a pass that holds this query alone, with answers of so many tokens at most."""
        prompts = [len(branch.prompt) for branch in self.tree.branches]
        return PassSize.of(
            n_tokens=self.n_tokens, prefix=len(self.tree.prefix), prompts=prompts, max_new_tokens=max_new_tokens
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer; `complete` is False where `max_new_tokens` cut it off. `scale` is what the gate was told."""

    question: str
    text: str
    complete: bool
    n_prompt_tokens: int
    n_new_tokens: int
    scale: ScaleUsed = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready."""
        row = {name: getattr(self, name) for name in ("question", "text", "complete")}
        return row | asdict(self.scale)


def users_word(gsd_m: float, sigma_log10: float, file: Resolution) -> Resolution:
    """The user's GSD before everything that the file says, which stays as a note where it differs."""
    word = Candidate(
        gsd_m=gsd_m, provenance=Provenance.EXACT, stage=Stage.TRANSFORM, source=USER, sigma_log10=sigma_log10
    )
    return Resolution(chosen=word, candidates=(word, *file.candidates), notes=file.notes)


def as_sample(image: OpenedImage, gsd: Resolution, prompts: Sequence[Prompt], boundaries: TierBoundaries) -> Sample:
    """The image as the collator knows images. The answers are placeholders, cut off before the model sees them."""
    for prompt in prompts:
        if not isinstance(prompt.text, str) or not prompt.text.strip():
            raise SampleError("question is empty", file=image.name, field="question", value=prompt.text)
    return Sample(
        source="asked",
        split="none",
        image_id=image.name,
        width=image.native_size[0],
        height=image.native_size[1],
        gsd_m_native=gsd.gsd_m,
        gsd_provenance=gsd.provenance,
        gsd_sigma_log10=gsd.sigma_log10,
        tier=boundaries.tier_of(gsd.gsd_m),
        qas=tuple(
            Question(
                id=str(number),
                type="asked",
                family="other",
                question=prompt.text,
                answer="?",
                options=prompt.options,
                turns=prompt.turns,
            )
            for number, prompt in enumerate(prompts)
        ),
    )
