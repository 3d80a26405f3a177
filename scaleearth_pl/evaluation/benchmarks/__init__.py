"""Multiple-choice benchmarks of remote sensing, from local files: xlrs (XLRS-Bench-lite), omniearth (OmniEarth-Bench).

What they share: rows (JSON or parquet), pixels (very large images), choice (question, reply, macro means), letters (how
each harness reads one from a text) and boxes (visual grounding). A third benchmark is a file that ends in a `Benchmark`,
and its name in `BENCHMARKS`: commands, result rows and sheets ask nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scaleearth_pl.evaluation.benchmarks.choice import Benchmark
from scaleearth_pl.evaluation.benchmarks.omniearth import OMNIEARTH
from scaleearth_pl.evaluation.benchmarks.pixels import PixelPolicy
from scaleearth_pl.evaluation.benchmarks.xlrs import XLRS

__all__ = ["BENCHMARKS", "Benchmark", "open_benchmark"]

BENCHMARKS = {benchmark.name: benchmark for benchmark in (XLRS, OMNIEARTH)}
"""All benchmarks by name, without files."""


def open_benchmark(name: str, files: Sequence[Path], *, pixels: PixelPolicy | None = None) -> Benchmark:
    """A benchmark of `BENCHMARKS` from local files: parquet, JSON lines or JSON."""
    return replace(BENCHMARKS[name], files=files, pixels=pixels or PixelPolicy())
