"""Special tokens by id: what a backbone must know of the tokenizer that its data was made with."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of Qwen's special tokens in one tokenizer.

    Attributes:
        image_pad: placeholder of one visual token.
        video_pad: placeholder of one video token; never used here, but part of every Qwen3-VL configuration.
        vision_start: opens an image.
        vision_end: closes an image.
        im_end: ends a turn, and so an answer.
        pad: padding; only trainers other than ours need it.
        vocab_size: number of tokens, special ones included.
    """

    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    im_end: int
    pad: int
    vocab_size: int
