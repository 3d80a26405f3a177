"""What a run cost: all ranks, all legs."""

from types import SimpleNamespace
from typing import Any

import torch

from scaleearth_pl.training.callbacks.run_record import RunRecord

TWO_RANKS: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda part, reduce_op: 2 * part))
MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def leg(record: RunRecord, questions: int, seconds: float) -> dict[str, Any]:
    """A checkpoint after so many questions of this rank."""
    record.on_train_start(TWO_RANKS, MODULE)
    record.started -= seconds
    record.n_questions = questions
    checkpoint: dict[str, Any] = {}
    record.on_save_checkpoint(TWO_RANKS, MODULE, checkpoint)
    return checkpoint


def test_a_resumed_run_counts_its_earlier_legs() -> None:
    first = leg(RunRecord(), 7, 100.0)
    second = RunRecord()
    second.on_load_checkpoint(TWO_RANKS, MODULE, first)
    cost = leg(second, 3, 50.0)["run_record"]
    assert cost["questions"] == 2 * (7 + 3)
    assert 150 <= cost["seconds"] < 151
