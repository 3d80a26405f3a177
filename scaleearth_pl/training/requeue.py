"""SLURM: one job, one run folder, however often it is requeued.

    #SBATCH --signal=USR1@120 --requeue --open-mode=append
    srun scaleearth fit -c experiments/stage2.yaml -c experiments/size/8b.yaml

Two minutes before the time limit SLURM sends SIGUSR1; the run saves at the end of its step, asks for its job to be put
back and leaves. When SLURM starts it again it finds its folder by the job's number and goes on.
"""

import logging
import os
import re
import subprocess

from scaleearth_pl.core.errors import ConfigError

log = logging.getLogger(__name__)

REQUEUED_STATUS = 75
"""Exit status of a run that waits to be started again (EX_TEMPFAIL)."""


def job_id() -> str | None:
    """This SLURM job, `<array job>_<task>` in an array; None outside SLURM and in interactive shells."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    found = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if found is not None and not re.fullmatch(r"[0-9_]+", found):
        raise ConfigError("not a SLURM job number", field="SLURM_JOB_ID", value=found)
    return found


def requeue() -> bool:
    """Asks SLURM to put this job back; False, with a warning, where it would not."""
    job = job_id()
    if job is None:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("job %s was not requeued: %s", job, error)
        return False
    if done.returncode:
        log.warning("job %s was not requeued: %s", job, done.stderr.strip())
    return done.returncode == 0


def identity() -> tuple[str | None, bool]:
    """A run folder's name that outlives a restart, and whether this is one: of a SLURM job or a torchrun with an id.

    Raises:
        ConfigError: several processes were launched with nothing in common to name their folder by.
    """
    if (job := job_id()) is not None:
        return f"slurm-{job}", int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":
        name = re.sub(r"[^A-Za-z0-9-]", "-", elastic)[:40]
        return f"torchrun-{name}", int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "SCALEEARTH_VERSION" not in os.environ:
        raise ConfigError(
            "ranks were launched one by one and would each name a run folder of their own",
            field="SCALEEARTH_VERSION",
            remedy="export SCALEEARTH_VERSION=<name> for all ranks, or give torchrun an --rdzv-id",
        )
    return None, False
