"""Tasks in several processes: a killed worker is said, an error comes out as it was raised, what is done stays done."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import ConfigError, WorkerError
from scaleearth_pl.prepare.engine import EngineConfig, run_tasks

TASKS = 4
VICTIM = 2
TWO_AT_A_TIME = EngineConfig(tasks=TASKS, workers=2)


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A task that writes the file of its rank; rank `VICTIM` meets its fate, unless a file `spared` is there."""

    folder: Path
    fate: str

    def __call__(self, _data: object, rank: int, world_size: int) -> None:
        if rank == VICTIM and not (self.folder / "spared").exists():
            if self.fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConfigError("no such thing", field="colour", value="mauve", remedy="use green")
        (self.folder / str(rank)).write_text(f"of {world_size}")

    def done(self) -> dict[int, str]:
        return {int(file.name): file.read_text() for file in self.folder.glob("[0-9]")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "error", "says"),
    [
        ("killed", WorkerError, "a worker process was killed. Remedy: .*fewer workers"),
        ("raises", ConfigError, r"no such thing \(field 'colour', value 'mauve'\). Remedy: use green"),
    ],
    ids=["killed", "raises"],
)
def test_a_lost_task_ends_the_build_and_the_next_call_makes_up_for_it(
    tmp_path: Path, fate: str, error: type[Exception], says: str
) -> None:
    """A pool of `multiprocessing` would wait for ever for the killed one."""
    task = Noted(folder=tmp_path, fate=fate)
    with pytest.raises(error, match=says):
        run_tasks(task, TWO_AT_A_TIME, tmp_path / "log")
    assert VICTIM not in task.done()
    (tmp_path / "spared").touch()
    run_tasks(task, TWO_AT_A_TIME, tmp_path / "log")
    assert task.done() == dict.fromkeys(range(TASKS), f"of {TASKS}")


def test_nothing_is_started_where_all_is_done(tmp_path: Path) -> None:
    task = Noted(folder=tmp_path, fate="killed")
    (tmp_path / "spared").touch()
    for _ in range(2):
        run_tasks(task, EngineConfig(tasks=TASKS, workers=1), tmp_path / "log")
    assert task.done() == dict.fromkeys(range(TASKS), f"of {TASKS}")
    (tmp_path / "spared").unlink()
    run_tasks(task, TWO_AT_A_TIME, tmp_path / "log")
