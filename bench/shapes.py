"""What every contender is fed: the same images, the same questions, as trees or as plain sequences.

The corpus is synthetic but passes through the real writer, reader, processor and collator: JPEG images with the wanted
number of visual tokens (32 x 32 pixels each) and questions of about 20 tokens, template and answer included, of ragged
length. `plain_sequences` unfolds a tree batch into the padded batch that transformers' own forward takes, one sequence
per question, the image once per question. That one function feeds all peers, so no contender sees another token.

Legend: T tokens, B sequences, L longest sequence, P patches, D numbers per patch, I images.
"""

import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scaleearth_pl.core.batch import IGNORE, TreeBatch
from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.collate import Tree, collate, encode_tree
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.images import decode_rgb
from scaleearth_pl.data.processor import ProcessedImage, Processor
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.write import ShardWriter

PIXELS_PER_TOKEN = 32
"""Side of the square that one visual token covers: patches of 16, merged two by two."""

GSDS_M = (0.3, 3.0, 20.0)

_KINDS = (
    "residential",
    "industrial",
    "circular",
    "rectangular",
    "large",
    "small",
    "paved",
    "flooded",
    "wooded",
    "bare",
)
_THINGS = ("buildings", "roads", "fields", "ponds", "parks", "stadiums", "bridges", "farms", "runways", "quarries")
_PLACES = ("left of", "right of", "above", "below", "next to", "far from", "inside", "around")
_ANSWERS = ("yes", "no", "three", "rural", "urban", "forest", "between 10 and 100", "0 m2")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A corpus: how many images, how many visual tokens each, how many questions each, how long.

    Args:
        visual_tokens: per image; a square number.
        questions: per image.
        images: of split train; a third of it (at least one) of split val.
        clauses: mean number of extra clauses of a question, 5 tokens each; lengthens sequences.
    """

    visual_tokens: int = 256
    questions: int = 100
    images: int = 3
    clauses: float = 0.5

    @property
    def side(self) -> int:
        """Pixels per side."""
        return math.isqrt(self.visual_tokens) * PIXELS_PER_TOKEN


def write_corpus(root: Path, shape: Shape, *, seed: int = 0) -> Path:
    """Writes the corpus; equal shapes and seeds give equal bytes. Returns `root`."""
    with ShardWriter(root, corpus="bench", samples_per_shard=64, content_hash=str(seed)) as writer:
        for split, count in (("train", shape.images), ("val", max(1, shape.images // 3))):
            for number in range(count):
                rng = np.random.default_rng([seed, number, split == "val"])
                writer.write(_sample(rng, split, number, shape), _jpeg(rng, shape.side), "jpg")
    return root


def data_module(root: Path, shape: Shape, *, k: int, global_batch_tokens: int, num_workers: int = 0, **budget: int):
    """The project's own DataModule over the corpus, at most `k` questions a tree."""
    return GeoScaleDataModule(
        root=str(root),
        global_batch_tokens=global_batch_tokens,
        max_branches=k,
        num_workers=num_workers,
        max_pixels=shape.side**2,
        val_splits=(),
        test_splits=(),
        predict_splits=(),
        **budget,
    )


