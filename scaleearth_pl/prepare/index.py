"""`scaleearth index DIR`: what is on the disk becomes `index.json`.

Our own writer and foreign WebDataset shards go through the same scan: the index describes the bytes that lie there,
not the bytes that somebody meant to write. A member that cannot become a sample (no JSON, no image, duplicate key,
zero bytes, an extension off the allow-list, a GSD that is none) is rejected with its reason; past a stated share of
rejections indexing stops. Tar files are opened uncompressed, nothing is extracted, and no key is ever used as a path.
"""

import argparse
import hashlib
import json
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import GsdError, IndexSchemaError, QuarantineLimitError, SampleError, ShardError
from scaleearth_pl.core.files import replacing_file, sha256_of
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import IMAGE_FORMATS, image_size
from scaleearth_pl.data.shard_index import (
    INDEX_NAME,
    INDEX_SCHEMA,
    LATER_COLUMN,
    MAX_MEMBER_BYTES,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    ShardIndex,
)


@dataclass(frozen=True, kw_only=True)
class RejectedKey:
    """A sample that did not get into the index, and why."""

    file: str
    key: str
    reason: str


@dataclass(kw_only=True)
class Scan:
    """What a scan found: `entries` are the index's shard records, one a file, split and tier."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[RejectedKey] = field(default_factory=list)
    image_ids: set[str] = field(default_factory=set)

    @property
    def n_samples(self) -> int:
        """Samples accepted so far."""
        return sum(len(entry["samples"]["key"]) for entry in self.entries)


@dataclass(frozen=True)
class _Member:
    path: Path
    offset: int
    size: int

    @property
    def data(self) -> bytes:
        """Read anew at each call: a shard holds gigabytes, and its members need not lie sample by sample."""
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


def scan_shard(path: Path, root: Path, scan: Scan, *, boundaries: TierBoundaries) -> None:
    """Adds one tar file to `scan`; a file that holds several splits or tiers gives one record for each.

    Raises:
        ShardError: the file is not an uncompressed tar, or ends before its end mark.
    """
    file = path.relative_to(root).as_posix()
    columns: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for key, members in _grouped(path, file, scan):
        try:
            sample, row = _row(f"{path}#{key}", key, members, boundaries)
            if sample.image_id in scan.image_ids:
                raise SampleError("duplicate image_id in the corpus", field="image_id", value=sample.image_id)
        except (SampleError, GsdError) as error:
            scan.rejected.append(RejectedKey(file=file, key=key, reason=str(error)))
            continue
        scan.image_ids.add(sample.image_id)
        group = columns.setdefault(
            (sample.split, str(sample.tier)), {name: [] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS, LATER_COLUMN)}
        )
        for name, values in group.items():
            values.append(row[name])
    for group in columns.values():
        if not any(group[LATER_COLUMN]):  # shards of single images are indexed as they always were
            del group[LATER_COLUMN]
    common = {"file": file, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    scan.entries += [
        {**common, "split": split, "tier": tier, "samples": samples}
        for (split, tier), samples in sorted(columns.items())
    ]


def _grouped(path: Path, file: str, scan: Scan) -> Iterator[tuple[str, dict[str, _Member]]]:
    groups: dict[str, dict[str, _Member]] = defaultdict(dict)
    try:
        with tarfile.open(path, mode="r:") as tar:
            for info in tar:
                if info.isdir():  # `tar cf x.tar folder/` writes an entry for the folder itself
                    continue
                key, _, ext = info.name.partition(".") if "/" not in info.name else _split_name(info.name)
                if reason := _refuse(info, key, ext, groups):
                    scan.rejected.append(RejectedKey(file=file, key=info.name, reason=reason))
                else:
                    groups[key][ext] = _Member(path, info.offset_data, info.size)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"not a complete, uncompressed tar file: {error}", file=path) from error
    yield from groups.items()


def _split_name(name: str) -> tuple[str, str, str]:
    folder, _, base = name.rpartition("/")
    stem, dot, ext = base.partition(".")
    return f"{folder}/{stem}", dot, ext


def _refuse(info: tarfile.TarInfo, key: str, ext: str, groups: dict[str, dict[str, _Member]]) -> str:
    if not info.isreg() or info.issparse():  # at the offset of a sparse member lies something else than its content
        return "not a plain file"
    if ext != "json" and _image_of(ext) is None:
        return f"extension {ext!r} is not allowed"
    if key.startswith("/") or ".." in key.split("/"):
        return "key points outside the corpus"
    if not 0 < info.size <= MAX_MEMBER_BYTES:
        return f"member of {info.size} bytes"
    return "duplicate key" if ext in groups[key] else ""


def image_member(number: int, ext: str) -> str:
    """What follows the key in the name of a sample's image `number`: "png", then "1.png" and so on."""
    return f"{number}.{ext}" if number else ext


def _image_of(name: str) -> tuple[int, str] | None:
    """(number, extension) of an image member, the inverse of `image_member`; None for any other name."""
    found = re.fullmatch(r"(?:([1-9])\.)?([a-z]+)", name)
    return (int(found[1] or 0), found[2]) if found and found[2] in IMAGE_FORMATS else None


