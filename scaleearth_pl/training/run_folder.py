"""Which folder a run lives in, and which checkpoint it goes on from.

    runs/<experiment>/<version>/    version: $SCALEEARTH_VERSION, or the job's name, or time and process
    runs/<experiment>/latest        a link to the newest

A checkpoint is given to Lightning as the *folder* of checkpoints: rank 0 picks the newest valid one when it is read, and
all ranks load that one.
"""

import os
import time
from pathlib import Path

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.training.checkpoint_io import checkpoints_by_step
from scaleearth_pl.training.requeue import identity


def choose_run(root: Path, *, resume: bool, fit: bool) -> tuple[str, str | None]:
    """(version, checkpoints to resume from or None) for a run below `root` = runs_dir/experiment.

    Args:
        root: folder of the experiment.
        resume: go on with $SCALEEARTH_VERSION, or with `latest`.
        fit: the run will train; only then may a job that was started again go on by itself.

    Raises:
        CheckpointError: nothing to resume.
        ConfigError: the folder holds another run's checkpoints, which a later resume would mix up; or `resume` without
            `fit`, which would evaluate the last checkpoint as if it were the trained model.
    """
    if resume and not fit:
        raise ConfigError(
            "only fit can be resumed: a checkpoint is not the result of a run",
            field="resume",
            value=True,
            remedy="name the result (--model.init_args.adapter or init_from), or one checkpoint (--ckpt_path)",
        )
    if resume:
        version, folder = find_last(root, os.environ.get("SCALEEARTH_VERSION"))
        os.environ["SCALEEARTH_VERSION"] = version  # ranks that Lightning launches inherit it; `latest` may move
        return version, folder
    name, restarted = identity()
    chosen = os.environ.get("SCALEEARTH_VERSION") or name or time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid())
    os.environ["SCALEEARTH_VERSION"] = chosen  # ranks that Lightning launches inherit it
    checkpoints = root / chosen / "checkpoints"
    if not (fit and checkpoints_by_step(checkpoints)):
        return chosen, None
    if restarted:
        return chosen, str(checkpoints)
    raise ConfigError(
        "the run's folder holds checkpoints of an earlier run",
        file=checkpoints,
        field="SCALEEARTH_VERSION",
        value=chosen,
        remedy="use --resume true to go on with it, or give this run another version",
    )


def find_last(root: Path, version: str | None = None) -> tuple[str, str]:
    """Version and checkpoints of the run below `root` that is named, or of the newest."""
    latest = root / (version or "latest")
    checkpoints = latest.resolve() / "checkpoints"
    if not checkpoints_by_step(checkpoints, complain=True):
        raise CheckpointError(
            "nothing to resume", file=checkpoints, field="resume", value=True, remedy="start the run without resume"
        )
    return latest.resolve().name, str(checkpoints)


def point_latest(folder: Path) -> None:
    """Makes `latest` beside `folder` point to it, atomically, so that runs may start at once."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.parent / "latest")