class Bank:
    """All questions of the corpus, numbered image after image; the same numbers mean the same QAs for everybody.

    Args:
        root: the corpus.
        shape: what it was written with.
        processor: default that of the project's own DataModule.
        cached: decode and cut each image once (what a tuned trainer does), or once per question.
        device: where batches go.
    """

    def __init__(
        self,
        root: Path,
        shape: Shape,
        *,
        processor: Processor | None = None,
        cached: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.index = ShardIndex.load(root)
        self.root, self.shape, self.cached, self.device = root, shape, cached, device or torch.device("cpu")
        self.processor = processor or data_module(root, shape, k=1, global_batch_tokens=1).processor
        self.rows = [int(row) for row in self.index.rows(("train",))]
        self._reader, self._images = ShardReader(self.index), dict[int, tuple[Sample, ProcessedImage]]()

    def __len__(self) -> int:
        return len(self.rows) * self.shape.questions

    def uncached(self) -> "Bank":
        """The same questions; every one reads and decodes its image again."""
        return Bank(self.root, self.shape, processor=self.processor, cached=False, device=self.device)

    @cached_property
    def n_branch_tokens(self) -> float:
        """Mean tokens per question, template and answer included."""
        batch = self.trees(range(len(self)), k=self.shape.questions)
        return float(batch.branch_len_B.float().mean())

    def image(self, number: int) -> tuple[Sample, ProcessedImage]:
        """Sample and patches of image `number`."""
        if number in self._images:
            return self._images[number]
        sample, data = self._reader.read(self.rows[number])
        size, where = (sample.width, sample.height), self.index.where(self.rows[number])
        found = sample, self.processor.image(decode_rgb(data, "jpg", size=size, where=where))
        if self.cached:
            self._images[number] = found
        return found

    def tree(self, numbers: list[int]) -> Tree:
        """Questions of one image as one tree."""
        sample, image = self.image(numbers[0] // self.shape.questions)
        asked = [sample.qas[n % self.shape.questions] for n in numbers]
        return encode_tree(sample, [image], asked, self.processor, boundaries=TierBoundaries())

    def trees(self, numbers: range | list[int], *, k: int) -> TreeBatch:
        """These questions in trees of up to `k`, none of which spans two images; one micro-batch on the device."""
        return self._on_host(numbers, k=k).to(self.device)

    def _on_host(self, numbers: range | list[int], *, k: int) -> TreeBatch:
        groups: list[list[int]] = []
        for n in numbers:
            same = groups and len(groups[-1]) < k and groups[-1][0] // self.shape.questions == n // self.shape.questions
            if same:
                groups[-1].append(n)
            else:
                groups.append([n])
        return collate([self.tree(group) for group in groups])

    def sequences(self, numbers: range | list[int]) -> dict[str, Tensor]:
        """These questions as a padded batch, one sequence each."""
        host = plain_sequences(self._on_host(numbers, k=1), self.processor)
        return {name: tensor.to(self.device) for name, tensor in host.items()}


def plain_sequences(batch: TreeBatch, processor: Processor) -> dict[str, Tensor]:
    """Every branch of a tree batch with its prefix and image as one row, right-padded; inputs of transformers' forward.

    Labels are at the token itself, as transformers wants them (it shifts by one).
    """
    ids = processor.token_ids
    spans = [
        torch.cat((_span(batch.prefix_start_G[g], batch.prefix_len_G[g]), _span(start, length)))
        for g, start, length in zip(batch.tree_of_branch_B, batch.branch_start_B, batch.branch_len_B, strict=True)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids_BL = pad([batch.input_ids_T[rows] for rows in spans], batch_first=True, padding_value=ids.pad)
    mask_BL = pad([torch.ones_like(rows) for rows in spans], batch_first=True)
    label_BL = pad([_shifted(batch.target_ids_T[rows]) for rows in spans], batch_first=True, padding_value=IGNORE)
    patches_I = batch.image_grid_I3.prod(-1)
    patches = batch.pixel_values_PD.split(patches_I.tolist())
    images_of = [(batch.tree_of_image_I == g).nonzero()[:, 0].tolist() for g in batch.tree_of_branch_B]
    return {
        "input_ids": input_ids_BL,
        "attention_mask": mask_BL,
        "labels": label_BL,
        "mm_token_type_ids": (input_ids_BL == ids.image_pad).int(),
        "pixel_values": torch.cat([patches[i] for images in images_of for i in images]),
        "image_grid_thw": torch.stack([batch.image_grid_I3[i] for images in images_of for i in images]),
    }


def _span(start: Tensor, length: Tensor) -> Tensor:
    return torch.arange(int(start), int(start + length))


def _shifted(target_L: Tensor) -> Tensor:
    return torch.cat((torch.full((1,), IGNORE), target_L[:-1]))


def _sample(rng: np.random.Generator, split: str, number: int, shape: Shape) -> Sample:
    gsd_m = GSDS_M[number % len(GSDS_M)]
    return Sample(
        source="bench",
        split=split,
        image_id=f"{split}-{number:05d}",
        width=shape.side,
        height=shape.side,
        gsd_m_native=gsd_m,
        gsd_provenance=Provenance.EXACT,
        tier=TierBoundaries().tier_of(gsd_m),
        qas=tuple(_question(rng, i, shape.clauses) for i in range(shape.questions)),
    )


def _question(rng: np.random.Generator, number: int, clauses: float) -> Question:
    def some() -> str:
        return f"{rng.choice(_KINDS)} {rng.choice(_THINGS)}"

    text = f"Are there {some()} {rng.choice(_PLACES)} the {some()}"
    text += "".join(f" and {rng.choice(_PLACES)} the {some()}" for _ in range(rng.poisson(clauses)))
    return Question(
        id=f"q{number}", type="bench", family="other", question=f"{text}?", answer=str(rng.choice(_ANSWERS))
    )


def _jpeg(rng: np.random.Generator, side: int) -> bytes:
    """Land in large patches with fine texture: about as many bytes per pixel as aerial photographs."""
    coarse = Image.fromarray(rng.integers(40, 216, (12, 12, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, 9, (side, side, 1))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=90)
    return stream.getvalue()
