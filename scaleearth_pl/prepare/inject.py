"""The resolver chain: every image leaves with a GSD, its sigma and where it came from, or honestly without.

    metadata parse  ->  file name  ->  sensor table  ->  dataset constant

All stages are always asked; the nearest that answers is taken (`geo.candidates.Stage`), the others are kept. That a
later stage contradicts is worth knowing even when it loses: a corpus whose transforms all disagree with its sensor was
resampled by someone.

Price of the order: a data set's nominal value never corrects a wrong transform, since nothing could tell which of the
two is wrong; the disagreements are counted, so that a person can.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.geo.candidates import Candidate, Resolution, resolve
from scaleearth_pl.geo.filegsd import file_evidence
from scaleearth_pl.geo.names import name_candidates
from scaleearth_pl.geo.records import record_candidates
from scaleearth_pl.geo.sensors import datasets, sensors

LOGGED_EXAMPLES = 5
"""Disagreements of one pair of sources that are logged in full; the rest is counted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an importer knows about one image.

    Args:
        image_id: names the image in logs.
        image: the file, if it may carry a transform or sidecars; its size is then read from it.
        name: the original file name, where `image` is None or was renamed.
        record: the image's JSON record (STAC, fMoW, RSVQA, SkyScript, web map).
        size: width and height in pixels, for records and names that hold corner coordinates.
        sensor: looked up in `sensors.csv` with `product` ("rgb", "pan", "pansharpened", ...).
        dataset: looked up in `datasets.csv`.
        extra: candidates that only the importer can know, such as a user's table of classes.
    """

    image_id: str
    image: Path | None = None
    name: str | None = None
    record: Mapping[str, Any] | None = None
    size: tuple[int, int] | None = None
    sensor: str | None = None
    product: str = "rgb"
    dataset: str | None = None
    extra: tuple[Candidate, ...] = ()


def inject(evidence: Evidence) -> Resolution:
    """Runs the chain for one image.

    Raises:
        SampleError: `evidence.image` cannot be read.
    """
    candidates, notes, veto, size = list(evidence.extra), list[str](), None, evidence.size
    file_name = evidence.name or (evidence.image.name if evidence.image else "")
    if evidence.image is not None:
        found = file_evidence(evidence.image, name=Path(file_name).stem)
        candidates += found.candidates
        notes += found.notes
        veto, size = found.veto, found.size
    if evidence.record is not None:
        _extend(candidates, notes, record_candidates(evidence.record, file_name=file_name, size=size))
    if file_name and evidence.image is None:
        _extend(candidates, notes, name_candidates(Path(file_name).stem, size))
    _extend(candidates, notes, _from_tables(evidence))
    return resolve(candidates, notes=notes, veto=veto)


@dataclass(kw_only=True)
class InjectReport:
    """Counts of a corpus: by provenance, by chosen source and by disagreeing pair."""

    provenance: Counter[str] = field(default_factory=Counter)
    source: Counter[str] = field(default_factory=Counter)
    disagreements: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, image_id: str, resolution: Resolution) -> None:
        """Counts one image; logs the first `LOGGED_EXAMPLES` disagreements of each pair of sources."""
        self.provenance[str(resolution.provenance)] += 1
        winner = resolution.chosen.source if resolution.chosen else "none"
        self.source[winner] += 1
        for loser, sentence in zip(resolution.disagreeing, resolution.disagreements, strict=True):
            pair = loser.source, winner
            self.disagreements[pair] += 1
            if self.disagreements[pair] <= LOGGED_EXAMPLES:
                _log.warning("GSD of %s: %s", image_id, sentence)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for a data card."""
        pairs = {f"{loser} against {winner}": count for (loser, winner), count in self.disagreements.items()}
        return {"provenance": dict(self.provenance), "source": dict(self.source), "disagreements": pairs}


def sample_fields(resolution: Resolution, boundaries: TierBoundaries) -> dict[str, Any]:
    """The keyword arguments of `core.sample.Sample` that a resolution decides."""
    chosen = resolution.chosen
    return {
        "gsd_m_native": resolution.gsd_m,
        "gsd_sigma_log10": resolution.sigma_log10,
        "gsd_provenance": resolution.provenance,
        "tier": boundaries.tier_of(resolution.gsd_m),
        "lon": chosen.lon if chosen else None,
        "lat": chosen.lat if chosen else None,
    }


def _from_tables(evidence: Evidence) -> tuple[list[Candidate], list[str]]:
    found: list[Candidate] = []
    notes: list[str] = []
    if evidence.sensor is not None:
        candidate = sensors().candidate(evidence.sensor, evidence.product)
        found += [candidate] if candidate else []
        notes += [] if candidate else [f"sensor table has no {evidence.sensor!r} with product {evidence.product!r}"]
    if evidence.dataset is not None:
        candidate = datasets().candidate(evidence.dataset)
        found += [candidate] if candidate else []
        notes += [] if candidate else [f"dataset table has no {evidence.dataset!r}"]
    return found, notes


def _extend(candidates: list[Candidate], notes: list[str], found: tuple[list[Candidate], list[str]]) -> None:
    candidates += found[0]
    notes += found[1]
