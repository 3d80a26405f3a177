"""Trees to one flat stream: an image prefix, its branches, next tree; no padding.

Positions follow Qwen3-VL's multimodal rope: three rows (time, height, width). Text counts up in all three; an image's
token (i, j) of the merged grid gets (s, s + i, s + j) where s is the position after the text before it, and the text
after it goes on at s + max(rows, columns). Every branch restarts right behind its own prefix, so that a branch sees
exactly the positions it would have alone: that makes a tree equal to its questions asked one by one.

Supervision is aligned to the position that predicts: the last prompt token has the first answer token as its target,
the last answer token the end token; the end token itself predicts nothing.

Legend: T tokens, G trees, B branches, I images, P patches, D numbers per patch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scaleearth_pl.core.batch import IGNORE, BranchInfo, TreeBatch, TreeInfo
from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import TierBoundaries, effective_gsd_m, log10_gsd
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.data.processor import BranchTokens, ProcessedImage, Processor

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """One image (or several of one GSD) with some of its questions, as ids and patches.

    `asked` are the questions whose ids are `branches`, in the same order.
    """

    prefix: tuple[int, ...]
    prefix_positions_3L: Ints
    next_position: int
    images: tuple[ProcessedImage, ...]
    branches: tuple[BranchTokens, ...]
    asked: tuple[Question, ...]
    info: TreeInfo
    sigma_log10: float
    nll_weight: float
    gate_draw: float

    @property
    def n_tokens(self) -> int:
        """Tokens of prefix and branches."""
        return len(self.prefix) + sum(len(b.prompt) + len(b.answer) for b in self.branches)


def gate_draw(image_id: str, epoch: int) -> float:
    """Uniform number in [0, 1) hashed from image and epoch: the same on every rank, worker and resumed run."""
    digest = hashlib.blake2b(f"{image_id}|{epoch}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 40) / 2**24


def prefix_positions(prefix: Sequence[int], image_token_id: int, grids: Sequence[tuple[int, int, int]]) -> Ints:
    """Rope positions [3, len(prefix) + 1]; the last column is where every branch starts.

    Args:
        prefix: ids, with one run of `image_token_id` for each image.
        image_token_id: id of the image placeholder.
        grids: (1, rows, columns) of each image in *merged* tokens.
    """
    position_3L = np.zeros((3, len(prefix) + 1), np.int64)
    place = position = 0
    waiting = list(grids)
    while place < len(prefix):
        if prefix[place] != image_token_id:
            position_3L[:, place] = position
            place, position = place + 1, position + 1
            continue
        frames, rows, columns = waiting.pop(0)
        span = slice(place, place + frames * rows * columns)
        position_3L[:, span] = position + np.indices((frames, rows, columns)).reshape(3, -1)
        place, position = span.stop, position + max(rows, columns)
    position_3L[:, -1] = position
    return position_3L


def encode_tree(
    sample: Sample,
    images: Sequence[ProcessedImage],
    asked: Sequence[Question],
    processor: Processor,
    *,
    boundaries: TierBoundaries,
    epoch: int = 0,
    n_parts: int = 1,
    text_gsd_m: float | None = None,
) -> Tree:
    """One sample as a tree.

    Args:
        sample: metadata; width and height are those of the stored image.
        images: its processed image(s).
        asked: the questions of this tree.
        processor: makes the ids.
        boundaries: tiers in which accuracies are reported.
        epoch: enters `gate_draw` only.
        n_parts: trees into which the image was split; each carries 1/n_parts of its NLL weight.
        text_gsd_m: GSD that baseline B3 is told instead of the metadata's, in metres per seen pixel.

    Raises:
        SampleError: the images of one tree have different effective GSDs, or a text spells a special token.
    """
    size = (sample.width, sample.height)
    native = sample.gsd_m_native
    seen_m = [effective_gsd_m(native, size, image.seen_size) for image in images] if native is not None else []
    if seen_m and max(seen_m) > min(seen_m) * (1 + 1e-6):
        raise SampleError("images of one tree differ in GSD", field="gsd_m", value=seen_m)
    gsd_m = seen_m[0] if seen_m else None
    grids = [_merged(image.grid, processor.merge_size) for image in images]
    prefix = processor.prefix([math.prod(grid) for grid in grids], text_gsd_m if text_gsd_m is not None else gsd_m)
    position_3L = prefix_positions(prefix, processor.image_token_id, grids)
    return Tree(
        prefix=prefix,
        prefix_positions_3L=position_3L[:, :-1],
        next_position=int(position_3L[0, -1]),
        images=tuple(images),
        branches=tuple(processor.branch(question) for question in asked),
        asked=tuple(asked),
        info=TreeInfo(
            image_id=sample.image_id,
            place_id=sample.place_id or sample.image_id,
            source=sample.source,
            gsd_m=gsd_m,
            effective_tier=str(boundaries.tier_of(gsd_m)),
            has_scale_cue=sample.has_scale_cue,
        ),
        sigma_log10=math.nan if sample.sigma_log10 is None else sample.sigma_log10,
        nll_weight=sample.gsd_provenance.nll_weight / n_parts,
        gate_draw=gate_draw(sample.image_id, epoch),
    )


def collate(trees: Sequence[Tree]) -> TreeBatch:
    """Trees in order to one micro-batch; at least one tree."""
    ids: list[int] = []
    targets: list[int] = []
    positions: list[Ints] = []
    prefix_start, branch_start, branch_len, tree_of_branch = [], [], [], []
    for number, tree in enumerate(trees):
        prefix_start.append(len(ids))
        ids += tree.prefix
        targets += [IGNORE] * len(tree.prefix)
        positions.append(tree.prefix_positions_3L)
        for branch in tree.branches:
            branch_start.append(len(ids))
            branch_len.append(len(branch.prompt) + len(branch.answer))
            tree_of_branch.append(number)
            ids += [*branch.prompt, *branch.answer]
            targets += [IGNORE] * (len(branch.prompt) - 1) + [*branch.answer, IGNORE]
            positions.append(np.broadcast_to(tree.next_position + np.arange(branch_len[-1]), (3, branch_len[-1])))
    images = [(number, image) for number, tree in enumerate(trees) for image in tree.images]
    prefix_len = [len(tree.prefix) for tree in trees]
    return TreeBatch(
        input_ids_T=torch.tensor(ids),
        target_ids_T=torch.tensor(targets),
        position_ids_3T=torch.from_numpy(np.concatenate(positions, axis=1)),
        tree_of_token_T=torch.repeat_interleave(torch.tensor([tree.n_tokens for tree in trees])),
        prefix_start_G=torch.tensor(prefix_start),
        prefix_len_G=torch.tensor(prefix_len),
        branch_start_B=torch.tensor(branch_start, dtype=torch.long),
        branch_len_B=torch.tensor(branch_len, dtype=torch.long),
        tree_of_branch_B=torch.tensor(tree_of_branch, dtype=torch.long),
        # numpy, because torch.cat wakes an OpenMP team that a busy host keeps waiting (0.15 s against 2 ms, measured).
        pixel_values_PD=torch.from_numpy(np.concatenate([image.pixel_values_PD.numpy() for _, image in images])),
        image_grid_I3=torch.tensor([image.grid for _, image in images]),
        tree_of_image_I=torch.tensor([number for number, _ in images]),
        log10_gsd_G=torch.tensor([_log10(tree.info.gsd_m) for tree in trees], dtype=torch.float32),
        sigma_log10_G=torch.tensor([tree.sigma_log10 for tree in trees], dtype=torch.float32),
        nll_weight_G=torch.tensor([tree.nll_weight for tree in trees], dtype=torch.float32),
        gate_draw_G=torch.tensor([tree.gate_draw for tree in trees], dtype=torch.float32),
        max_prefix_len=max(prefix_len),
        max_branch_len=max(branch_len, default=0),
        trees=tuple(tree.info for tree in trees),
        branches=tuple(_branch_info(n, question) for n, tree in enumerate(trees) for question in tree.asked),
    )


def _log10(gsd_m: float | None) -> float:
    return math.nan if gsd_m is None else log10_gsd(gsd_m)


def _merged(grid: tuple[int, int, int], merge_size: int) -> tuple[int, int, int]:
    return grid[0], grid[1] // merge_size, grid[2] // merge_size


def _branch_info(tree: int, question: Question) -> BranchInfo:
    return BranchInfo(
        tree=tree,
        qa_id=question.id,
        type=question.type,
        family=question.family,
        question=question.question,
        answer=question.answer,
        options=question.options,
    )
