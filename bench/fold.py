"""Where does the difference between a folded and a gated model come from: from the fold, or from float32?

    python -m bench.fold --model runs/stage2-tiny-world/latest --corpus data_shards/world --images 24
    python -m bench.fold --images 24 --grid 0.1:30:0.08dex       and what the nearest adapter of a bank costs

Folded and gated are equal as mathematics, A' = diag(h) A, and differ in rounding. How much of that is the fold's is seen
by two comparisons that a mistake of the fold cannot enter, and one that nothing else can:

    attention     the gated model by another exact form of attention (copied prefixes in place of merged softmaxes)
    float64       the gated model in float32 against itself in float64 throughout
    fold          folded against gated, in float32: what export measures
    fold, 64      folded against gated, both in float64: A' is rounded once, as it is stored, and nothing else is

Logits of all question tokens of `--images` images (0: of the probe that export itself uses), at 20 GSDs from 0.05 to 50 m.
`--grid` then takes each adapter of a bank to both edges of its cell, where it is worst: what does the gated model answer
there, and what does the adapter?
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.data.collate import collate
from scaleearth_pl.loading.model import load_model
from scaleearth_pl.model import shared_image
from scaleearth_pl.model.backbone import silence_loading
from scaleearth_pl.model.gated_lora import GatedLoRALinear
from scaleearth_pl.model.generate import prompts_only
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shared_image import TreeLayout, hidden_states
from scaleearth_pl.serving.dequantise import dequantise
from scaleearth_pl.serving.engine import Assistant, Query
from scaleearth_pl.serving.fold import FoldScale, cell, fold, parse_grid
from scaleearth_pl.serving.verify import probe
from scaleearth_pl.serving.viewer_corpus import CorpusImages

SCALES = [FoldScale(gsd_m=float(gsd_m)) for gsd_m in np.geomspace(0.05, 50, 20)]


BAR = 1e-5


@dataclass(frozen=True, kw_only=True)
class Off:
    """How far two evaluations are apart at one scale, in logits: of every token the worst, over tokens; and how large they get.

    `beyond` is the share of tokens that differ by more than `BAR`.
    """

    largest: float
    median: float
    beyond: float
    logit: float


class Folded(nn.Module):
    """y = W x + (a/r) B A' x, as PEFT computes it, in the dtype of x."""

    def __init__(self, layer: GatedLoRALinear, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.base, self.scaling, self.A, self.B = layer.base, layer.scaling, A, B

    def forward(self, x: Tensor) -> Tensor:
        """Order of the operations as in peft 0.21, `lora.Linear.forward`."""
        y: Tensor = self.base(x) + (x @ self.A.to(x.dtype).T) @ self.B.to(x.dtype).T * self.scaling
        return y


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/stage2-tiny-world/latest")
    parser.add_argument("--corpus", type=Path, default=Path("data_shards/world"))
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--grid", metavar="LOW:HIGH:STEPdex")
    args = parser.parse_args()
    silence_loading()
    assistant = Assistant(load_model(args.model, device="cpu"))
    dequantise(assistant.model.backbone)
    batch, features = _batch(assistant, args.corpus, args.images)
    if args.grid:
        show_edges(at_edges(assistant.model, batch, features, parse_grid(args.grid)))
    show(measure(assistant.model, batch, features), int(batch.branch_len_B.sum()))
    return 0


def _batch(assistant: Assistant, corpus: Path, count: int) -> tuple[TreeBatch, Any]:
    if not count:
        return probe(assistant)
    images = CorpusImages(corpus, count=count, max_read_pixels=assistant.max_read_pixels)
    asked = [([q["question"] for q in row["questions"]], images.open(row["number"])) for row in images.rows]
    queries = [Query(image=image, questions=questions, spoof_gsd_m=1.0) for questions, image in asked]
    batch = collate([assistant.prepare(query).tree for query in queries])
    with torch.no_grad():
        return prompts_only(batch), assistant.model.encode(batch)


@torch.no_grad()
def at_edges(model: ScaleEarth, batch: TreeBatch, features: Any, grid: list[float]) -> list[tuple[float, float]]:
    """(largest difference of a logit relative to the largest, share of first answer tokens that change), per edge."""
    found, last_K = [], batch.branch_len_B.cumsum(0) - 1
    points = [log10_gsd(gsd_m) for gsd_m in grid]
    for number in track(range(len(grid)), description="edges of cells", console=Console(stderr=True)):
        with _folded(model, FoldScale(gsd_m=grid[number])):
            near = _logits(model, batch, features)[last_K]
        for edge in cell(points, number):
            true = _gated(model, batch, features, FoldScale(gsd_m=10**edge))[last_K]
            changed = float((near.argmax(-1) != true.argmax(-1)).float().mean())
            found.append((float((near - true).abs().max() / true.abs().max()), changed))
    return found


def show_edges(found: list[tuple[float, float]]) -> None:
    logits, changed = zip(*found, strict=True)
    Console().print(
        f"{len(found)} edges of cells: a logit moves by {max(logits):.1%} of the largest at most, "
        f"{statistics.mean(changed):.2%} of first answer tokens change (at the worst edge {max(changed):.1%})"
    )


@torch.no_grad()
def measure(model: ScaleEarth, batch: TreeBatch, features: Any) -> dict[str, list[Off]]:
    """What each scale gives, for each comparison of the module's docstring."""
    gated, other, folded, exact = [], [], [], []
    found: dict[str, list[Off]] = {}
    for scale in track(SCALES, description="float32", console=Console(stderr=True)):
        gated.append(_gated(model, batch, features, scale))
        other.append(_other_attention(model, batch, features, scale))
        with _folded(model, scale):
            folded.append(_logits(model, batch, features))
    model.backbone.double()
    wide = _to_double(features)
    with _norms_in_double():
        for scale in track(SCALES, description="float64", console=Console(stderr=True)):
            exact.append(_gated(model, batch, wide, scale))
            with _folded(model, scale):
                found.setdefault("fold, 64", []).append(_off(_logits(model, batch, wide), exact[-1]))
    pairs = {"attention": (other, gated), "float64": (gated, exact), "fold": (folded, gated)}
    return {name: [_off(a, b) for a, b in zip(*two, strict=True)] for name, two in pairs.items()} | found


def _off(a: Tensor, b: Tensor) -> Off:
    off_K = (a.double() - b.double()).abs().amax(1)
    largest, beyond = float(off_K.max()), float((off_K > BAR).double().mean())
    return Off(largest=largest, median=float(off_K.median()), beyond=beyond, logit=float(b.abs().max()))


def _logits(model: ScaleEarth, batch: TreeBatch, features: Any) -> Tensor:
    hidden = hidden_states(model.backbone, batch, features, TreeLayout.from_batch(batch))
    runs = zip(batch.branch_start_B.tolist(), batch.branch_len_B.tolist(), strict=True)
    asked_K = torch.cat([torch.arange(start, start + length) for start, length in runs])
    logits: Tensor = model.backbone.lm_head(hidden[asked_K])
    return logits


def _gated(model: ScaleEarth, batch: TreeBatch, features: Any, scale: FoldScale) -> Tensor:
    like_G = torch.zeros_like(batch.log10_gsd_G)
    model.scale.set(like_G + log10_gsd(scale.gsd_m), like_G, batch.tree_of_token_T[None])
    return _logits(model, batch, features)


def _other_attention(model: ScaleEarth, batch: TreeBatch, features: Any, scale: FoldScale) -> Tensor:
    module: Any = shared_image
    usual = module.tree_attention
    module.tree_attention = partial(usual, form="copied")
    try:
        return _gated(model, batch, features, scale)
    finally:
        module.tree_attention = usual


@contextmanager
def _folded(model: ScaleEarth, scale: FoldScale) -> Iterator[None]:
    """The model's layers with A' in place of gate and A; A' is float32, as in a folder."""
    tensors = fold(model.adapters, scale)
    for name, layer in model.adapters.items():
        A, B = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        model.backbone.set_submodule(name, Folded(layer, A, B))
    try:
        yield
    finally:
        for name, layer in model.adapters.items():
            model.backbone.set_submodule(name, layer)


@contextmanager
def _norms_in_double() -> Iterator[None]:
    """transformers computes RMSNorm in float32 whatever the model's dtype; here it must not."""
    kind: Any = modeling_qwen3_vl.Qwen3VLTextRMSNorm
    usual = kind.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
        return y

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = usual


def _to_double(value: Any) -> Any:
    """Vision features with every floating tensor widened: the tower ran once, in float32, for both sides."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_to_double(x) for x in value)
    if isinstance(value, dict):
        return type(value)(**{name: _to_double(x) for name, x in value.items()})
    return value


def show(found: dict[str, list[Off]], n_tokens: int) -> None:
    table = Table("comparison", "largest", "relative", "median token", f"tokens over {BAR:g}", "GSDs within")
    for name, rows in found.items():
        cells = max(r.largest for r in rows), max(r.largest / r.logit for r in rows)
        median, beyond = statistics.median(r.median for r in rows), statistics.mean(r.beyond for r in rows)
        within = sum(r.largest <= BAR for r in rows)
        table.add_row(name, *(f"{x:.1e}" for x in cells), f"{median:.1e}", f"{beyond:.2%}", f"{within} of {len(rows)}")
    screen = Console()
    screen.print(table)
    logit = max(row.logit for rows in found.values() for row in rows)
    screen.print(f"{n_tokens} question tokens; largest logit {logit:.2f}")


if __name__ == "__main__":
    sys.exit(main())
