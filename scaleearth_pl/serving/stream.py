"""Tokens to callers, as they come; and queries to passes, as they fit."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.model.pass_size import PassSize
from scaleearth_pl.serving.query import Prepared

OnToken = Callable[[int, int, str], None]
"""Called with (number of the query, number of its question, the answer so far) as tokens arrive."""


def passes(
    prepared: Sequence[Prepared], max_batch_tokens: int, max_new_tokens: int
) -> Iterator[tuple[int, list[Prepared]]]:
    """Consecutive queries that fit into a pass together (at least one each), with the number of the first."""
    part: list[Prepared] = []
    size: PassSize | None = None
    first = 0
    for number, query in enumerate(prepared):
        alone = query.size(max_new_tokens)
        joined = alone if size is None else size + alone
        if part and not joined.fits(max_batch_tokens):
            yield first, part
            part, first, joined = [], number, alone
        part.append(query)
        size = joined
    if part:
        yield first, part


def shifted(on_token: OnToken | None, first: int) -> OnToken:
    """`on_token` for a pass whose first query has the number `first`; nobody listens to None."""
    if on_token is None:
        return lambda query, question, text: None  # noqa: ARG005
    return lambda query, question, text: on_token(first + query, question, text)


class Streams:
    """Turns the tokens of all branches, step by step, into calls of `on_token`; a branch is silent once it ended."""

    def __init__(self, prompts: TreeBatch, on_token: OnToken, decode: Callable[[Sequence[int]], str], end: int) -> None:
        trees = prompts.tree_of_branch_B.tolist()
        self._place = [(tree, trees[:branch].count(tree)) for branch, tree in enumerate(trees)]
        self._rows: list[list[int]] = [[] for _ in trees]
        self._open = [True] * len(trees)
        self._on_token, self._decode, self._end = on_token, decode, end

    def __call__(self, token_B: Tensor) -> None:
        """One step's tokens."""
        for branch, token in enumerate(token_B.tolist()):
            self._open[branch] = self._open[branch] and token != self._end
            if self._open[branch]:
                self._rows[branch].append(token)
                self._on_token(*self._place[branch], self._decode(self._rows[branch]))
