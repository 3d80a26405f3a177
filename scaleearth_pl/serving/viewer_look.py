"""What the viewer computes: one look at an image at one scale, and the gates as numbers for the browser."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from scaleearth_pl.core.gsd import RANK_TIERS
from scaleearth_pl.model.gate import ContinuousGate, rank_tier_slices
from scaleearth_pl.serving.engine import Assistant, Prompt, Query
from scaleearth_pl.serving.images import OpenedImage
from scaleearth_pl.serving.openai_api import check_lengths
from scaleearth_pl.serving.scale import Policy
from scaleearth_pl.serving.server_body import Strict
from scaleearth_pl.serving.server_images import image_from_url
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits
from scaleearth_pl.serving.server_service import check_size
from scaleearth_pl.serving.viewer_corpus import CorpusImages

MODES: dict[str, Policy] = {"metadata": "metadata", "sse_u": "predicted", "spoof": "spoof"}
"""The page's words for the policies."""

PREVIEW_SIDE = 512
"""Longer side of a preview, in pixels."""


MAX_QUESTIONS = 32
"""Of one look; the page leaves out the oldest of the visitor's own."""


class Asked(Strict):
    """One question, with choices where the corpus has them."""

    question: str
    options: list[str] | None = Field(default=None, min_length=1)


class Look(Strict):
    """Body of /api/look: an image by number or as a data URL, how its scale is known, and what is asked."""

    image: int | None = None
    url: str | None = None
    mode: Literal["metadata", "sse_u", "spoof"]
    gsd_m: float | None = None
    questions: list[Asked] = Field(min_length=1, max_length=MAX_QUESTIONS)


def look(assistant: Assistant, images: CorpusImages, wanted: Look, limits: ServerLimits) -> dict[str, Any]:
    """Answers with the gate at the wanted scale and with the gate off, and every scale there is to draw.

    Both sides share one packed pass: a query each, which differ in nothing but the policy. "open" is None for a bucketed
    gate.

    Raises:
        RefusedError: texts, image or pass beyond the limits, or nobody to say the scale.
    """
    prompts = [
        Prompt(text=q.question, options=None if q.options is None else tuple(q.options)) for q in wanted.questions
    ]
    check_lengths(prompts, limits)
    limits.check_gsd_m(wanted.gsd_m, "gsd_m")
    image = _image(assistant, images, wanted, limits)
    queries = [_gated(assistant, image, prompts, wanted)]
    if assistant.has_open_state:
        queries.append(Query(image=image, questions=prompts, policy="open"))
    prepared = [assistant.prepare(query) for query in queries]
    check_size(prepared[0].size(assistant.max_new_tokens), assistant.max_batch_tokens)
    on, *off = assistant.run(prepared)
    scale = asdict(on[0].scale)
    ratio = _ratio(scale["native_size"], scale["seen_size"])
    told = scale["metadata_gsd_m"]
    return {
        "gated": [a.text for a in on],
        "open": [a.text for a in off[0]] if off else None,
        "scale": scale,
        "metadata_seen_gsd_m": None if told is None else told * ratio,
        "preview": None if wanted.url is None else _preview(image),
    }


def _gated(assistant: Assistant, image: OpenedImage, prompts: Sequence[Prompt], wanted: Look) -> Query:
    """At the wanted scale; a gate that was trained at one GSD (baseline constant_gate) is asked at that one."""
    if assistant.model.resolver.config.policy == "spoof":
        return Query(image=image, questions=prompts)
    policy = MODES[wanted.mode]
    if policy == "spoof" and wanted.gsd_m is None:
        raise RefusedError(422, "mode spoof needs gsd_m", param="gsd_m")
    if policy == "metadata" and image.gsd.gsd_m is None:
        raise RefusedError(422, "this image says nothing of its GSD: use SSE-U's word, or the slider", param="mode")
    return Query(image=image, questions=prompts, policy=policy, spoof_gsd_m=wanted.gsd_m if policy == "spoof" else None)


def _preview(image: OpenedImage) -> str:
    """What was read of a visitor's own image, small: no browser draws a GeoTIFF, least of all one of 16 bits."""
    small, stream = image.pixels.copy(), io.BytesIO()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    small.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _image(assistant: Assistant, images: CorpusImages, wanted: Look, limits: ServerLimits) -> OpenedImage:
    if (wanted.image is None) == (wanted.url is None):
        raise RefusedError(422, "name an image by number, or send one as a data URL", param="image")
    if wanted.image is not None:
        return images.open(wanted.image)
    assert wanted.url is not None
    return image_from_url(wanted.url, limits, max_read_pixels=assistant.max_read_pixels)


def _ratio(native: tuple[int, int], seen: tuple[int, int]) -> float:
    """Metres per pixel seen over metres per pixel of the file."""
    return float((native[0] * native[1] / (seen[0] * seen[1])) ** 0.5)


def gates(assistant: Assistant) -> dict[str, Any]:
    """Thresholds [module][rank] in log10 metres, sharpness, rank tiers: all that h_k(s, sigma) needs.

    A model whose gate is not continuous (plain LoRA, bucketed) has no thresholds: the page then shows answers alone.
    """
    adapters = assistant.model.adapters
    named = {name: a.gate for name, a in adapters.items() if isinstance(a.gate, ContinuousGate)}
    slices = rank_tier_slices(assistant.model.rank) if assistant.model.rank else {}
    return {
        "name": assistant.loaded.adapter.path.parent.parent.name,
        "modules": [name.removeprefix("model.language_model.") for name in named],
        "thresholds": [[round(t, 4) for t in gate.thresholds.tolist()] for gate in named.values()],
        "sharpness": [float(gate.sharpness) for gate in named.values()],
        "tiers": {tier: [slices[tier].start, slices[tier].stop] for tier in RANK_TIERS if tier in slices},
        "has_sse_u": assistant.model.gsd_head is not None,
        "max_questions": MAX_QUESTIONS,
    }
