"""How the factor moves: over K, visual tokens and question length; and what gate and memory cost.

The law behind the curves: one question alone costs (V + L) tokens, K questions of one image (V + K L) / K, with V
visual and L text tokens. Their ratio, (V + L) / (V / K + L), is the *token ratio*; the measured factor differs by what is
not linear in tokens (vision tower, attention, padding, the peers' own overhead).
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bench.ladder import BATCH_SIZES
from bench.memory import peak_bytes
from bench.ours import Contender, LoraShape, build, forward_backward
from bench.peers import Peer
from bench.shapes import Bank, Shape, write_corpus
from bench.timing import interleave, rates, ratio, spread

KS = (1, 2, 4, 8, 16, 32, 64, 100)
VISUAL_TOKENS = (64, 256, 1024)
CLAUSES = (0.5, 4.0, 16.0)
PREFIX_TEXT = 5
"""Tokens of a prefix besides the visual ones."""


def over_k(bank: Bank, lora: LoraShape, *, rounds: int, micro_tokens: int) -> list[dict[str, float]]:
    """Rate of ours against K on one image's questions."""
    model = build(bank.processor, lora)
    work = {}
    for k in (k for k in KS if k <= bank.shape.questions):
        n = k if k > 8 else max(k, 8)
        work[k] = Contender(
            model, bank, range(n if k < 32 else bank.shape.questions // k * k), k=k, micro_tokens=micro_tokens
        )
    seconds = interleave({str(k): c.work for k, c in work.items()}, rounds=rounds)
    rate = rates(seconds)
    return [
        {"k": k, "qas_per_second": rate[str(k)], "ratio_to_k1": rate[str(k)] / rate["1"], "token_ratio": _law(bank, k)}
        for k in work
    ]


def over_shapes(
    folder: Path, lora: LoraShape, shapes: dict[float, Shape], *, rounds: int, micro_tokens: int
) -> list[dict[str, float]]:
    """Ours at the most questions an image has, for each shape, against T2 at the batch size that is best for it."""
    points = []
    for number, (x, shape) in enumerate(shapes.items()):
        bank = Bank(write_corpus(folder / f"shape-{number}", shape), shape)
        peer, model = Peer("T2", bank, folder, lora=lora), build(bank.processor, lora)
        ours = Contender(model, bank, range(shape.questions), k=shape.questions, micro_tokens=micro_tokens)
        t2 = {str(size): peer.turn(size) for size in BATCH_SIZES if size <= len(bank)}
        seconds = interleave(t2 | {"ours": ours.work}, rounds=rounds)
        rate = rates(seconds)
        best = max(t2, key=lambda size: rate[size])
        points.append(
            {
                "x": x,
                "visual_tokens": shape.visual_tokens,
                "branch_tokens": bank.n_branch_tokens,
                "k": shape.questions,
                "t2_batch_size": int(best),
                "t2": rate[best],
                "ours": rate["ours"],
                "ratio_to_t2": 1 / ratio(seconds, "ours", best),
                "token_ratio": _law(bank, shape.questions),
            }
        )
    return points


def over_visual_tokens(folder: Path, lora: LoraShape, **how: int) -> list[dict[str, float]]:
    """Ours against T2 at 64, 256 and 1,024 visual tokens."""
    shapes = {float(v): Shape(visual_tokens=v, images=1) for v in VISUAL_TOKENS}
    return over_shapes(folder / "visual", lora, shapes, **how)


def over_length(folder: Path, lora: LoraShape, **how: int) -> list[dict[str, float]]:
    """Ours against T2 as questions grow from 20 to 100 tokens."""
    shapes = {c: dataclasses.replace(Shape(images=1), clauses=c) for c in CLAUSES}
    return over_shapes(folder / "length", lora, shapes, **how)


def gate_price(bank: Bank, ranks: tuple[int, ...], *, rounds: int, micro_tokens: int) -> list[dict[str, float]]:
    """Time of a whole step (forward, backward, AdamW) of gated over plain LoRA, the same code path; several trees each."""
    rows = []
    for rank in ranks:
        for k in (16, bank.shape.questions):
            work = {}
            for gate in ("continuous", "open"):
                model = build(bank.processor, LoraShape(rank=rank), gate=gate)
                trained = [p for p in model.parameters() if p.requires_grad]
                optimizer = torch.optim.AdamW(trained, lr=1e-6)
                ours = Contender(
                    model,
                    bank,
                    range(bank.shape.questions // k * k if k == 16 else 2 * bank.shape.questions),
                    k=k,
                    micro_tokens=micro_tokens,
                    optimizer=optimizer,
                )
                work[gate] = ours.work
            seconds = interleave(work, rounds=rounds)
            price = [a / b for a, b in zip(seconds["continuous"], seconds["open"], strict=True)]
            rows.append(
                {"rank": rank, "k": k, "time_ratio": ratio(seconds, "continuous", "open"), "spread": spread(price)}
            )
    return rows


def memory_over_k(folder: Path, lora: LoraShape, *, token_budget: int) -> list[dict[str, float]]:
    """Peak bytes of a step at one token budget, as questions per image go from 10 to 100."""
    shape = Shape(images=max(2, token_budget // 400))
    bank = Bank(write_corpus(folder / "memory", shape), shape)
    model, points = build(bank.processor, lora), []
    for k in (10, 20, 50, 100):
        batch = bank.trees(_fill(bank, k, token_budget), k=k)
        n_tokens = len(batch.input_ids_T)

        def work(batch: Any = batch) -> None:
            forward_backward(model, [batch])
            model.zero_grad()

        work()
        peak = peak_bytes(work)
        points.append({"k": k, "tokens": n_tokens, "peak_bytes": peak, "bytes_per_token": peak / n_tokens})
    return points


def _fill(bank: Bank, k: int, token_budget: int) -> list[int]:
    """Questions of as many images as fit, `k` of each; the last image has fewer, so that all K fill the budget alike."""
    numbers: list[int] = []
    room, image = token_budget, 0
    while room > 0:
        first = image * bank.shape.questions
        lengths = [len(b.prompt) + len(b.answer) for b in bank.tree(list(range(first, first + k))).branches]
        room -= bank.shape.visual_tokens + PREFIX_TEXT
        for offset, length in enumerate(lengths):
            if room >= length:
                numbers.append(first + offset)
            room -= length
        image += 1
    return numbers


def _law(bank: Bank, k: int) -> float:
    prefix, text = bank.shape.visual_tokens + PREFIX_TEXT, bank.n_branch_tokens
    return (prefix + text) / (prefix / k + text)
