"""Token lengths of a split, measured once: what the reading plan needs to know of texts before the first step.

The sidecar `<cache>/lengths-<hash>.npz` is keyed by the hashes of index, tokenizer and processor, so that a changed one
measures anew and `index.json` stays free of tokenizers. The GSD text of baseline B3 is *not* in the key and not in the
lengths: `GSD_TEXT_RESERVE` tokens are added by the plan in every variant, so that compared variants read the same plan.

A sample that cannot be read (altered bytes, a GSD that is none, a forged special token) has no length: it is listed
with its reason and not planned until it can be read, which is tried whenever the sidecar is opened. The list is part of
the sidecar, and its hash part of what a checkpoint remembers and ranks compare: a sidecar that was measured anew, or on
another node, might list other samples, which is another plan.

Legend: R rows (images) of the split, Q their questions in order.
"""

import hashlib
import json
import logging
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import GsdError, IndexSchemaError, SampleError
from scaleearth_pl.core.files import replacing_file
from scaleearth_pl.data.processor import BranchTokens, Processor
from scaleearth_pl.data.shards import ShardIndex, ShardReader

log = logging.getLogger(__name__)

LENGTHS_SCHEMA = "scaleearth-lengths/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """Lengths in tokens. Questions of row `rows[r]` are `first_Q[r]` to `first_Q[r + 1]` of the flat arrays."""

    key: str
    rows: NDArray[np.int64]
    prefix_R: NDArray[np.int64]
    first_Q: NDArray[np.int64]
    branch_Q: NDArray[np.int64]
    rejected: tuple[tuple[int, str], ...]

    @property
    def n_questions_R(self) -> NDArray[np.int64]:
        """Questions of each row."""
        return np.diff(self.first_Q)

    @property
    def rejected_hash(self) -> str:
        """Identifies the samples that were left out; empty where there are none."""
        rows = [row for row, _ in self.rejected]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16] if rows else ""

    @property
    def facts(self) -> dict[str, Any]:
        """What ranks must have in common to plan alike."""
        return {"lengths_key": self.key, "rejected_samples": len(self.rejected), "rejected_hash": self.rejected_hash}


def lengths_of(index: ShardIndex, splits: tuple[str, ...], processor: Processor, cache: Path) -> Lengths:
    """The lengths of these splits, from the sidecar if it exists, else measured and kept.

    Raises:
        ShardError: a shard is missing or cut.
        IndexSchemaError: the corpus has no such split, or the sidecar is damaged.
    """
    text = "|".join([LENGTHS_SCHEMA, index.hash, processor.lengths_key, *splits])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache / f"lengths-{key}.npz"
    if not path.exists():
        _save(path, measure(index, index.rows(splits), processor, key))
    lengths = _load(path, key)
    if _some_can_be_read(index, processor, lengths.rejected):
        log.warning("samples listed in %s as unreadable can be read now: measured anew", path)
        _save(path, measure(index, index.rows(splits), processor, key))
        lengths = _load(path, key)
    for row, reason in lengths.rejected:
        log.warning("not planned: %s: %s (listed in %s)", index.where(row), reason, path)
    return lengths


def _load(path: Path, key: str) -> Lengths:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("rows", "prefix_R", "first_Q", "branch_Q")}
            rejected = tuple((int(row), str(reason)) for row, reason in json.loads(str(stored["rejected"])))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise IndexSchemaError(
            f"token lengths do not load: {error!r}", file=path, remedy="delete the file, it is measured anew"
        ) from error
    return Lengths(key=key, rejected=rejected, **arrays)


def _some_can_be_read(index: ShardIndex, processor: Processor, rejected: tuple[tuple[int, str], ...]) -> bool:
    """Whether a sample that had no length has one now: a shard was restored, or a disk has come to its senses."""
    reader = ShardReader(index)
    try:
        for row, _ in rejected:
            with suppress(SampleError, GsdError):
                _tokens_of(reader, processor, row)
                return True
        return False
    finally:
        reader.close()


def _tokens_of(reader: ShardReader, processor: Processor, row: int) -> tuple[int, list[BranchTokens]]:
    """Length of a sample's prefix, and the tokens of its branches; raises what makes it unreadable."""
    sample = reader.read_sample(row)
    tokens = [processor.branch(qa) for qa in sample.qas]
    return processor.prefix_length(sample.width, sample.height, sample.n_images), tokens


def measure(index: ShardIndex, rows: NDArray[np.int64], processor: Processor, key: str) -> Lengths:
    """Reads every sample's JSON (no pixels) and counts tokens; about 30,000 questions a second and core."""
    reader = ShardReader(index)
    kept, prefixes, counts, rejected = [], [], [], []
    branches: list[int] = []
    for row in rows.tolist():
        try:
            prefix, tokens = _tokens_of(reader, processor, row)
        except (SampleError, GsdError) as error:
            rejected.append((row, str(error)))
            continue
        kept.append(row)
        prefixes.append(prefix)
        counts.append(len(tokens))
        branches += [len(t.prompt) + len(t.answer) for t in tokens]
    reader.close()
    return Lengths(
        key=key,
        rows=np.array(kept, np.int64),
        prefix_R=np.array(prefixes, np.int64),
        first_Q=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        branch_Q=np.array(branches, np.int64),
        rejected=tuple(rejected),
    )


def _save(path: Path, lengths: Lengths) -> None:
    with replacing_file(path) as new, new.open("wb") as stream:
        np.savez_compressed(
            stream,
            rows=lengths.rows,
            prefix_R=lengths.prefix_R,
            first_Q=lengths.first_Q,
            branch_Q=lengths.branch_Q,
            rejected=np.array(json.dumps(lengths.rejected)),
        )
