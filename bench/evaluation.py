"""Evaluation: a hundred questions of one image answered in one packed pass, against `generate` at its best batch size.

Adapters are folded away on both sides, so only the way of generating differs. Weights are scaled up, so that a random
model's answers depend on the question; where they do not, agreement would mean nothing, and the section is an error.
Nothing ends early: both sides decode the same number of tokens.
"""

from typing import Any

import torch
from torch import Tensor

from bench.ours import plain_backbone
from bench.shapes import Bank
from bench.timing import interleave, rates, ratio
from scaleearth_pl.core.batch import TreeBatch
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.generate import greedy, prompts_only
from scaleearth_pl.model.shared_image import encode_images

BATCH_SIZES = (5, 10, 25, 50)
NO_END = -1
DISTINCT = 4
"""At most so many questions may share an answer, in the mean."""


def generation(bank: Bank, *, rounds: int, max_new_tokens: int = 6, n_questions: int = 100) -> dict[str, Any]:
    """Questions per second of both, how often their answers agree, and the baseline's rate by batch size."""
    tree = build_backbone(BackboneConfig(), token_ids=bank.processor.token_ids).eval()
    plain = plain_backbone(bank.processor).eval()
    _sharpen(tree)
    plain.load_state_dict(tree.state_dict())
    prompts = prompts_only(bank.trees(range(n_questions), k=n_questions))
    answers: dict[str, list[list[int]]] = {}

    def packed() -> int:
        features = encode_images(tree, prompts.pixel_values_PD, prompts.image_grid_I3)
        answers["packed"] = greedy(tree, prompts, features, max_new_tokens=max_new_tokens, eos=NO_END)
        return n_questions

    work: dict[str, Any] = {}
    sizes = [size for size in BATCH_SIZES if size <= n_questions]
    for size in sizes:
        batches = [
            _left_padded(bank, prompts, range(i, min(i + size, n_questions))) for i in range(0, n_questions, size)
        ]

        def batched(batches: list[dict[str, Tensor]] = batches, name: str = f"generate-{size}") -> int:
            rows = [_generate(plain, inputs, max_new_tokens) for inputs in batches]
            answers[name] = [row for some in rows for row in some]
            return n_questions

        work[f"generate-{size}"] = batched
    tried = rates(interleave(work, rounds=1, warm_up=False))
    best = max(tried, key=lambda name: tried[name])
    seconds = interleave({"packed": packed, best: work[best]}, rounds=rounds)
    same = [a == b for a, b in zip(answers["packed"], answers[best], strict=True)]
    distinct = len({tuple(row) for row in answers["packed"]})
    if DISTINCT * distinct < n_questions:
        raise RuntimeError(f"{n_questions} questions have {distinct} different answers: too few to compare")
    return {
        "packed_qas_per_second": rates(seconds)["packed"],
        "generate_qas_per_second": rates(seconds)[best],
        "generate_batch_size": int(best.rpartition("-")[2]),
        "generate_by_batch_size": {name.rpartition("-")[2]: rate for name, rate in tried.items()},
        "ratio": 1 / ratio(seconds, "packed", best),
        "identical_answers": sum(same) / len(same),
        "distinct_answers": distinct,
        "new_tokens": max_new_tokens,
    }


@torch.no_grad()
def _sharpen(model: torch.nn.Module, factor: float = 6.0) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(factor)


def _left_padded(bank: Bank, prompts: TreeBatch, branches: range) -> dict[str, Tensor]:
    """Prompts of these branches as `generate` wants them; one image per sequence, as a batched caller would send."""
    ids = bank.processor.token_ids
    prefix = prompts.input_ids_T[: int(prompts.prefix_len_G[0])]
    starts, lengths = prompts.branch_start_B.tolist(), prompts.branch_len_B.tolist()
    rows = [torch.cat((prefix, prompts.input_ids_T[starts[b] : starts[b] + lengths[b]])) for b in branches]
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids_BL = pad(rows, batch_first=True, padding_value=ids.pad, padding_side="left")
    mask_BL = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    n = len(rows)
    return {
        "input_ids": input_ids_BL,
        "attention_mask": mask_BL,
        "mm_token_type_ids": (input_ids_BL == ids.image_pad).int(),
        "pixel_values": prompts.pixel_values_PD.repeat(n, 1),
        "image_grid_thw": prompts.image_grid_I3.repeat(n, 1),
    }


def _generate(model: Any, inputs: dict[str, Tensor], max_new_tokens: int) -> list[list[int]]:
    with torch.no_grad():
        rows = model.generate(
            **inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False, eos_token_id=None
        )
    answers: list[list[int]] = rows[:, inputs["input_ids"].shape[1] :].tolist()
    return answers
