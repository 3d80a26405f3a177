"""The same place at a coarser GSD: area averaging by a whole factor.

    out[i, j] = mean of the k x k block at (k i, k j),    gsd_m -> k gsd_m exactly

Whole factors and a crop to whole blocks keep the GSD exact; any other resize would make it a rounded number. A box is
the ideal detector: a real sensor's point spread is wider and its noise does not shrink with k, so a model might learn
"too clean" as a sign of coarseness. That is the price, and why augmented images carry their own ids to be told apart.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance, Tier, TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import decode_rgb
from scaleearth_pl.prepare.prompts.compose import View

MIN_SIDE = 32
"""Pixels that a coarse image keeps on its shorter side: one visual token of Qwen3-VL."""

VIEW_FACTS = ("factor", "image_sha256", "width", "height", "gsd_m", "gsd_provenance", "tier", "class")
"""What a question was asked of and under: where one of these has changed since, question and answer may be wrong."""

MIMES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
"""Encodings that chat servers take as they are; the others are sent as PNG."""

_VIEW = re.compile(r"@x\d+$")


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An encoded image as it goes to a server or into a shard."""

    data: bytes
    ext: str


def check_factors(factors: tuple[int, ...]) -> None:
    """Factors of area averaging are whole, above 1 and named once; `ConfigError` otherwise."""
    if any(k < 2 for k in factors) or len(set(factors)) != len(factors):
        raise ConfigError(
            "factors of area averaging are different whole numbers above 1",
            field="coarsen",
            value=factors,
            remedy="such as 4 16; the image itself is always used",
        )


def view_of(sample: Sample, factor: int, boundaries: TierBoundaries) -> View | None:
    """What the sample is after averaging k x k blocks; None where it would be too small, or k > 1 and has no GSD."""
    width, height = sample.width // factor, sample.height // factor
    if factor > 1 and (min(width, height) < MIN_SIDE or sample.gsd_m_native is None):
        return None
    gsd_m = None if sample.gsd_m_native is None else sample.gsd_m_native * factor
    return View(
        gsd_m=gsd_m,
        provenance=sample.gsd_provenance,
        tier=boundaries.tier_of(gsd_m),
        width=width,
        height=height,
        class_label=sample.class_label,
    )


def coarse_image(data: bytes, ext: str, *, size: tuple[int, int], factor: int, where: str) -> EncodedImage:
    """Averages k x k blocks; factor 1 returns the bytes as they are, or PNG where `ext` is none that servers take.

    Args:
        data: encoded image of the shard.
        ext: its extension.
        size: (width, height) that the index promises.
        factor: k.
        where: shard and key, for messages.

    Raises:
        SampleError: the image does not decode.
    """
    if factor == 1 and ext in MIMES:
        decode_rgb(data, ext, size=size, where=where)
        return EncodedImage(data=data, ext=ext)
    image = decode_rgb(data, ext, size=size, where=where)
    if factor > 1:
        box = (0, 0, size[0] // factor * factor, size[1] // factor * factor)
        image = image.reduce(factor, box=box)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return EncodedImage(data=stream.getvalue(), ext="png")


def facts_of(sample: Sample, view: View, *, factor: int, image_sha256: str) -> dict[str, Any]:
    """What a record says of its image: ids, size in pixels and GSD (metres per pixel, decades) of the view, label."""
    return {
        "image_id": sample.image_id,
        "source": sample.source,
        "split": sample.split,
        "image_sha256": image_sha256,
        "factor": factor,
        "width": view.width,
        "height": view.height,
        "gsd_m": view.gsd_m,
        "gsd_provenance": str(view.provenance),
        "gsd_sigma_log10": sample.sigma_log10,
        "tier": str(view.tier),
        "class": sample.class_label,
    }


def stale_fact(
    record: Mapping[str, Any], sample: Sample, boundaries: TierBoundaries, *, image_sha256: str
) -> str | None:
    """The first of `VIEW_FACTS` in which a record differs from the sample as it is now; None where all agree.

    "factor" means that the sample has no such view any more: it is too small for it, or lost its GSD.
    """
    factor = record["factor"]
    view = view_of(sample, factor, boundaries)
    now = {} if view is None else facts_of(sample, view, factor=factor, image_sha256=image_sha256)
    return next((name for name in VIEW_FACTS if name not in now or record.get(name) != now[name]), None)


def view_of_facts(facts: dict[str, Any]) -> View:
    """The view that a record speaks of."""
    return View(
        gsd_m=facts["gsd_m"],
        provenance=Provenance(facts["gsd_provenance"]),
        tier=Tier(facts["tier"]),
        width=facts["width"],
        height=facts["height"],
        class_label=facts["class"],
    )


def image_id_of_view(image_id: str) -> str:
    """The id of the image that a coarse view was averaged from, as `coarse_sample` names it; any other id as it is."""
    return _VIEW.sub("", image_id)


def coarse_sample(sample: Sample, view: View, factor: int) -> Sample:
    """The sample of a coarse view; its old questions were not meant for this GSD, so the caller replaces `qas`.

    Its place stays the original's, so that intervals resample both together and a split never parts them. Ground truth
    of the fine image (`factors`, `has_scale_cue`) does not carry over.
    """
    return replace(
        sample,
        image_id=f"{sample.image_id}@x{factor}",
        place_id=sample.place_id or sample.image_id,
        width=view.width,
        height=view.height,
        gsd_m_native=view.gsd_m,
        tier=view.tier,
        factors=None,
        has_scale_cue=None,
    )
