"""Sharded checkpoints under the same promise as files: a folder is complete or not there.

    .step=00000500.ckpt.tmp/  __0_0.distcp __1_0.distcp .metadata meta.pt   --each flushed and hashed by its writer-->
    seal.json (schema, step, bytes and SHA-256 of every file)               --os.replace--> step=00000500.ckpt/

Lightning writes shards straight into the final folder, so that rewriting it mixes old and new shards until the metadata
lands. Each rank hashes only what it wrote; rank 0 gathers the sums. Price: a second pass over the shards, from the page
cache where they fit.
"""

import json
from pathlib import Path
from typing import Any

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.core.files import flush, put_in_place, sha256_of

FOLDER_SEAL = "seal.json"
FOLDER_SCHEMA = "scaleearth-sharded/1"

Sums = dict[str, tuple[int, str]]
"""Bytes and SHA-256 by file name."""


def seal_folder(waiting: Path, path: Path, step: int, sums: list[Sums]) -> None:
    """Writes the seal into `waiting` and renames it to `path`, an older folder of that name aside first."""
    files = {name: list(row) for part in sums for name, row in part.items()}
    seal = waiting / FOLDER_SEAL
    seal.write_text(json.dumps({"schema": FOLDER_SCHEMA, "step": step, "files": files}, indent=1))
    for flushed in (seal, waiting):
        flush(flushed)
    put_in_place(waiting, path, aside=path.with_name(f".{path.name}.old.tmp"))


def read_folder_seal(path: Path) -> dict[str, Any]:
    """The seal of a sharded checkpoint; `CheckpointError` if it is missing, cut or of another schema."""
    try:
        row = json.loads((path / FOLDER_SEAL).read_text())
        if row["schema"] != FOLDER_SCHEMA:
            raise CheckpointError(
                "sharded checkpoint of another schema", file=path, field="schema", value=row["schema"]
            )
        return {"schema": row["schema"], "step": int(row["step"]), "files": dict(row["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("sharded checkpoint has no valid seal", file=path) from error


def verify_folder(path: Path) -> None:
    """`CheckpointError` unless the folder holds exactly the files of its seal, byte for byte."""
    files = read_folder_seal(path)["files"]
    present = {file.name for file in path.iterdir()} - {FOLDER_SEAL}
    if present != set(files):
        raise CheckpointError(
            "sharded checkpoint lacks or gained files", file=path, field="files", value=sorted(present ^ set(files))
        )
    for name, (n_bytes, sha256) in files.items():
        if (path / name).stat().st_size != n_bytes or sha256_of(path / name) != sha256:
            raise CheckpointError("shard of a checkpoint was altered", file=path / name, field="sha256")


def flush_and_hash(folder: Path, rank: int) -> Sums:
    """Files that this rank wrote: its shards, and on rank 0 whatever is no shard."""
    own = [f for f in folder.iterdir() if f.name.startswith(f"__{rank}_") or (rank == 0 and f.name[:2] != "__")]
    for file in own:
        flush(file)
    return {file.name: (file.stat().st_size, sha256_of(file)) for file in own}
