r"""Image and question to model inputs, in Qwen3-VL's own template.

    prefix   <|im_start|>user\n  <|vision_start|> <|image_pad|> * n <|vision_end|>   [GSD text of baseline B3]
    branch   question [options] <|im_end|>\n<|im_start|>assistant\n   answer <|im_end|>
             prompt, not supervised                                    supervised

Prefix and branch, prompt and answer are tokenised apart, so that what is trained token by token is what greedy
decoding meets. The image is resized to multiples of `patch_size * merge_size` by rounding *down*: enlarging invents
detail and would falsify the GSD's meaning, so it happens only to reach `min_pixels`, and is counted. (Hugging Face's
`smart_resize` rounds to the nearest multiple; equal for sizes that are multiples already.) Patches and normalisation
are those of `Qwen2VLImageProcessorPil`, bit for bit, at a fraction of its time: bytes are cut first and looked up then.

Legend: P patches, D = 3 * 2 * patch_size^2 numbers per patch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.gsd import check_gsd_m
from scaleearth_pl.core.sample import Question
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.data.tokenizer import TextEncoder

GsdText = Literal["none", "metres", "log"]

GSD_TEXT_RESERVE = 16
"""Tokens that the plan reserves for the GSD text in *every* variant, so that compared variants see the same plan."""

MAX_ASPECT = 200
"""Longest over shortest side; beyond it Qwen's vision tower is undefined."""

MEAN, STD, FRAMES = 0.5, 0.5, 2
"""Qwen3-VL's normalisation, the same for the three channels, and the frames of a patch: an image is its own second."""

# What becomes of each of the 256 grey values, in the order of operations (and roundings) of Hugging Face.
_NORMALISED = (((np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)) - np.float32(MEAN)) / np.float32(STD)


def with_options(question: str, options: Sequence[str] | None) -> str:
    """The question as it is asked: with its options on a line of their own."""
    return f"{question}\nOptions: {' | '.join(options)}" if options else question


def gsd_prompt(gsd_m: float | None, style: GsdText) -> str:
    """Text of baseline B3 after the image; three significant digits, a rounding of at most half a per cent.

    Args:
        gsd_m: metres per pixel of the pixels the model sees, None if unknown.
        style: "metres" writes the GSD, "log" its decimal logarithm, "none" nothing.
    """
    if style == "none":
        return ""
    if gsd_m is None:
        return " GSD: unknown.\n" if style == "metres" else " scale unknown\n"
    if style == "log":
        return f" scale {math.log10(check_gsd_m(gsd_m)):.3f}\n"
    digits = max(0, 2 - math.floor(math.log10(check_gsd_m(gsd_m))))
    return f" GSD: {gsd_m:.{digits}f} m per pixel.\n"


@dataclass(frozen=True, kw_only=True)
class ProcessedImage:
    """Patches of one image as the vision tower takes them; `grid` is (1, rows, columns) in patches."""

    pixel_values_PD: Tensor
    grid: tuple[int, int, int]
    seen_size: tuple[int, int]
    upsampled: bool


