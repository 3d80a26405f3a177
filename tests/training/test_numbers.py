"""NaN stops the run with the ids in a file and is never saved; spikes are flagged; faults get names and remedies."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.toy_training import toy_branches, toy_step, toy_trees

from scaleearth_pl.core.errors import (
    ConfigError,
    DiskSpaceError,
    MemoryExhaustedError,
    NonFiniteError,
    PeerLostError,
    WorkerError,
)
from scaleearth_pl.training.callbacks.numbers import FEWEST, Numbers
from scaleearth_pl.training.faults import as_typed, exit_status


def batch(n_micro: int = 2) -> Any:
    micro = SimpleNamespace(is_filler=False, trees=toy_trees(2), branches=toy_branches(2))
    return SimpleNamespace(micro=(micro,) * n_micro)


def trainer(folder: Path, rank: int = 0) -> Any:
    return SimpleNamespace(default_root_dir=str(folder), global_rank=rank, is_global_zero=False, loggers=[])


def feed(numbers: Numbers, folder: Path, **changes: Any) -> None:
    report = replace(toy_step(3, sse_u=False), **changes)
    numbers.on_train_batch_end(trainer(folder), None, {"report": report}, batch(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss": torch.tensor(float("nan"))}, "loss"),
        ({"vlm_loss": torch.tensor(float("inf"))}, "vlm_loss"),
        ({"grad_norm": {"adapters": torch.tensor(float("inf"))}}, "grad_norm/adapters"),
    ],
)
def test_what_is_not_finite_stops_the_run_with_the_ids(tmp_path: Path, changes: dict, field: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"step 3.*'{field}'.*lower the learning rate") as caught:
        feed(Numbers(), tmp_path, **changes, micro_sums_M=torch.tensor([1.0, float("nan")]))
    row = json.loads(Path(str(caught.value.file)).read_text())
    assert [micro["loss_is_finite"] for micro in row["micro_batches"]] == [True, False]
    assert row["micro_batches"][1]["images"][0]["image_id"] == "image0"
    assert row["micro_batches"][1]["images"][1]["qa_ids"] == ["q0", "q1"]
    assert row["step"] == 3


def test_a_finite_step_passes_even_where_one_micro_batch_was_not_counted(tmp_path: Path) -> None:
    feed(Numbers(), tmp_path, micro_sums_M=torch.tensor([1.0, float("nan")]))
    assert not list(tmp_path.iterdir())


def test_spikes_are_flagged_once_there_is_a_usual_loss(tmp_path: Path, caplog) -> None:
    numbers = Numbers(spike_factor=3.0)
    feed(numbers, tmp_path, vlm_loss=torch.tensor(50.0))
    for _ in range(FEWEST):
        feed(numbers, tmp_path, vlm_loss=torch.tensor(1.0))
    assert numbers.spikes == []
    feed(numbers, tmp_path, vlm_loss=torch.tensor(3.5))
    assert numbers.spikes == [3]
    assert "loss spike at step 3" in caplog.text
    assert json.loads(next((tmp_path / "spikes").iterdir()).read_text())["numbers"]["vlm_loss"] == "3.5"
    resumed = Numbers(spike_factor=3.0)
    resumed.load_state_dict(numbers.state_dict())
    feed(resumed, tmp_path, vlm_loss=torch.tensor(2.5))
    assert resumed.spikes == [3]
    assert list(resumed.recent)[:-1] == list(numbers.recent)


def test_settings_are_checked() -> None:
    for settings in ({"spike_factor": 1.0}, {"window": 3}):
        with pytest.raises(ConfigError):
            Numbers(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryExhaustedError, 2),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryExhaustedError, 2),
        (MemoryError(), MemoryExhaustedError, 2),
        (OSError(28, "No space left on device"), DiskSpaceError, 2),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), WorkerError, 75),
        (RuntimeError("DataLoader timed out after 5.0 seconds"), WorkerError, 75),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"), PeerLostError, 75),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), None, 1),
        (ValueError("out of memory"), None, 1),
        (BrokenPipeError(32, "Broken pipe"), None, 1),
        (ConnectionRefusedError(111, "Connection refused"), None, 1),
        (SystemExit(143), None, 143),
        (KeyboardInterrupt(), None, 130),
    ],
)
def test_faults_of_the_machine_get_a_name_and_a_status(error: BaseException, kind: type | None, status: int) -> None:
    typed = as_typed(error)
    assert typed is None if kind is None else type(typed) is kind and bool(typed.remedy)
    assert exit_status(error) == status


def test_ctrl_c_has_its_own_status() -> None:
    """Lightning answers it with `sys.exit(1)`, which would ask for a traceback."""

    def as_lightning_does() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(SystemExit) as left:
        as_lightning_does()
    assert exit_status(left.value) == 130
