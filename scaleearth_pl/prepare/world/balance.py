"""Which candidates are asked: answers are evened out inside every cell, then images get their number of questions.

A cell holds what someone who does not see the image cannot tell apart: kind of question, noun, GSD bin. If one answer
filled it, question and GSD would give it away. So a value is kept at most as often as the median of its cell's values
(two-valued cells: as often as the rarer one), and a cell in which only one value occurs is not asked. What this
throws away comes back only to lift an image to its smallest number of questions, rarest values first.

All choices are drawn from hashes of image and question, so they depend on neither order nor number of processes.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from scaleearth_pl.prepare.world.questions import Candidate
from scaleearth_pl.prepare.world.wording import draw

PRESENCE_PER_IMAGE = 3
"""Is there ...? could be asked ten times an image and would drown the rest."""
FEW = 6
"""A cell with fewer questions than this may be too small to hold a second value."""
TWO_VALUED = ("larger_than", "which_size", "which_thing", "presence", "setting", "orientation")

Place = tuple[int, int]
"""Number of the image, number of its candidate."""


def choose(candidates: Sequence[Sequence[Candidate]], *, least: int, most: int) -> list[list[Candidate]]:
    """Questions of every image, in a drawn order.

    Args:
        candidates: all candidates, image by image.
        least: questions an image gets if it has as many candidates.
        most: questions an image gets at most.
    """
    kept = even_out(candidates)
    used = Counter(_slot(candidates[i][k]) for i, k in kept)
    by_image: dict[int, list[int]] = defaultdict(list)
    for i, k in sorted(kept):
        by_image[i].append(k)
    return [_fill(row, i, by_image[i], used, least, most) for i, row in enumerate(candidates)]


def even_out(candidates: Sequence[Sequence[Candidate]]) -> set[Place]:
    """Candidates that remain when every cell is evened out."""
    cells: dict[tuple[str | int, ...], dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(candidates):
        for k in _without_surplus(row, i):
            cells[row[k].cell][row[k].value].append((i, k))
    kept: set[Place] = set()
    for cell, by_value in cells.items():
        limit = cell_limit(str(cell[0]), [len(places) for places in by_value.values()])
        for places in by_value.values():
            kept.update(sorted(places, key=lambda p: draw(f"{p}|{candidates[p[0]][p[1]].question}"))[:limit])
    return kept


def cell_limit(kind: str, counts: Sequence[int]) -> int:
    """How often a value may be kept in a cell with these counts of values."""
    if len(counts) < 2:
        return 0 if kind in TWO_VALUED or sum(counts) >= FEW else 1
    return min(counts) if kind in TWO_VALUED or len(counts) == 2 else math.ceil(statistics.median(counts))


def _without_surplus(row: Sequence[Candidate], image: int) -> list[int]:
    asked = [k for k, c in enumerate(row) if c.type == "presence"]
    surplus = set(sorted(asked, key=lambda k: draw(f"{image}|{row[k].question}"))[PRESENCE_PER_IMAGE:])
    return [k for k in range(len(row)) if k not in surplus]


def _fill(
    row: Sequence[Candidate], image: int, kept: list[int], used: Counter[tuple[str | int, ...]], least: int, most: int
) -> list[Candidate]:
    order = sorted(kept, key=lambda k: draw(f"{image}|{row[k].question}"))[:most]
    if len(order) < least:
        spare = [k for k in range(len(row)) if k not in set(kept)]
        spare.sort(key=lambda k: (used[_slot(row[k])], draw(f"{image}|{row[k].question}")))
        for k in spare[: least - len(order)]:
            used[_slot(row[k])] += 1
            order.append(k)
    return [row[k] for k in order]


def _slot(candidate: Candidate) -> tuple[str | int, ...]:
    return (*candidate.cell, candidate.value)
