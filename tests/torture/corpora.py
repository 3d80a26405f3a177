"""Corpora that are made to be broken, and the ways to break them."""

import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bench
from legs import Run
from numpy.typing import NDArray


def one_shard(root: Path, n_images: int) -> Path:
    from fakes.corpus import fake_sample, random_image

    from scaleearth_pl.prepare.write import ShardWriter

    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(0)
    with ShardWriter(root, corpus="d1", samples_per_shard=n_images) as writer:
        for number in range(n_images):
            writer.write(fake_sample(number), random_image(rng, 64, 64), "png")
    return root


def fresh_folder(bench: Bench, name: str) -> Path:
    root = bench.root / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    return root


def prepared_run(bench: Bench, name: str, make: Any = None, **settings: Any) -> tuple[Run, Path]:
    """A run on a corpus of its own, which may be broken."""
    root = fresh_folder(bench, name) / "corpus"
    if make is None:
        shutil.copytree(bench.corpus, root, ignore=shutil.ignore_patterns(".cache"))
    else:
        make(root)
    return bench.run(name, corpus=root, **settings), root


def sample_bytes(number: int, ext: str = "png") -> tuple[bytes, bytes]:
    from fakes.corpus import fake_sample, random_image

    rng: np.random.Generator = np.random.default_rng(number)
    return fake_sample(number).to_json().encode(), random_image(rng, 64, 64, ext)  # type: ignore[arg-type]


def members_of(number: int) -> list[tuple[str, bytes]]:
    sample, image = sample_bytes(number)
    return [(f"{number}.json", sample), (f"{number}.png", image)]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def train_rows(root: Path) -> tuple[Any, NDArray[np.int64]]:
    from scaleearth_pl.data.shards import ShardIndex

    index = ShardIndex.load(root)
    return index, index.rows(("train",))


def flip_in_image(root: Path, *, row: int) -> None:
    index, rows = train_rows(root)
    number = int(rows[row])
    path = root / index.shards[index.shard_of_row[number]].file
    data = bytearray(path.read_bytes())
    data[int(index.number["image_offset"][number]) + int(index.number["image_size"][number]) // 2] ^= 1
    path.write_bytes(data)


def forge_json(root: Path, *, row: int, old: bytes, new: bytes) -> None:
    """A forgery that fits the index: checksum and size are made to agree."""
    document = json.loads((root / "index.json").read_text())
    entry = next(e for e in document["shards"] if e["file"] == "train/high/00000.tar")
    data = bytearray((root / entry["file"]).read_bytes())
    start, size = entry["samples"]["json_offset"][row], entry["samples"]["json_size"][row]
    text = bytes(data[start : start + size]).replace(old, new)
    assert len(text) == size and text != data[start : start + size]
    data[start : start + size] = text
    entry["samples"]["json_crc32"][row] = zlib.crc32(text)
    (root / entry["file"]).write_bytes(data)
    (root / "index.json").write_text(json.dumps(document))


def one_bad(root: Path) -> str:
    """Why the only sample of a foreign corpus cannot be read."""
    from scaleearth_pl.core.errors import SampleError
    from scaleearth_pl.data.images import decode_rgb
    from scaleearth_pl.data.shards import ShardIndex, ShardReader
    from scaleearth_pl.prepare.index import index_foreign

    index_foreign(root)
    index = ShardIndex.load(root)
    sample, data = ShardReader(index).read(0)
    try:
        decode_rgb(data, index.text["ext"][0], size=(sample.width, sample.height), where="x")
    except SampleError as error:
        return str(error)
    return ""
