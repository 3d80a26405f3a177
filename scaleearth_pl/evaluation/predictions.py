"""The files of a run folder that evaluation reads: predictions.jsonl, sse_u.jsonl, gates.json, run.json.

Training writes them, evaluation reads them, and neither imports the other: the file is the seam. So every row is
checked against its schema (`core/run_files.py`), an unknown or missing field is an error with file and line, and a
question that appears twice is refused, since it would count twice. `run.json` alone may hold more than is listed: it is
a record of facts, and facts that nobody asked for do no harm.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.files import lines_of, write_text
from scaleearth_pl.core.gsd import RANK_TIERS, check_gsd_m
from scaleearth_pl.core.run_files import GATES, PREDICTIONS, RUN, SSE_U, Prediction, SseuReading

Row = TypeVar("Row", Prediction, SseuReading)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`run.json`: what was run. `stage1` is the folder that stage 2 started from, where it did."""

    experiment: str
    stage: str
    size: str
    corpus: str
    commit: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float | None]
    qas_per_second: float
    stage1: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder in memory. `sse_u` is empty and `gates` too where the run has no SSE-U or no gate (stage 1)."""

    path: Path
    run: RunInfo
    predictions: tuple[Prediction, ...]
    sse_u: tuple[SseuReading, ...]
    gates: Mapping[str, Mapping[str, float]]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads all files of `path`.

        Raises:
            ConfigError: run.json or predictions.jsonl is missing or empty.
            SampleError: a row or document that does not fit its schema.
            GsdError: a GSD that is no finite positive number.
        """
        path = Path(path)
        optional = {name: (path / name).exists() for name in (SSE_U, GATES)}
        return cls(
            path=path,
            run=read_run(path / RUN),
            predictions=read_predictions(path / PREDICTIONS),
            sse_u=read_sse_u(path / SSE_U) if optional[SSE_U] else (),
            gates=read_gates(path / GATES) if optional[GATES] else {},
        )


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """All rows of predictions.jsonl; `ConfigError` if there is none, `SampleError` for a bad or repeated one."""
    rows = _read_rows(path, Prediction)
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.key in seen:
            raise SampleError("question appears twice", file=path, field="(image_id, qa_id)", value=row.key)
        seen.add(row.key)
    if not rows:
        raise ConfigError(
            "no question was evaluated", file=path, remedy="run `scaleearth test` on a split with samples"
        )
    return rows


def read_sse_u(path: Path) -> tuple[SseuReading, ...]:
    """All rows of sse_u.jsonl."""
    return _read_rows(path, SseuReading)


def read_gates(path: Path) -> dict[str, dict[str, float]]:
    """Mean gate by GSD in metres (as text) and rank tier; every value lies in [0, 1]."""
    gates = _read_object(path)
    for gsd, row in gates.items():
        check_gsd_m(float(gsd), file=path)
        good = isinstance(row, dict) and sorted(row) == sorted(RANK_TIERS)
        if not good or not all(isinstance(h, int | float) and 0 <= h <= 1 for h in row.values()):
            raise SampleError(
                "gates need one number in [0, 1] per rank tier",
                file=path,
                field=gsd,
                value=row,
                remedy=f"rank tiers are {', '.join(RANK_TIERS)}",
            )
    return gates


def read_run(path: Path) -> RunInfo:
    """The facts of a run; `SampleError` names a field that is missing."""
    row = _read_object(path)
    names = [f.name for f in fields(RunInfo)]
    missing = [name for name in names if name not in row and name != "stage1"]
    if missing:
        raise SampleError("run record lacks a field", file=path, field=missing[0], remedy="run the experiment again")
    return RunInfo(**{name: row[name] for name in names if name in row})


def write_rows(path: Path, rows: Iterable[Prediction | SseuReading]) -> None:
    """Writes predictions.jsonl or sse_u.jsonl: one JSON object a line."""
    write_text(path, "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows))


def _read_rows(path: Path, cls: Callable[..., Row]) -> tuple[Row, ...]:
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    rows = []
    for number, line in enumerate(lines_of(_read_text(path)), start=1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SampleError(
                f"line is not JSON: {error}", file=where, remedy="was the run cut off? run it again"
            ) from error
        wrong = sorted(names ^ set(row)) if isinstance(row, dict) else ["(not an object)"]
        if wrong:
            raise SampleError("missing or unknown field", file=where, field=wrong[0], remedy=f"fields: {sorted(names)}")
        try:
            rows.append(cls(**row))
        except SampleError as error:
            raise SampleError(error.problem, file=where, field=error.field, value=row[error.field or ""]) from error
    return tuple(rows)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read_text(path))
    except ValueError as error:
        raise SampleError(f"not JSON: {error}", file=path, remedy="run the experiment again") from error
    if not isinstance(document, dict):
        raise SampleError("not a JSON object", file=path, value=type(document).__name__)
    return document


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run folder has no readable {path.name}: {error.strerror}",
            file=path,
            remedy="give the folder of a run that `scaleearth test` has evaluated, such as runs/stage2/latest",
        ) from error
