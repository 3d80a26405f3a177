"""What one packed pass holds: tokens, which the prefill computes, and slots of the decoding cache, which stay in memory.

    n_tokens    of all prefixes and branches
    n_slots     trees x longest prefix  +  branches x (longest prompt + new tokens)          (`generate.py`'s cache)

The cache is a rectangle, so that a decoding step is one matrix product for all branches; its price is that the longest
question is paid for once for every question beside it: one of 4,000 tokens with 127 of ten are 5,270 tokens and 515,072
slots. A bound on tokens alone is therefore none on memory, and a pass is bounded by both, in serving and in evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

SLOTS_PER_TOKEN = 4
"""Cache slots of a pass, at most, for each token that it may hold. Four, because passes of like questions then end by their
tokens as they always did (full of prompts of 8 tokens and with the usual 24 new ones, a pass has 4 slots a token, and
of longer ones fewer), while memory stays within four times that of a pass whose every token is kept and no slot empty."""


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """Counts of a pass, or of one tree in it; lengths in tokens. Two sizes add up to that of the pass that holds both."""

    n_tokens: int
    n_trees: int
    n_branches: int
    longest_prefix: int
    longest_prompt: int
    max_new_tokens: int

    @classmethod
    def of(cls, *, n_tokens: int, prefix: int, prompts: Sequence[int], max_new_tokens: int) -> Self:
        """Of a pass that holds one tree alone.

        Args:
            n_tokens: of the tree.
            prefix: tokens of its prefix.
            prompts: tokens of each branch's prompt.
            max_new_tokens: of the longest answer.
        """
        return cls(
            n_tokens=n_tokens,
            n_trees=1,
            n_branches=len(prompts),
            longest_prefix=prefix,
            longest_prompt=max(prompts),
            max_new_tokens=max_new_tokens,
        )

    def __add__(self, other: "PassSize") -> "PassSize":
        return PassSize(
            n_tokens=self.n_tokens + other.n_tokens,
            n_trees=self.n_trees + other.n_trees,
            n_branches=self.n_branches + other.n_branches,
            longest_prefix=max(self.longest_prefix, other.longest_prefix),
            longest_prompt=max(self.longest_prompt, other.longest_prompt),
            max_new_tokens=max(self.max_new_tokens, other.max_new_tokens),
        )

    @property
    def n_slots(self) -> int:
        """Slots of the decoding cache, in which a token of every layer is kept."""
        own = self.n_branches * (self.longest_prompt + self.max_new_tokens)
        return self.n_trees * self.longest_prefix + own

    def fits(self, max_batch_tokens: int) -> bool:
        """Whether one pass may hold it."""
        return self.n_tokens <= max_batch_tokens and self.n_slots <= max_slots(max_batch_tokens)


def max_slots(max_batch_tokens: int) -> int:
    """Cache slots that a pass of so many tokens may have."""
    return SLOTS_PER_TOKEN * max_batch_tokens
