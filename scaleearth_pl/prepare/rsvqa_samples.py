"""A raw RSVQA image and its questions become one `Sample`; what is decided about the data is decided here.

- `gsd_m_native` comes from the file (`res_x`, `res_y`: ".1524m", "10m"). LR is *exact* (the 10 m grid of Sentinel-2);
  HR is *nominal* (one value stamped on every tile, whatever took it).
- Families: presence, comp, rural_urban and count are `identification` (the answer does not change with the GSD if the
  image shows the object), area is `scale_specific` (square metres: pixels x GSD^2).
- Answers stay raw ("10632m2"); binning is the evaluator's, on both sides.
- `place_id` and `region_id` are the image's own: a tile is a place. Tiles of one orthophoto are neighbours, so
  intervals over places are somewhat too narrow here; the official split, too, separates tiles and not regions.
- `has_scale_cue` is null: nobody has judged these tiles.
"""

from collections.abc import Sequence
from pathlib import Path

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.images import decode_rgb, image_size
from scaleearth_pl.prepare.rsvqa_files import Part, RawImage, RawQuestion, lon_lat_of_centre

FAMILY_OF_TYPE = {
    "presence": "identification",
    "comp": "identification",
    "rural_urban": "identification",
    "count": "identification",
    "area": "scale_specific",
}
"""Question family of every RSVQA type; another type is refused, since nobody has decided about it."""


def to_sample(
    part: Part,
    split: str,
    image: RawImage,
    questions: Sequence[RawQuestion],
    size: tuple[int, int],
    boundaries: TierBoundaries,
) -> Sample:
    """One sample of an active image; `size` is (width, height) in pixels, as `decoded_size` returns it."""
    source = part.source_of(split)
    key = f"{source}-{image.id}"
    lon, lat = lon_lat_of_centre(image.corner_m, image.gsd_m_native, size) if image.corner_m else (None, None)
    return Sample(
        source=source,
        split=split,
        image_id=key,
        place_id=key,
        region_id=key,
        width=size[0],
        height=size[1],
        gsd_m_native=image.gsd_m_native,
        gsd_provenance=part.provenance,
        tier=boundaries.tier_of(image.gsd_m_native),
        sensor=image.sensor,
        lon=lon,
        lat=lat,
        licence=part.licence,
        qas=tuple(_question(source, q) for q in questions),
    )


def _question(source: str, raw: RawQuestion) -> Question:
    if raw.type not in FAMILY_OF_TYPE:
        raise SampleError(
            "question type is not one of RSVQA LR or HR",
            field=f"questions[id={raw.id}].type",
            value=raw.type,
            remedy=f"known types: {', '.join(FAMILY_OF_TYPE)}",
        )
    return Question(
        id=f"{source}-q{raw.id}",
        type=raw.type,
        family=FAMILY_OF_TYPE[raw.type],
        question=raw.question,
        answer=raw.answer,
    )


def decoded_size(path: Path, image_bytes: bytes) -> tuple[int, int]:
    """(width, height) of a TIFF that was decoded to its last row; raises `SampleError` where it does not decode."""
    size = image_size(image_bytes, "tif", where=str(path))
    decode_rgb(image_bytes, "tif", size=size, where=str(path))
    return size
