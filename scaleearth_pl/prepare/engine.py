"""Tasks on datatrove's executors: in this process, in several on this machine, or under Slurm.

Why datatrove: its executors take any callable `(data, rank, world_size)`, so our steps need no wrapping in its documents, which
are made for text; they keep one log and one completion file a task, and run the same callable under Slurm. Price:
datatrove 0.10 also writes its log to standard error.

Several processes are ours to start (`core.processes` says why), not datatrove's; each runs one rank at a time through its
executor:

    build -> process pool -> worker: LocalPipelineExecutor of one rank     (workers > 1)
    build -> LocalPipelineExecutor of all ranks                            (workers = 1)
    build -> SlurmPipelineExecutor -> sbatch
"""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, ScaleEarthError
from scaleearth_pl.core.processes import children_die_with_us, process_pool

Task = Callable[[object, int, int], None]
"""(data, rank, world size): what an executor runs."""


class TasksPendingError(ScaleEarthError):
    """Tasks were handed to a scheduler and are not done."""

    exit_status: ClassVar[int] = 75


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Options of `datatrove.executor.SlurmPipelineExecutor`; `time` is Slurm's, `venv_path` the script to source."""

    partition: str
    time: str
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    qos: str = "normal"
    venv_path: str | None = None
    sbatch_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How tasks are run.

    Args:
        tasks: number of parts.
        workers: tasks at a time, -1 for all.
        executor: "local" or "slurm".
        slurm: needed by "slurm".
    """

    tasks: int = 1
    workers: int = 1
    executor: str = "local"
    slurm: SlurmConfig | None = None

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ConfigError("at least one task", field="tasks", value=self.tasks)
        if self.workers < 1 and self.workers != -1:
            raise ConfigError("at least one worker, or -1 for all", field="workers", value=self.workers)
        if self.executor not in ("local", "slurm"):
            raise ConfigError("no such executor", field="executor", value=self.executor, remedy="use local or slurm")
        if self.executor == "slurm" and self.slurm is None:
            raise ConfigError("executor slurm needs its options", field="slurm", remedy="give partition and time")

    @property
    def at_a_time(self) -> int:
        """Processes, or array tasks, that run side by side."""
        return min(self.tasks, self.workers) if self.workers > 0 else self.tasks


def run_tasks(task: Task, engine: EngineConfig, log: Path) -> None:
    """Runs `task(None, rank, tasks)` for every rank that has no completion file below `log`.

    Raises:
        WorkerError: a worker was killed.
        TasksPendingError: the tasks were submitted to Slurm.
        Whatever a local task raises; the others that were done, or are being done, stay done.
    """
    executor = _executor(task, engine, log)
    missing = executor.get_incomplete_ranks()
    if not missing:
        return
    with children_die_with_us():
        if engine.executor == "local" and engine.at_a_time > 1:
            _run_in_processes(task, engine, log, missing)
        else:
            executor.run()
    if engine.executor == "slurm":
        raise TasksPendingError(
            f"{engine.tasks} tasks were submitted to Slurm as job {executor.job_id}",
            file=log,
            remedy="run the same command when they are done: it joins the parts",
        )


def forget(ranks: Sequence[int], log: Path) -> None:
    """Removes the completion files of these ranks: the next `run_tasks` runs them again."""
    for rank in ranks:
        (log / "completions" / f"{rank:05d}").unlink(missing_ok=True)


def _run_in_processes(task: Task, engine: EngineConfig, log: Path, ranks: Sequence[int]) -> None:
    with process_pool(min(engine.at_a_time, len(ranks))) as pool:
        for done in as_completed([pool.submit(_run_rank, task, engine, log, rank) for rank in ranks]):
            done.result()


def _run_rank(task: Task, engine: EngineConfig, log: Path, rank: int) -> None:
    with children_die_with_us():
        _executor(task, engine, log, rank).run()


def _executor(task: Task, engine: EngineConfig, log: Path, rank: int | None = None) -> Any:
    """Datatrove's executor of all ranks, one after another, or of one."""
    # datatrove and dill take a quarter of a second to import; only a build needs them.
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.executor.slurm import SlurmPipelineExecutor

    if engine.executor == "local":
        return LocalPipelineExecutor(
            [task],
            tasks=engine.tasks,
            workers=1,
            local_tasks=-1 if rank is None else 1,
            local_rank_offset=rank or 0,
            logging_dir=str(log.resolve()),
        )
    assert engine.slurm is not None
    return SlurmPipelineExecutor(
        [task],
        tasks=engine.tasks,
        workers=engine.workers,
        logging_dir=str(log.resolve()),
        job_name="scaleearth-prepare",
        partition=engine.slurm.partition,
        time=engine.slurm.time,
        cpus_per_task=engine.slurm.cpus_per_task,
        mem_per_cpu_gb=engine.slurm.mem_per_cpu_gb,
        qos=engine.slurm.qos,
        venv_path=engine.slurm.venv_path,
        sbatch_args=engine.slurm.sbatch_args,
    )
