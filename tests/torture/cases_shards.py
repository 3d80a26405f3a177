"""D1, D2, D4: what can be wrong with a shard file is found against the index, and never joined to another sample."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpora import fresh_folder, members_of, one_shard, sample_bytes, write_tar
from harness import Bench, case

Delivered = dict[str, tuple[str, bytes]]
"""JSON text and image bytes by image id."""


@case("D1", "shard cut at every 512-byte offset, and a thousand other mutations")
def d1(bench: Bench) -> str:
    """Each is found by the full check; reading by the index never delivers a byte that was not written."""
    from scaleearth_pl.core.errors import ShardError
    from scaleearth_pl.data.shards import ShardIndex

    root = one_shard(bench.root / "d1", n_images=20)
    index = ShardIndex.load(root)
    path = root / index.shards[0].file
    original, whole = _delivered(index), path.read_bytes()
    mutations = [*_cuts(whole), *_others(whole, 1000 if bench.full else 40)]
    mutations = mutations if bench.full else mutations[::7]
    undetected = altered = foreign = 0
    peer = {"cut": [0, 0], "other": [0, 0]}
    for kind, data in mutations:
        path.write_bytes(data)
        with contextlib.suppress(ShardError):
            index.verify()
            undetected += 1
        altered += any(original[image] != got for image, got in _delivered(index).items())
        foreign += kind == "cut" and not _index_refuses(path, len(original))
        if bench.full:
            seen = peer["cut" if kind == "cut" else "other"]
            seen[0] += 1
            seen[1] += _silent_in_webdataset(path, original)
    path.write_bytes(whole)
    assert not undetected and not altered and not foreign, (undetected, altered, foreign)
    bench.figures["silent_faults"] = {
        "injected": len(mutations),
        "undetected": undetected,
        "altered_samples_delivered": altered,
        "cuts_indexed_as_whole": foreign,
        "webdataset_undetected": {kind: f"{silent} of {n}" for kind, (n, silent) in peer.items()},
    }
    found = f"{len(mutations)} mutations: 0 undetected, 0 altered samples delivered"
    (n_cuts, cuts), (n_others, others) = peer.values()
    missed = f"; plain webdataset misses {cuts} of {n_cuts} cuts and {others} of {n_others} others"
    return found + (missed if bench.full else "")


def _cuts(whole: bytes) -> Iterator[tuple[str, bytes]]:
    return (("cut", whole[:at]) for at in range(0, len(whole), 512))


def _others(whole: bytes, n: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(1)
    found = []
    for number in range(n):
        data = bytearray(whole)
        a, b = sorted(rng.integers(0, len(whole) - 512, 2).tolist())
        kind = ("flip", "zeros", "swap", "insert", "delete", "garbage")[number % 6]
        if kind == "flip":
            data[a] ^= 1 << int(rng.integers(8))
        elif kind == "zeros":  # a file system that lost its tail: right size, no content
            data[a : a + 512] = b"\xa5" * 512 if not any(data[a : a + 512]) else bytes(512)
        elif kind == "swap":
            data[a : a + 64], data[b : b + 64] = data[b : b + 64], data[a : a + 64]
            if bytes(data) == whole:
                data[a] ^= 1
        elif kind == "insert":
            data[a:a] = data[b : b + 512]
        elif kind == "delete":
            del data[a : a + 512]
        else:
            data += rng.bytes(512)
        found.append((kind, bytes(data)))
    return found


def _delivered(index: Any) -> Delivered:
    """Whatever the reader hands out; rows that it refuses are absent."""
    from scaleearth_pl.core.errors import GsdError, SampleError, ShardError
    from scaleearth_pl.data.shards import ShardReader

    reader, found = ShardReader(index), {}
    for row in range(len(index)):
        with contextlib.suppress(SampleError, GsdError, ShardError):
            sample, data = reader.read(row)
            found[sample.image_id] = (sample.to_json(), data)
    reader.close()
    return found


def _index_refuses(path: Path, n_images: int) -> bool:
    """A cut shard given to `scaleearth index` as a foreign one: no index comes of it, unless only padding was lost."""
    from scaleearth_pl.core.errors import ShardError
    from scaleearth_pl.core.gsd import TierBoundaries
    from scaleearth_pl.prepare.index import Scan, scan_shard

    scan = Scan()
    try:
        scan_shard(path, path.parent, scan, boundaries=TierBoundaries())
    except ShardError:
        return True
    return scan.n_samples == n_images and not scan.rejected


def _silent_in_webdataset(path: Path, original: Delivered) -> bool:
    """The same file through plain webdataset: other samples than were written, and no error."""
    import webdataset

    from scaleearth_pl.core.sample import Sample

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for row in webdataset.WebDataset(str(path), shardshuffle=False):
                sample = Sample.from_json(row["json"])
                found[sample.image_id] = (sample.to_json(), row["png"])
        except Exception:
            return False
    return found != original


@case("D2", "error in shard A; shard B starts with the same key")
def d2(bench: Bench) -> str:
    """Image and JSON of a sample always come from one shard."""
    from scaleearth_pl.data.shards import ShardIndex, ShardReader
    from scaleearth_pl.prepare.index import index_foreign

    root = fresh_folder(bench, "d2")
    (first, image_a), (second, image_b), (third, image_c) = (sample_bytes(n) for n in range(3))
    write_tar(root / "a.tar", [("0.json", third), ("0.png", image_c), ("7.png", image_a)])  # 7 has lost its JSON ...
    write_tar(root / "b.tar", [("7.json", second), ("8.json", first), ("8.png", image_a)])  # ... and here its image
    scan = index_foreign(root, max_bad_share=0.9)
    assert sorted(r.key for r in scan.rejected) == ["7", "7"], scan.rejected
    write_tar(root / "b.tar", [("7.json", second), ("7.png", image_b)])
    index_foreign(root, max_bad_share=0.9)
    index = ShardIndex.load(root)
    read = [ShardReader(index).read(row) for row in range(len(index))]
    assert [(s.image_id, data) for s, data in read] == [("train-00002", image_c), ("train-00001", image_b)]
    return "the halves are rejected, never joined"


@case("D4", "missing JSON, duplicate key, empty shard, zero-byte member")
def d4(bench: Bench) -> str:
    """Each is a record in the index's list of rejections, with its reason."""
    from scaleearth_pl.prepare.index import index_foreign

    root = fresh_folder(bench, "d4")
    members = [m for n in range(8) for m in members_of(n)]
    members += [("90.png", sample_bytes(90)[1]), *members_of(3), ("91.json", b""), ("91.png", sample_bytes(91)[1])]
    write_tar(root / "a.tar", members)
    write_tar(root / "empty.tar", [])
    scan = index_foreign(root, max_bad_share=0.9)
    reasons = " | ".join(r.reason for r in scan.rejected)
    for expected in ("one .json and one image", "duplicate key", "0 bytes"):
        assert expected in reasons, reasons
    assert scan.n_samples == 8
    rows = json.loads((root / "index.json").read_text())["rejected"]
    assert len(rows) == len(scan.rejected)
    return f"{len(rows)} records with reasons; the empty shard adds nothing"
