"""One sample = one image with all its questions: the JSON beside every image in a shard. (Or several images: a pair.)

The schema is the contract between `prepare` (writes), `data` (reads) and anyone else's WebDataset tools. Fields that
do not apply are null; unknown fields are refused, so that a typing error cannot silently drop supervision. `n_images`
is written only where it is not 1: samples of one image are the bytes that they always were, and a version that knows of
no pairs refuses one by that field, instead of showing half of it.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Self

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import Provenance, Tier, check_gsd_m

SAMPLE_SCHEMA = "scaleearth-sample/1"

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

FAMILIES = ("identification", "scale_specific", "discriminative", "other")
"""Families of questions."""

TRAINED_SPLITS = ("train", "stage1")
"""Splits that a model may have learnt from; to evaluate one of their images is a leak."""

MAX_IMAGES = 8
"""Images of one sample at most: a change pair has two, a short time series a few more."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image.

    `family` is one of `FAMILIES`; `type` is finer (presence, road_width_m, ...).
    `turns` holds earlier (question, answer) pairs of a conversation.
    """

    id: str
    type: str
    family: str
    question: str
    answer: str
    options: tuple[str, ...] | None = None
    turns: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "type", "family", "question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise SampleError("question field must be non-empty text", field=name, value=value)
        if self.options is not None and not _are_texts(self.options):
            raise SampleError("options must be a list of texts", field="options", value=self.options)
        if self.turns is not None and not (
            isinstance(self.turns, tuple) and all(_are_texts(turn) and len(turn) == 2 for turn in self.turns)
        ):
            raise SampleError("turns must be pairs of texts, question and answer", field="turns", value=self.turns)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Self:
        """Reads one entry of `qas`."""
        _refuse_unknown(row, cls, "qas")
        row = dict(row)
        for name in ("options", "turns"):
            if isinstance(row.get(name), list):
                row[name] = tuple(tuple(x) if isinstance(x, list) else x for x in row[name])
        return cls(**row)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image's metadata and questions. Sizes in pixels, GSD in metres per pixel of the file, sigma in decades.

    Several images (`n_images`) are in order of time and all of this size and GSD, since the questions are about the same
    ground; what was taken at two GSDs is to be resampled first, or is no pair.
    `place_id` groups images of one place (intervals resample places); `region_id` groups places for the split.
    `factors` holds ground truth for probes, each of texture, geometry and semantic factors to a number.
    """

    source: str
    split: str
    image_id: str
    width: int
    height: int
    gsd_m_native: float | None
    gsd_provenance: Provenance
    tier: Tier
    qas: tuple[Question, ...]
    gsd_sigma_log10: float | None = None
    place_id: str | None = None
    region_id: str | None = None
    lon: float | None = None
    lat: float | None = None
    sensor: str | None = None
    has_scale_cue: bool | None = None
    licence: str | None = None
    class_label: str | None = None
    factors: dict[str, dict[str, float]] | None = None
    n_images: int = 1
    schema: str = field(default=SAMPLE_SCHEMA)

    def __post_init__(self) -> None:
        if self.schema != SAMPLE_SCHEMA:
            raise SampleError(
                "sample of another schema",
                field="schema",
                value=self.schema,
                remedy=f"this version reads {SAMPLE_SCHEMA}; rebuild the corpus",
            )
        if (self.gsd_m_native is None) != (self.gsd_provenance is Provenance.UNKNOWN):
            raise SampleError(
                "GSD is null if and only if its provenance is unknown",
                field="gsd_m_native",
                value=(self.gsd_m_native, str(self.gsd_provenance)),
            )
        if self.gsd_m_native is not None:
            check_gsd_m(self.gsd_m_native, field="gsd_m_native")
        if self.gsd_provenance is Provenance.IMPRECISE and self.gsd_sigma_log10 is None:
            raise SampleError("imprecise GSD needs its sigma in decades", field="gsd_sigma_log10", value=None)
        if self.gsd_sigma_log10 is not None and not _is_sigma(self.gsd_sigma_log10):
            raise SampleError(
                "sigma must be a finite number of decades, at least 0",
                field="gsd_sigma_log10",
                value=self.gsd_sigma_log10,
            )
        if (self.tier is Tier.UNKNOWN) != (self.gsd_m_native is None):
            raise SampleError("tier does not fit the GSD", field="tier", value=str(self.tier))
        if type(self.n_images) is not int or not 1 <= self.n_images <= MAX_IMAGES:
            raise SampleError(f"a sample has 1 to {MAX_IMAGES} images", field="n_images", value=self.n_images)
        if not self.qas:
            raise SampleError("empty question list", field="qas", value=self.image_id)
        self._check_types()
        if len({qa.id for qa in self.qas}) < len(self.qas):
            twice = next(id_ for id_, n in Counter(qa.id for qa in self.qas).items() if n > 1)
            raise SampleError("question id occurs twice, answers could not be told apart", field="qas.id", value=twice)

    def _check_types(self) -> None:
        for name in ("source", "split", "image_id"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise SampleError("must be non-empty text", field=name, value=getattr(self, name))
        for name in ("width", "height"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise SampleError("must be a positive number of pixels", field=name, value=getattr(self, name))
        if self.place_id is not None and not isinstance(self.place_id, str):
            raise SampleError("must be text or null", field="place_id", value=self.place_id)
        if self.has_scale_cue is not None and not isinstance(self.has_scale_cue, bool):
            raise SampleError("must be true, false or null", field="has_scale_cue", value=self.has_scale_cue)

    @property
    def sigma_log10(self) -> float | None:
        """Sigma of the metadata GSD in decades: the sample's own, or its provenance's."""
        return self.gsd_sigma_log10 if self.gsd_sigma_log10 is not None else self.gsd_provenance.default_sigma_log10

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parses and validates; raises `SampleError` or `GsdError` naming field and value."""
        try:
            text = text if isinstance(text, str) else text.decode("utf-8-sig")
            row = json.loads(text)
            if _SURROGATE.search(text):
                json.dumps(row, ensure_ascii=False).encode()  # raises for half a character, which no tokenizer takes
        except (ValueError, RecursionError) as error:
            raise SampleError(f"sample JSON does not parse: {error}") from error
        if not isinstance(row, dict):
            raise SampleError("sample JSON is not an object", value=type(row).__name__)
        if "class_label" in row:
            raise SampleError("unknown field in sample", field="class_label", remedy="write 'class'")
        row["class_label"] = row.pop("class", None)
        _refuse_unknown(row, cls, "sample")
        try:
            row["gsd_provenance"] = Provenance(row["gsd_provenance"])
            row["tier"] = Tier(row["tier"])
            row["qas"] = tuple(Question.from_dict(qa) for qa in row["qas"])
            return cls(**row)
        except (KeyError, ValueError, TypeError) as error:
            raise SampleError(f"sample JSON is not valid: {error!r}", value=row.get("image_id")) from error

    def to_json(self) -> str:
        """The same sample as canonical JSON: sorted keys, no spaces, so that equal samples are equal bytes."""
        row = {**vars(self), "qas": [vars(question) for question in self.qas]}
        row["class"] = row.pop("class_label")
        if self.n_images == 1:
            del row["n_images"]
        return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _are_texts(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def _is_sigma(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _refuse_unknown(row: dict[str, Any], cls: type, where: str) -> None:
    unknown = sorted(set(row) - {f.name for f in fields(cls)})
    if unknown:
        raise SampleError(f"unknown field in {where}", field=unknown[0], remedy="see docs/contracts.md for the schema")