@dataclass(frozen=True, kw_only=True)
class BranchTokens:
    """Ids of one question: the prompt, and what must follow it, the end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Processor:
    """Turns images and questions into patches and ids.

    Args:
        tokenizer: from `load_tokenizer`.
        min_pixels: pixels below which an image is enlarged.
        max_pixels: pixels above which it is reduced.
        patch_size: side of a patch of the vision tower.
        merge_size: patches merged into one token, per side.
        gsd_text: style of baseline B3.

    Raises:
        ConfigError: impossible sizes, or a GSD text that does not fit `GSD_TEXT_RESERVE`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        min_pixels: int,
        max_pixels: int,
        patch_size: int = 16,
        merge_size: int = 2,
        gsd_text: GsdText = "none",
    ) -> None:
        self.factor = patch_size * merge_size
        if not self.factor**2 <= min_pixels <= max_pixels:
            raise ConfigError(
                f"min_pixels must lie between one token ({self.factor**2}) and max_pixels",
                field="min_pixels, max_pixels",
                value=(min_pixels, max_pixels),
            )
        self.tokenizer, self.min_pixels, self.max_pixels = tokenizer, min_pixels, max_pixels
        self.merge_size, self.patch_size, self.gsd_text = merge_size, patch_size, gsd_text
        self._text = TextEncoder(tokenizer)
        self._start = (self._text.id_of("<|im_start|>"), *self._text.encode("user\n"))
        self._turn = (self._text.id_of("<|im_end|>"), *self._text.encode("\n"), self._text.id_of("<|im_start|>"))
        self.end_id = self._text.id_of("<|im_end|>")
        self.image_token_id = self._text.id_of("<|image_pad|>")
        self._check_reserve()

    @property
    def token_ids(self) -> TokenIds:
        """Ids of the special tokens, for the model's configuration."""
        return TokenIds(
            image_pad=self.image_token_id,
            video_pad=self._text.id_of("<|video_pad|>"),
            vision_start=self._text.id_of("<|vision_start|>"),
            vision_end=self._text.id_of("<|vision_end|>"),
            im_end=self.end_id,
            pad=self._text.id_of("<|endoftext|>"),
            vocab_size=len(self.tokenizer),
        )

    def save(self, folder: Path) -> None:
        """Writes tokenizer and image processor beside a model, as Hugging Face files."""
        self.tokenizer.save_pretrained(str(folder))
        saved = Qwen2VLImageProcessorPil(
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=FRAMES,
            image_mean=[MEAN] * 3,
            image_std=[STD] * 3,
            size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
        )
        saved.save_pretrained(str(folder))

    @property
    def lengths_key(self) -> str:
        """Hash of all that decides token lengths; the GSD text is left out on purpose (it is reserved)."""
        text = f"{self._text.hash}|{self.min_pixels}|{self.max_pixels}|{self.patch_size}|{self.merge_size}"
        return hashlib.sha256(text.encode()).hexdigest()

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that the model sees of an image of this size; `SampleError` for absurd proportions."""
        if min(width, height) < 1 or max(width, height) / min(width, height) > MAX_ASPECT:
            raise SampleError(
                f"sides differ by more than {MAX_ASPECT}",
                field="width, height",
                value=(width, height),
                remedy="tile it",
            )
        shrink = math.sqrt(max(1.0, width * height / self.max_pixels))
        seen = self._down(width / shrink), self._down(height / shrink)
        if shrink > 1 or seen[0] * seen[1] >= self.min_pixels:
            return seen
        grow = math.sqrt(max(1.0, self.min_pixels / (width * height)))
        enlarged = self._up(width * grow), self._up(height * grow)
        return enlarged if enlarged[0] * enlarged[1] <= self.max_pixels else seen

    def n_image_tokens(self, width: int, height: int) -> int:
        """Visual tokens of an image of this native size."""
        seen = self.seen_size(width, height)
        return seen[0] * seen[1] // self.factor**2

    def image(self, image: Image.Image) -> ProcessedImage:
        """Resizes an RGB image once (bicubic with anti-aliasing) and cuts it into normalised float32 patches."""
        seen = self.seen_size(*image.size)
        resized = image if seen == image.size else image.resize(seen, Image.Resampling.BICUBIC)
        return ProcessedImage(
            pixel_values_PD=torch.from_numpy(_patches(np.asarray(resized), self.patch_size, self.merge_size)),
            grid=(1, seen[1] // self.patch_size, seen[0] // self.patch_size),
            seen_size=seen,
            upsampled=seen[0] > image.width or seen[1] > image.height,
        )

    def prefix(self, n_image_tokens: Sequence[int], gsd_m: float | None) -> tuple[int, ...]:
        """Ids before the questions: one vision block an image, then the GSD text of B3 if there is one."""
        start, end = self._text.id_of("<|vision_start|>"), self._text.id_of("<|vision_end|>")
        blocks = [id_ for n in n_image_tokens for id_ in (start, *[self.image_token_id] * n, end)]
        return (*self._start, *blocks, *self._text.encode(gsd_prompt(gsd_m, self.gsd_text)))

    def prefix_length(self, width: int, height: int, n_images: int = 1) -> int:
        """Length of the prefix of images of this native size, without GSD text."""
        return len(self._start) + n_images * (2 + self.n_image_tokens(width, height))

    def prompt(
        self,
        question: str,
        *,
        options: Sequence[str] | None = None,
        turns: Sequence[tuple[str, str]] | None = None,
    ) -> tuple[int, ...]:
        """Ids of a question up to the point where the answer begins; earlier turns come first, unsupervised."""
        ids: list[int] = []
        for asked, answered in turns or ():
            ids += [*self._ask(asked), *self._text.encode(answered), *self._turn, *self._text.encode("user\n")]
        return (*ids, *self._ask(with_options(question, options)))

    def branch(self, question: Question) -> BranchTokens:
        """Ids of a question and its answer."""
        prompt = self.prompt(question.question, options=question.options, turns=question.turns)
        return BranchTokens(prompt=prompt, answer=(*self._text.encode(question.answer), self.end_id))

    def _ask(self, text: str) -> tuple[int, ...]:
        return (*self._text.encode(text), *self._turn, *self._text.encode("assistant\n"))

    def _down(self, side: float) -> int:
        return max(self.factor, math.floor(side / self.factor + 1e-9) * self.factor)

    def _up(self, side: float) -> int:
        return max(self.factor, math.ceil(side / self.factor - 1e-9) * self.factor)

    def _check_reserve(self) -> None:
        for gsd_m in (None, *(m * 10.0**e for e in range(-2, 4) for m in (1.234, 3.14, 9.99))):
            n_tokens = len(self._text.encode(gsd_prompt(gsd_m, self.gsd_text)))
            if n_tokens > GSD_TEXT_RESERVE:
                raise ConfigError(
                    f"GSD text takes {n_tokens} tokens, {GSD_TEXT_RESERVE} are reserved",
                    field="gsd_text",
                    value=gsd_prompt(gsd_m, self.gsd_text),
                    remedy="use a tokenizer that was trained on it (tokenizer: tiny does)",
                )


def _patches(pixels_HWC: NDArray[np.uint8], patch_size: int, merge_size: int) -> NDArray[np.float32]:
    """Patches [P, D] in Qwen's order: merged groups row by row, inside a group row by row; D = channel, frame, y, x."""
    height, width, channels = pixels_HWC.shape
    side = patch_size * merge_size
    cut = pixels_HWC.reshape(height // side, merge_size, patch_size, width // side, merge_size, patch_size, channels)
    grouped = cut.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    frames = np.broadcast_to(grouped, (*grouped.shape[:5], FRAMES, *grouped.shape[6:]))
    patches_PD: NDArray[np.float32] = _NORMALISED[frames.reshape(-1, channels * FRAMES * patch_size**2)]
    return patches_PD
