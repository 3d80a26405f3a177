"""Typed errors: each names what is wrong, where, the value seen, and the remedy.

The class says the policy: a `SampleError` costs one sample (it is quarantined and counted), everything else stops
the run. Every class can be raised with the problem alone, because a DataLoader worker re-raises by `cls(message)`.
"""

from pathlib import Path
from typing import ClassVar

_ABSENT = object()


class ScaleEarthError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: what is wrong, in one clause.
        file: the file that holds the bad value.
        field: the field, key or option.
        value: the value as found.
        remedy: what the user should do.

    Attributes:
        exit_status: what the process ends with; 2, or 75 ("try again") where resuming is the remedy.
        said: rank 0 prints the same on the same screen.
    """

    exit_status: ClassVar[int] = 2
    said = False

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        field: str | None = None,
        value: object = _ABSENT,
        remedy: str = "",
    ) -> None:
        self.problem, self.file, self.field, self.remedy = problem, file, field, remedy
        places = [f"file {file}"] if file is not None else []
        places += [f"field {field!r}"] if field is not None else []
        places += [f"value {value!r}"] if value is not _ABSENT else []
        text = problem + (f" ({', '.join(places)})" if places else "")
        super().__init__(f"{text}. Remedy: {remedy}" if remedy else text)


class ConfigError(ScaleEarthError):
    """A configuration that cannot be meant: unknown key, impossible number, two settings that contradict."""


class GsdError(ScaleEarthError):
    """A ground sampling distance that is zero, negative, not finite, not a number, or absent where it is needed."""


class SampleError(ScaleEarthError):
    """One bad sample: quarantined with its reason, counted, fatal only past a stated share."""


class ShardError(ScaleEarthError):
    """A shard that is missing, cut or altered: its bytes do not agree with the index."""


class IndexSchemaError(ScaleEarthError):
    """An `index.json` of another schema, or one that contradicts the corpus it describes."""


class QuarantineLimitError(ScaleEarthError):
    """Too many bad samples to go on honestly."""


class TargetModuleError(ScaleEarthError):
    """A LoRA target that matches no module, or a module that should not have been matched."""


class CheckpointError(ScaleEarthError):
    """A checkpoint or adapter folder that is incomplete, of another schema, or made for another base."""


class PreflightError(ScaleEarthError):
    """Something that would spoil the run, found before step 0."""


class DiskSpaceError(ScaleEarthError):
    """Not enough room on the disk for what is about to be written."""


class NonFiniteError(ScaleEarthError):
    """NaN or infinity in loss or gradients: training stops on all ranks before a checkpoint could hold it."""


class MemoryExhaustedError(ScaleEarthError):
    """Device or host memory is used up."""


class WorkerError(ScaleEarthError):
    """A worker process, of a loader or of a pool, died or fell silent."""

    exit_status = 75


class PeerLostError(ScaleEarthError):
    """Another rank died or fell silent: this one leaves rather than wait for it."""

    exit_status = 75
