"""What a run cost: all ranks, all legs; and where its gates stand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.toy_training import ToyModel

from scaleearth_pl.training.callbacks.run_record import RunRecord, mean_gates

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


def test_the_gates_of_the_summary_are_means_over_modules_and_ranks() -> None:
    model, gates = ToyModel(), mean_gates(ToyModel())
    for gsd_m in (0.1, 1.0, 10.0, 30.0):
        gates_Mr = model.gate_values(torch.tensor([gsd_m]).log10())[..., 0]
        tiers = {"object": gates_Mr[:, :4], "structure": gates_Mr[:, 4:8], "semantic": gates_Mr[:, 8:]}
        assert gates[f"{gsd_m:g}"] == pytest.approx({name: float(g.mean()) for name, g in tiers.items()}, abs=1e-4)
