"""Generated tree batches for tests of attention, backbone and generation (no tokenizer, no image files)."""

import numpy as np
import torch

from scaleearth_pl.core.batch import IGNORE, BranchInfo, TreeBatch, TreeInfo

IDS = {"image_pad": 5, "video_pad": 6, "vision_start": 3, "vision_end": 4, "im_end": 2, "pad": 0}
VOCAB = 64
N_SUPERVISED = 3


def dense_tree_mask(batch):
    """True where a token (row) sees a token (column): the definition that the fast forms are tested against."""
    n_tokens, device = batch.input_ids_T.shape[0], batch.input_ids_T.device
    branch_T = torch.full((n_tokens,), -1, device=device)
    for i, (start, length) in enumerate(zip(batch.branch_start_B.tolist(), batch.branch_len_B.tolist(), strict=True)):
        branch_T[start : start + length] = i
    tree_T = batch.tree_of_token_T
    same_tree = tree_T[:, None] == tree_T[None]
    visible = (branch_T[None] == -1) | (branch_T[:, None] == branch_T[None])
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()
    return same_tree & visible & causal


def prefix_of(grids, rng):
    """Token ids and m-rope positions of a prefix that holds images of these (h, w) patch grids."""
    ids, positions, start = [], [], 0

    def text(tokens):
        nonlocal start
        for token in tokens:
            ids.append(int(token))
            positions.append((start,) * 3)
            start += 1

    text(rng.integers(10, VOCAB, 2))
    for h, w in grids:
        text([IDS["vision_start"]])
        for row in range(h // 2):
            for column in range(w // 2):
                ids.append(IDS["image_pad"])
                positions.append((start, start + row, start + column))
        start += max(h, w) // 2
        text([IDS["vision_end"]])
    return ids, positions, start


def make_batch(shape, *, seed=0, supervised=True, patch_dim=1536):
    """`shape`: for each tree (list of (h, w) grids in patches, list of branch lengths)."""
    rng = np.random.default_rng(seed)
    ids, positions, targets, tree_of_token, p_start, p_len, b_start, b_len, b_tree = ([] for _ in range(9))
    grids, image_tree = [], []
    for tree, (tree_grids, lengths) in enumerate(shape):
        prefix, prefix_positions, after = prefix_of(tree_grids, rng)
        p_start.append(len(ids))
        p_len.append(len(prefix))
        ids += prefix
        positions += prefix_positions
        targets += [IGNORE] * len(prefix)
        grids += [(1, h, w) for h, w in tree_grids]
        image_tree += [tree] * len(tree_grids)
        for length in lengths:
            tokens = rng.integers(10, VOCAB, length).tolist()
            b_start.append(len(ids))
            b_len.append(length)
            b_tree.append(tree)
            ids += tokens
            positions += [(after + i,) * 3 for i in range(length)]
            n = min(N_SUPERVISED, length) if supervised else 0
            targets += [IGNORE] * (length - n) + ([*tokens[length - n + 1 :], IDS["im_end"]] if n else [])
        tree_of_token += [tree] * (len(ids) - len(tree_of_token))
    n_patches = sum(t * h * w for t, h, w in grids)
    n_trees = len(shape)
    return TreeBatch(
        input_ids_T=torch.tensor(ids),
        target_ids_T=torch.tensor(targets),
        position_ids_3T=torch.tensor(positions).T.contiguous(),
        tree_of_token_T=torch.tensor(tree_of_token),
        prefix_start_G=torch.tensor(p_start),
        prefix_len_G=torch.tensor(p_len),
        branch_start_B=torch.tensor(b_start, dtype=torch.long),
        branch_len_B=torch.tensor(b_len, dtype=torch.long),
        tree_of_branch_B=torch.tensor(b_tree, dtype=torch.long),
        pixel_values_PD=torch.tensor(rng.standard_normal((n_patches, patch_dim)), dtype=torch.float32),
        image_grid_I3=torch.tensor(grids, dtype=torch.long).view(-1, 3),
        tree_of_image_I=torch.tensor(image_tree, dtype=torch.long),
        log10_gsd_G=torch.zeros(n_trees),
        sigma_log10_G=torch.full((n_trees,), 0.01),
        nll_weight_G=torch.ones(n_trees),
        gate_draw_G=torch.ones(n_trees),
        max_prefix_len=max(p_len),
        max_branch_len=max(b_len, default=0),
        trees=tuple(_tree_info(i) for i in range(n_trees)),
        branches=tuple(_branch_info(tree, i) for i, tree in enumerate(b_tree)),
    )


def _tree_info(i):
    return TreeInfo(
        image_id=f"i{i}", place_id=f"p{i}", source="fake", gsd_m=1.0, effective_tier="mid", has_scale_cue=True
    )


def _branch_info(tree, i):
    return BranchInfo(tree=tree, qa_id=f"q{i}", type="t", family="f", question="?", answer="!", options=None)


def single(batch, branch):
    """One branch with its prefix as a plain sequence: keyword arguments of transformers' own forward and generate."""
    tree = int(batch.tree_of_branch_B[branch])
    rows = [_span(batch.prefix_start_G[tree], batch.prefix_len_G[tree])]
    rows.append(_span(batch.branch_start_B[branch], batch.branch_len_B[branch]))
    ids = batch.input_ids_T[torch.cat(rows)][None]
    patches_I = batch.image_grid_I3.prod(-1)
    image_of_patch = torch.repeat_interleave(torch.arange(len(patches_I)), patches_I)
    mine_I = batch.tree_of_image_I == tree
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IDS["image_pad"]).int(),
        "pixel_values": batch.pixel_values_PD[mine_I[image_of_patch]],
        "image_grid_thw": batch.image_grid_I3[mine_I],
    }


def _span(start, length):
    return torch.arange(int(start), int(start + length))


def sharpen(model, factor=3.0):
    """Scales up all matrices, so that a random model's answers depend on what it attends to."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


RAGGED = [([(4, 6)], [5, 1, 9]), ([(2, 4), (4, 4)], [7]), ([(6, 6)], [3, 4, 4, 2])]
"""Three trees: ragged prefixes, branches and branch counts; the second holds two images."""
