"""The ladder: everybody on the same questions in one process, in turn.

    T0 HF Trainer + PEFT   T1 TRL   T2 TRL tuned   T3 ours, one question a tree   ours at K = 16, 32, 100

Two figures each. *Step* is forward and backward over ready batches: the trainer's own training step. *Whole* is a real
training run, `Trainer.train()` or Lightning's `fit`, with optimizer, collator and image decoding in the same process.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.gradients import ours_error, peer_error
from bench.memory import peak_bytes
from bench.ours import Contender, LoraShape, build, train
from bench.peers import Peer
from bench.shapes import Bank
from bench.timing import interleave, rates, ratio, spread

OURS_KS = (16, 32, 100)
BATCH_SIZES = (1, 2, 4, 8, 16)
MICRO_TOKENS = 5_000
"""Tokens of one forward pass of ours: two trees of 100 questions."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's line. Rates in questions per second; `spread` is half the interquartile range over the median."""

    trainer: str
    k: int
    visual_tokens: int
    batch_size: int
    qas_per_second: float
    ratio_to_t2: float
    spread: float
    whole_qas_per_second: float
    whole_ratio_to_t2: float
    grad_rel_error: float
    peak_bytes: int
    hardware: str = ""
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class LadderSettings:
    """How long to measure.

    Args:
        rounds: turns of each contender.
        peer_questions: questions of one turn of a contender that reads one question per sequence.
        whole_rounds: real training runs of each.
        whole_steps: optimizer steps of one such run, the first not counted.
        grad_questions: questions of the gradient check of ours, which the plain reference reads one by one.
    """

    rounds: int = 5
    peer_questions: int = 32
    whole_rounds: int = 2
    whole_steps: int = 4
    grad_questions: int = 100


def best_batch_size(
    bank: Bank, folder: Path, lora: LoraShape, *, n_questions: int = 16
) -> tuple[int, dict[int, float]]:
    """T2's batch size of the highest rate, and the rate of each that was tried."""
    peers = {size: Peer("T2", bank, folder, lora=lora, batch_size=size) for size in BATCH_SIZES if size <= n_questions}
    work = {str(size): _turn(peer, range(n_questions), n_questions) for size, peer in peers.items()}
    found = {int(size): rate for size, rate in rates(interleave(work, rounds=3)).items()}
    return max(found, key=lambda size: found[size]), found


def ladder(bank: Bank, folder: Path, lora: LoraShape, settings: LadderSettings) -> dict[str, Any]:
    """Runs the ladder; rows and what led to them, as plain numbers."""
    size, tried = best_batch_size(bank, folder, lora)
    fresh = bank.uncached()
    peers = {
        "T0": Peer("T0", fresh, folder, lora=lora),
        "T1": Peer("T1", fresh, folder, lora=lora),
        "T2": Peer("T2", bank, folder, lora=lora, batch_size=size),
    }
    errors = {name: peer_error(peer, lora, range(peer.batch_size)) for name, peer in peers.items()}
    errors |= {name: ours_error(bank, lora, range(n), k=k) for name, k, n in _ours(bank, settings)}
    model = build(bank.processor, lora)
    numbers = range(min(len(bank), 2 * settings.peer_questions))
    work = {name: _turn(peer, numbers, settings.peer_questions) for name, peer in peers.items()}
    t3 = Contender(model, bank, range(settings.peer_questions), k=1, micro_tokens=MICRO_TOKENS)
    ours = {"T3": t3} | {
        f"ours-{k}": Contender(model, bank, range(_whole_trees(bank, k)), k=k, micro_tokens=MICRO_TOKENS)
        for k in _ks(bank)
    }
    seconds = interleave(work | {name: c.work for name, c in ours.items()}, rounds=settings.rounds)
    whole = interleave_whole(bank, folder, lora, peers, settings)
    peaks = {name: peak_bytes(lambda p=p: _one_batch(p)) for name, p in peers.items()}
    peaks |= {name: peak_bytes(c.work) for name, c in ours.items()}
    rate, whole_rate = rates(seconds), rates(whole)
    rows = [
        Row(
            trainer=name if name.startswith("T") else "ours",
            k=ours[name].k if name in ours else 1,
            visual_tokens=bank.shape.visual_tokens,
            batch_size=peers[name].batch_size if name in peers else 0,
            qas_per_second=rate[name],
            ratio_to_t2=1 / ratio(seconds, name, "T2"),
            spread=spread(seconds[name]),
            whole_qas_per_second=whole_rate[name],
            whole_ratio_to_t2=1 / ratio(whole, name, "T2"),
            grad_rel_error=errors[name],
            peak_bytes=peaks[name],
        )
        for name in seconds
    ]
    return {"rows": [asdict(row) for row in rows], "t2_batch_sizes": tried, "branch_tokens": bank.n_branch_tokens}


def interleave_whole(
    bank: Bank, folder: Path, lora: LoraShape, peers: dict[str, Peer], settings: LadderSettings
) -> dict[str, list[float]]:
    """Seconds per question of real training runs, by name, in turn."""
    runs: dict[str, Callable[[], float]] = {
        name: lambda peer=peer: peer.train(settings.whole_steps) for name, peer in peers.items()
    }
    for name, k in [("T3", 1)] + [(f"ours-{k}", k) for k in _ks(bank)]:
        runs[name] = lambda k=k: (
            train(
                bank.root,
                bank.shape,
                folder,
                lora,
                k=k,
                n_steps=settings.whole_steps,
                global_batch_tokens=MICRO_TOKENS,
            ).seconds_per_qa
        )
    turns = [{name: run() for name, run in runs.items()} for _ in range(settings.whole_rounds)]
    return {name: [turn[name] for turn in turns] for name in runs}


def _ks(bank: Bank) -> list[int]:
    return [k for k in OURS_KS if k <= bank.shape.questions]


def _whole_trees(bank: Bank, k: int) -> int:
    """The most questions of one image that fill trees of `k`."""
    return bank.shape.questions // k * k


def _ours(bank: Bank, settings: LadderSettings) -> Iterator[tuple[str, int, int]]:
    limit = min(settings.grad_questions, bank.shape.questions)
    yield "T3", 1, min(8, limit)
    for k in _ks(bank):
        yield f"ours-{k}", k, min(max(k, 2 * k if k < 33 else k), limit)


def _turn(peer: Peer, numbers: range, n: int) -> Callable[[], int]:
    """One turn of a peer: the next `n` questions of `numbers`, as ready batches."""
    slices = cycle([peer.batches(numbers[i : i + n]) for i in range(0, len(numbers) - n + 1, n)])

    def work() -> int:
        batches = next(slices)
        peer.forward_backward(batches)
        peer.model.zero_grad()
        return sum(len(batch["input_ids"]) for batch in batches)

    return work


def _one_batch(peer: Peer) -> None:
    peer.forward_backward(peer.batches(range(peer.batch_size)))
    peer.model.zero_grad()