def _check_end(path: Path, offset: int) -> None:
    # Python's tarfile takes a file cut at a member boundary for complete: only the end mark (zero blocks) tells.
    with open(path, "rb") as stream:
        stream.seek(offset)
        tail = stream.read()
    if len(tail) < tarfile.BLOCKSIZE or tail.strip(b"\0") or path.stat().st_size % tarfile.BLOCKSIZE:
        raise ShardError("tar file has no end mark: it was cut", file=path, field="bytes", value=path.stat().st_size)


def _row(
    where: str, key: str, members: dict[str, _Member], boundaries: TierBoundaries
) -> tuple[Sample, dict[str, Any]]:
    images = sorted((*found, name) for name in members if (found := _image_of(name)))
    if "json" not in members or not images or [number for number, *_ in images] != list(range(len(images))):
        raise SampleError(
            "a sample is one .json and one image, or images that are numbered on",
            file=where,
            field="members",
            value=sorted(members),
        )
    text = members["json"].data
    sample = Sample.from_json(text)
    if sample.n_images != len(images):
        raise SampleError("not as many images as its JSON says", file=where, field="n_images", value=len(images))
    if boundaries.tier_of(sample.gsd_m_native) is not sample.tier:
        raise SampleError("GSD lies outside the stated tier", file=where, field="tier", value=str(sample.tier))
    (ext, offset, size, crc32), *later = (
        _image_place(where, format_, members[name], (sample.width, sample.height)) for _, format_, name in images
    )
    return sample, {
        "key": key,
        "image_id": sample.image_id,
        "source": sample.source,
        "ext": ext,
        "image_offset": offset,
        "image_size": size,
        "image_crc32": crc32,
        "json_offset": members["json"].offset,
        "json_size": len(text),
        "json_crc32": zlib.crc32(text),
        "n_questions": len(sample.qas),
        "width": sample.width,
        "height": sample.height,
        LATER_COLUMN: later,
    }


def _image_place(where: str, ext: str, member: _Member, size: tuple[int, int]) -> tuple[str, int, int, int]:
    """(extension, offset, bytes, checksum) of an image; its bytes are let go before the next one's are read."""
    data = member.data
    found = image_size(data, ext, where=where)
    if found != size:
        raise SampleError("image is of another size than its JSON says", file=where, field="width, height", value=found)
    return ext, member.offset, member.size, zlib.crc32(data)


def write_index(root: Path, scan: Scan, *, corpus: str, boundaries: TierBoundaries, content_hash: str) -> Path:
    """Writes `root/index.json`, whole or not at all, and returns its path."""
    document = {
        "schema": INDEX_SCHEMA,
        "corpus": corpus,
        "boundaries": asdict(boundaries),
        "content_hash": content_hash,
        "shards": sorted(scan.entries, key=lambda e: (e["split"], e["tier"], e["file"])),
        "rejected": [asdict(r) for r in scan.rejected],
    }
    path = root / INDEX_NAME
    with replacing_file(path) as new, new.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return path


def index_foreign(root: Path, *, boundaries: TierBoundaries | None = None, max_bad_share: float = 0.01) -> Scan:
    """Gives the WebDataset shards below `root` an index.

    Args:
        root: folder of the corpus; its name becomes the corpus name.
        boundaries: tier boundaries in metres per pixel (default 1 and 10).
        max_bad_share: share of rejected samples above which nothing is written.

    Raises:
        IndexSchemaError: there is no shard below `root`.
        ShardError: a shard is no tar file or was cut.
        QuarantineLimitError: too many samples were rejected; the message quotes the first.
    """
    boundaries, scan = boundaries or TierBoundaries(), Scan()
    paths = sorted(Path(root).rglob("*.tar"))
    if not paths:
        raise IndexSchemaError(
            "no .tar file below this folder", file=root, remedy="name the folder that holds the shards"
        )
    for path in paths:
        scan_shard(path, Path(root), scan, boundaries=boundaries)
    n_bad, n_all = len(scan.rejected), len(scan.rejected) + scan.n_samples
    if n_bad > max_bad_share * n_all or not scan.n_samples:
        first = scan.rejected[0] if scan.rejected else RejectedKey(file=str(root), key="", reason="no samples")
        raise QuarantineLimitError(
            f"{n_bad} of {n_all} samples were rejected, the first because: {first.reason}",
            file=first.file,
            field=first.key,
            remedy=f"mend them, or raise --max-bad-share (now {max_bad_share})",
        )
    digest = hashlib.sha256("".join(entry["sha256"] for entry in scan.entries).encode()).hexdigest()
    name = Path(root).resolve().name
    write_index(Path(root), scan, corpus=name, boundaries=boundaries, content_hash=digest)
    ShardIndex.load(Path(root))
    return scan


@command
def main(argv: list[str]) -> int:
    """Command line of `scaleearth index`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleearth index", description="Give WebDataset shards an index.json.")
    parser.add_argument("root", type=Path, help="folder that holds the .tar files, at any depth")
    parser.add_argument("--max-bad-share", type=float, default=0.01, help="share of bad samples that is tolerated")
    args = parser.parse_args(argv)
    scan = index_foreign(args.root, max_bad_share=args.max_bad_share)
    screen = console()
    screen.print(f"{scan.n_samples} samples in {len(scan.entries)} shards, {len(scan.rejected)} rejected")
    for rejected in scan.rejected:
        screen.print(f"  {rejected.file}#{rejected.key}: {rejected.reason}", soft_wrap=True)
    return 0
