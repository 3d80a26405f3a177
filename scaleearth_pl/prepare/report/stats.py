"""One pass over a corpus's metadata: counters only, so that memory does not grow with the number of questions.

What grows with the corpus is one 8-byte number per place and split (to see places that two splits share) and the cells that
images fall into: tenths of a decade of GSD and of image size, degrees of longitude and latitude. A cell remembers
its weighted mean, so that a source with one GSD is drawn where it is and not at the middle of a bin.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader

CELLS_PER_DECADE = 10
"""Resolution of the landscape on both axes."""

CELL_DEGREES = 2.0
"""Resolution of the coverage map."""

NO_LICENCE = "not stated"


@dataclass(kw_only=True)
class Cell:
    """Images and questions at one spot, and its position: means of (x, y) weighted by questions."""

    images: int = 0
    questions: int = 0
    sum_x: float = 0.0
    sum_y: float = 0.0

    def add(self, x: float, y: float, questions: int) -> None:
        """Counts one image at (x, y)."""
        self.images += 1
        self.questions += questions
        self.sum_x += x * questions
        self.sum_y += y * questions

    @property
    def position(self) -> tuple[float, float]:
        """Weighted mean of (x, y)."""
        return self.sum_x / self.questions, self.sum_y / self.questions


@dataclass(kw_only=True)
class Range:
    """Smallest and largest of what was added; None while nothing was."""

    low: float | None = None
    high: float | None = None

    def add(self, value: float) -> None:
        """Widens the range."""
        self.low = value if self.low is None else min(self.low, value)
        self.high = value if self.high is None else max(self.high, value)


@dataclass(kw_only=True)
class SourceStats:
    """One source: ranges of GSD (metres per native pixel), side sqrt(W H) in pixels and sigma in decades; counters."""

    gsd_m: Range = field(default_factory=Range)
    side_px: Range = field(default_factory=Range)
    provenance: Counter[str] = field(default_factory=Counter)
    licences: set[str] = field(default_factory=set)
    sensors: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class CorpusStats:
    """Counters of a corpus. `images` and `questions` go by (source, split, tier); `families` by (tier, family),
    `types` by (family, type), `provenance`, `provenance_questions` and `sigma` by provenance; `landscape` holds cells of
    (log10 metres per pixel, log10 side in pixels) by (source, bins), `coverage` cells of degrees by (source, bins).
    """

    images: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    questions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    families: Counter[tuple[str, str]] = field(default_factory=Counter)
    types: Counter[tuple[str, str]] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    provenance: Counter[str] = field(default_factory=Counter)
    provenance_questions: Counter[str] = field(default_factory=Counter)
    sigma: dict[str, Range] = field(default_factory=lambda: defaultdict(Range))
    sources: dict[str, SourceStats] = field(default_factory=lambda: defaultdict(SourceStats))
    landscape: dict[tuple[str, int, int], Cell] = field(default_factory=lambda: defaultdict(Cell))
    coverage: dict[tuple[str, int, int], Cell] = field(default_factory=lambda: defaultdict(Cell))
    unknown_gsd: Counter[str] = field(default_factory=Counter)
    located_images: int = 0
    most_questions: int = 0
    scale_cues: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    _splits_of_place: dict[int, str] = field(default_factory=dict)
    _shared_places: set[int] = field(default_factory=set)

    @property
    def n_images(self) -> int:
        """Images that were read."""
        return sum(self.images.values())

    @property
    def n_questions(self) -> int:
        """Their questions."""
        return sum(self.questions.values())

    @property
    def n_shared_places(self) -> int:
        """Places that lie in more than one split."""
        return len(self._shared_places)

    def by_source(self) -> list[str]:
        """Sources, the one with most questions first."""
        count: Counter[str] = Counter()
        for (source, _, _), n in self.questions.items():
            count[source] += n
        return sorted(count, key=lambda source: (-count[source], source))

    def total(self, counter: Counter[tuple[str, str, str]], **given: str) -> int:
        """Sum of `counter` over the keys that agree with the given `source`, `split`, `tier`."""
        wanted = [given.get(name) for name in ("source", "split", "tier")]
        return sum(n for key, n in counter.items() if all(w in (None, k) for w, k in zip(wanted, key, strict=True)))

    def add(self, sample: Sample) -> None:
        """Counts one image with its questions."""
        n, tier, provenance = len(sample.qas), str(sample.tier), str(sample.gsd_provenance)
        key = (sample.source, sample.split, tier)
        self.images[key] += 1
        self.questions[key] += n
        self.most_questions = max(self.most_questions, n)
        self.families.update((tier, qa.family) for qa in sample.qas)
        self.types.update((qa.family, qa.type) for qa in sample.qas)
        self.licences[sample.licence or NO_LICENCE] += 1
        self.provenance[provenance] += 1
        self.provenance_questions[provenance] += n
        self.scale_cues[str(sample.has_scale_cue)] += 1
        if sample.sigma_log10 is not None:
            self.sigma[provenance].add(sample.sigma_log10)
        self._add_source(sample)
        self._add_position(sample, n)
        self._add_place(sample)

    def _add_source(self, sample: Sample) -> None:
        of = self.sources[sample.source]
        of.side_px.add(math.sqrt(sample.width * sample.height))
        of.provenance[str(sample.gsd_provenance)] += 1
        of.licences.add(sample.licence or NO_LICENCE)
        if sample.sensor:
            of.sensors.add(sample.sensor)
        if sample.gsd_m_native is not None:
            of.gsd_m.add(sample.gsd_m_native)

    def _add_position(self, sample: Sample, n: int) -> None:
        if sample.gsd_m_native is None:
            self.unknown_gsd[sample.source] += n
        else:
            x, y = log10_gsd(sample.gsd_m_native), 0.5 * math.log10(sample.width * sample.height)
            cell = (sample.source, round(x * CELLS_PER_DECADE), round(y * CELLS_PER_DECADE))
            self.landscape[cell].add(x, y, n)
        if sample.lon is not None and sample.lat is not None:
            self.located_images += 1
            place = (sample.source, round(sample.lon / CELL_DEGREES), round(sample.lat / CELL_DEGREES))
            self.coverage[place].add(sample.lon, sample.lat, n)

    def _add_place(self, sample: Sample) -> None:
        name = sample.place_id or sample.image_id
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        if self._splits_of_place.setdefault(place, sample.split) != sample.split:
            self._shared_places.add(place)


def read_stats(index: ShardIndex, *, observe: Callable[[], None] = lambda: None) -> CorpusStats:
    """Reads the metadata of every image, in index order, and nothing of the pixels.

    A sample that does not read is listed in `unreadable`; a missing or cut shard is a `ShardError`.
    """
    stats, reader = CorpusStats(), ShardReader(index)
    for row in range(len(index)):
        try:
            stats.add(reader.read_sample(row))
        except (SampleError, GsdError) as error:
            stats.unreadable.append(str(error))
        observe()
    reader.close()
    return stats
