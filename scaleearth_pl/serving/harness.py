"""Public harnesses: what lmms-eval finds through its `lmms_eval.models` entry point, and how its requests are answered.

    lmms-eval --model scaleearth --model_args model=runs/stage2-tiny-world/latest,gsd_field=gsd_m --tasks ...

`manifest` is the entry point. It imports lmms-eval only when lmms-eval itself asks, so it costs nothing where that is not
installed; nothing of the harness is a dependency of ours. A harness sends one request per question, mostly with the
questions of an image next to each other: those are put back together here and share one pass (`answer_requests`).

Scale: a harness knows no GSD. It comes from a field of the task's documents (`gsd_field`, metres per pixel of the file), or
from one number for the whole task (`gsd_m`), else SSE-U reads it. Which it was is the model's business to report: a score
without it cannot be compared. How sure a document's GSD is, its field `gsd_sigma_log10` says, as `harness_corpus.py` writes
it; without that field, it is exact.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.images import rgb_pixels
from scaleearth_pl.serving.query import SIGMAS_LOG10, Prepared, Query
from scaleearth_pl.serving.scale import Policy

IMAGES_AT_ONCE = 32
"""Images prepared before they are answered; bounds memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HarnessRequest:
    """One question as a harness puts it.

    Attributes:
        image: RGB pixels.
        text: the whole prompt, options included.
        gsd_m: metres per pixel of the image as given; None lets SSE-U read it.
        gsd_sigma_log10: how sure that is, in decades; None is an exact GSD.
        until: the answer ends before the first of these.
    """

    image: Image.Image
    text: str
    gsd_m: float | None = None
    gsd_sigma_log10: float | None = None
    until: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that can share a pass over one image."""
        pixels = hashlib.blake2b(self.image.tobytes(), digest_size=16).digest()
        return self.image.size, self.image.mode, pixels, self.gsd_m, self.gsd_sigma_log10


def manifest() -> Any:
    """What lmms-eval registers: the name `scaleearth` and the path of the class, which it imports on use."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="scaleearth", simple_class_path="scaleearth_pl.serving.harness_lmms.ScaleEarthLmms")


def answer_requests(
    assistant: Assistant, requests: Sequence[HarnessRequest], *, policy: Policy | None, max_new_tokens: int
) -> Iterator[str]:
    """Answers in the order of the requests; neighbours about one image share a pass over it.

    Args:
        assistant: the model.
        requests: any number.
        policy: None takes the request's GSD where it has one, and SSE-U's word where not.
        max_new_tokens: longest answer.
    """
    groups = [list(group) for _, group in groupby(requests, key=lambda request: request.key)]
    for start in range(0, len(groups), IMAGES_AT_ONCE):
        part = groups[start : start + IMAGES_AT_ONCE]
        answers = assistant.run([_prepare(assistant, group, policy) for group in part], max_new_tokens=max_new_tokens)
        for group, row in zip(part, answers, strict=True):
            yield from (_cut(answer.text, request.until) for request, answer in zip(group, row, strict=True))


def _prepare(assistant: Assistant, group: Sequence[HarnessRequest], policy: Policy | None) -> Prepared:
    texts, first = [request.text.replace("<image>", "").strip() for request in group], group[0]
    sigma = _sigma(first.gsd_sigma_log10)
    query = Query(image=first.image, questions=texts, gsd_m=first.gsd_m, gsd_sigma_log10=sigma, policy=policy)
    return assistant.prepare(query)


def _sigma(told: float | None) -> float:
    """As a query takes it. A corpus may say 0, a user may not; to the gate in float32, the least sigma is the same as 0."""
    return Query.gsd_sigma_log10 if told is None else max(told, SIGMAS_LOG10[0])


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def one_image(visuals: Sequence[Any], where: str) -> Image.Image:
    """The one image of a document as RGB; `ConfigError` for tasks that the model cannot do."""
    if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
        kinds = [type(visual).__name__ for visual in visuals]
        raise ConfigError(
            "one image per question is what this model reads", field=where, value=kinds, remedy="leave this task out"
        )
    return rgb_pixels(visuals[0])[0]
