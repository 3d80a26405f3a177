"""The loader: is reading by offset, checked, as fast as plain decoding; and does a step ever wait for it?"""

import tempfile
from pathlib import Path
from typing import Any

import webdataset as wds

from bench.ours import LoraShape, train
from bench.shapes import Bank, Shape, write_corpus
from bench.timing import interleave, rates, ratio
from scaleearth_pl.data.images import decode_rgb
from scaleearth_pl.data.shards import ShardReader

N_IMAGES = 48


def decoding(folder: Path, *, rounds: int, n_images: int = N_IMAGES) -> dict[str, float]:
    """Images per second and core, 512 px JPEG: webdataset's `decode("pil")`, ours, and ours up to patches and ids.

    Both decode image and JSON of every sample; ours also checks sizes and CRC-32 of both and the sample's schema.
    """
    shape = Shape(images=n_images, questions=20)
    bank = Bank(write_corpus(folder / "loader", shape), shape, cached=False)
    urls = [str(path) for path in sorted((bank.root / "train").rglob("*.tar"))]
    reader = ShardReader(bank.index)

    def plain() -> int:
        stream = wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
        return sum(image.size[0] == shape.side and bool(sample) for image, sample in stream)

    def ours() -> int:
        for row in bank.rows:
            sample, data = reader.read(row)
            decode_rgb(data, "jpg", size=(sample.width, sample.height), where=bank.index.where(row))
        return len(bank.rows)

    def whole() -> int:
        for image in range(n_images):
            bank.tree(list(range(image * shape.questions, (image + 1) * shape.questions)))
        return n_images

    seconds = interleave({"webdataset": plain, "ours": ours, "ours_to_ids": whole}, rounds=rounds)
    return rates(seconds) | {"ratio_to_webdataset": 1 / ratio(seconds, "ours", "webdataset")}


def waiting(lora: LoraShape, *, n_steps: int, num_workers: int = 2) -> list[dict[str, Any]]:
    """Share of a step's time spent waiting for data in a real run, by the project's own Throughput callback.

    The start of an epoch, which starts the workers anew, is a figure of its own: an epoch has 24 to 30 steps here, and
    thousands on a corpus that is worth training on.
    """
    points = []
    for k in (16, 100):
        with tempfile.TemporaryDirectory() as scratch:
            shape = Shape(images=N_IMAGES, questions=96 if k == 16 else k)
            root = write_corpus(Path(scratch) / "corpus", shape)
            how: dict[str, int] = {"n_steps": n_steps, "global_batch_tokens": 5_000, "num_workers": num_workers}
            run = train(root, shape, Path(scratch), lora, k=k, **how)
        waited = {"wait_share": run.wait_share, "epoch_start_seconds": run.epoch_start_seconds}
        points.append({"k": k, "workers": num_workers, **waited})
    return points
