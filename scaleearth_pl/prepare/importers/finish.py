"""One found image (or pair) becomes a finished sample, or a reason why not: a pure function of the record and the files.

    Found -> picture (decoded once) -> inject (the resolver chain) -> resize follows -> Sample

Nothing here depends on other records, so a corpus may be cut among processes at this point; what does depend on others
(duplicate ids, shares of failures) is the writer's.
"""

from dataclasses import replace

from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.prepare.importers.picture import MAX_PIXELS, Picture, picture_of
from scaleearth_pl.prepare.importers.record import Found, Imported, Rejected
from scaleearth_pl.prepare.inject import inject, sample_fields


def finish(
    found: Found, *, boundaries: TierBoundaries | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Imported | Rejected, Resolution | None]:
    """Opens the image, resolves its GSD and builds the sample.

    Args:
        found: one record of an importer.
        boundaries: tiers, 1 and 10 m by default.
        max_pixels: larger images are averaged down.

    Returns:
        The sample and the resolution behind it (for the report), or the rejection and None.
    """
    if (problem := _text_problem(found)) is not None:
        return problem, None
    try:
        picture, *later = _pictures(found, max_pixels)
        resolution = inject(replace(found.evidence, size=found.evidence.size or picture.native_size))
        if picture.size != picture.native_size:
            resolution = resolution.resized(picture.native_size, picture.size)
        sample = _sample(found, resolution, picture.size, boundaries or TierBoundaries())
    except GsdError as error:
        return _rejected(found, "bad_gsd", error), None
    except SampleError as error:
        return _rejected(found, "bad_image", error), None
    notes = (*found.notes, *(note for one in (picture, *later) for note in one.notes))
    more = tuple((one.data, one.ext) for one in later)
    entry = Imported(
        sample=sample, image=picture.data, ext=picture.ext, later=more, notes=notes, doubts=resolution.doubts
    )
    return entry, resolution


def _pictures(found: Found, max_pixels: int) -> list[Picture]:
    """All images of the record; those of one tree have one size, and the GSD that the first one's evidence gives."""
    pictures = [picture_of(ref, max_pixels=max_pixels) for ref in (found.image, *found.later)]
    if len({(picture.native_size, picture.size) for picture in pictures}) > 1:
        sizes = [picture.native_size for picture in pictures]
        raise SampleError(
            "images of one tree differ in size", file=str(found.image), field="width, height", value=sizes
        )
    if found.native_size not in (None, pictures[0].native_size):
        raise SampleError(
            f"{found.source} has no image of this size: it is of another data set, or was resized",
            file=str(found.image),
            field="width, height",
            value=pictures[0].native_size,
            remedy=f"put the official images, {found.native_size}, beside its tables",
        )
    return pictures


def _sample(found: Found, resolution: Resolution, size: tuple[int, int], boundaries: TierBoundaries) -> Sample:
    resolved = sample_fields(resolution, boundaries)
    if found.lon is not None and found.lat is not None:
        resolved |= {"lon": found.lon, "lat": found.lat}
    place = found.place_id or found.image_id
    return Sample(
        source=found.source,
        split=found.split,
        image_id=found.image_id,
        place_id=place,
        region_id=found.region_id or place,
        width=size[0],
        height=size[1],
        sensor=found.sensor,
        licence=found.licence,
        class_label=found.class_label,
        qas=found.qas,
        n_images=1 + len(found.later),
        **resolved,
    )


def _text_problem(found: Found) -> Rejected | None:
    """Ids that occur twice, and texts that are no Unicode (half of a surrogate pair in a JSON escape)."""
    if len({question.id for question in found.qas}) < len(found.qas):
        return _rejected(found, "duplicate_id", SampleError("two questions of one id", file=str(found.image)))
    try:
        "".join(f"{q.id}{q.question}{q.answer}" for q in found.qas).encode()
    except UnicodeEncodeError as error:
        return _rejected(found, "bad_row", SampleError(f"text is not Unicode: {error}", file=str(found.image)))
    return None


def _rejected(found: Found, kind: str, error: SampleError | GsdError) -> Rejected:
    return Rejected(source=found.source, item=found.image_id, kind=kind, reason=str(error))
