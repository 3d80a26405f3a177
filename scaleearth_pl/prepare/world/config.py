"""Settings of the procedural corpus: the keys of `experiments/corpus/world.yaml`."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.world.plan import SPLITS

WORLD_VERSION = "2"
"""Goes up with every change that alters a pixel or a question: comparisons only hold inside one version."""


def generator(folder: Path = Path(__file__).parent) -> str:
    """SHA-256 of the source files of a package, by default of the world's: what made a corpus besides its settings.

    Part of the content's identity, because questions and factors do not show every edited pixel. Line ends do not
    count, comments do: the price of never taking an edited generator's corpus for the present one's.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What to build.

    Args:
        name: name of the corpus, in the index.
        seed: of train and val (and of test, unless it has its own).
        test_seed: of the test split; a fresh one makes places that nobody has tuned on.
        images: number of images by split.
        image_px: side of an image in pixels.
        gsd_m: smallest and largest metres per pixel.
        cue_less_share: share of places without any scale cue.
        questions: smallest and largest number of questions of an image.
        noise_levels: standard deviation of the sensor noise, in levels of 255, the same at every GSD.
        jpeg_quality: of every image.
        samples_per_shard: images in one tar file.
        processes: that draw; 0 takes one per core. Does not change a byte of the corpus.
    """

    name: str = "world"
    seed: int = 7
    test_seed: int | None = None
    images: Mapping[str, int] = field(default_factory=lambda: {"stage1": 1500, "train": 1500, "val": 200, "test": 600})
    image_px: int = 128
    gsd_m: tuple[float, float] = (0.05, 60.0)
    cue_less_share: float = 0.12
    questions: tuple[int, int] = (8, 24)
    noise_levels: float = 2.0
    jpeg_quality: int = 92
    samples_per_shard: int = 512
    processes: int = 0

    def __post_init__(self) -> None:
        for split, count in self.images.items():
            _require(split in SPLITS, f"images.{split}", count, f"splits are {', '.join(SPLITS)}")
            _require(_whole(count) and count >= 1, f"images.{split}", count, "give a positive number of images")
        _require(bool(self.images), "images", dict(self.images), "name at least one split")
        _require(_whole(self.seed) and self.seed >= 0, "seed", self.seed, "give a number from 0 on")
        fresh = self.test_seed
        _require(
            fresh is None or (_whole(fresh) and fresh >= 0), "test_seed", fresh, "give a number from 0 on, or null"
        )
        _require(_whole(self.image_px) and 32 <= self.image_px <= 1024, "image_px", self.image_px, "32 to 1024")
        low, high = _pair(self.gsd_m, "gsd_m")
        _require(0.01 <= low < high <= 100, "gsd_m", self.gsd_m, "the world is made for 0.05 to 60 metres per pixel")
        least, most = _pair(self.questions, "questions")
        _require(1 <= least <= most, "questions", self.questions, "give the smallest and the largest number")
        _require(0 <= self.cue_less_share <= 1, "cue_less_share", self.cue_less_share, "a share lies in 0 to 1")
        _require(0 <= self.noise_levels < 50, "noise_levels", self.noise_levels, "give levels of 255")
        _require(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "JPEG quality lies in 1 to 100")
        _require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "give 1 or more")
        _require(_whole(self.processes) and self.processes >= 0, "processes", self.processes, "0 takes one per core")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Reads the keys of a YAML file; raises `ConfigError` for one that does not exist."""
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise ConfigError("unknown key", field=key, value=given[key], remedy=f"keys are {', '.join(known)}")
        pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        try:
            return cls(**pairs)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"value of the wrong type: {error}", value=dict(given)) from error

    def seed_of(self, split: str) -> int:
        """Seed of a split's places."""
        return self.test_seed if split == "test" and self.test_seed is not None else self.seed


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(value: tuple[float, float], name: str) -> tuple[float, float]:
    _require(len(value) == 2 and all(math.isfinite(v) for v in value), name, value, "give two numbers")
    return value


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ConfigError("setting cannot be meant", field=name, value=value, remedy=remedy)
