import hashlib
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from fakes.corpus import fake_sample, make_fake_corpus, random_image

from scaleearth_pl.core.errors import ConfigError, DiskSpaceError, SampleError, ShardError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.prepare.write import ShardWriter

IMAGE = random_image(np.random.default_rng(0), 64, 64)


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_equal_samples_are_equal_bytes(tmp_path):
    a = make_fake_corpus(tmp_path / "a", 9, with_unknown=True)
    b = make_fake_corpus(tmp_path / "b", 9, with_unknown=True)
    assert digests(a) == digests(b)
    assert digests(a) != digests(make_fake_corpus(tmp_path / "c", 9, with_unknown=True, seed=1))


def test_shards_are_filed_by_split_and_native_tier(fake_corpus):
    index = ShardIndex.load(fake_corpus)
    for shard in index.shards:
        assert shard.file.startswith(f"{shard.split}/{shard.tier}/")
    assert len(index) == 20
    assert index.content_hash == "fake-0"
    index.verify()


def test_plain_webdataset_reads_every_sample(fake_corpus):
    index = ShardIndex.load(fake_corpus)
    urls = [str(fake_corpus / shard.file) for shard in index.shards]
    found = {}
    for record in webdataset.WebDataset(urls, shardshuffle=False):
        sample = Sample.from_json(record["json"])
        found[sample.image_id] = (record["__key__"], len(record["png"]))
    expected = {
        index.text["image_id"][row]: (index.text["key"][row], int(index.number["image_size"][row]))
        for row in range(len(index))
    }
    assert found == expected


def test_shards_roll_over(tmp_path):
    make_fake_corpus(tmp_path / "c", 30, n_val=0, n_test=0, samples_per_shard=4)
    index = ShardIndex.load(tmp_path / "c")
    assert [s.stop - s.start for s in index.shards] == [4, 4, 2] * 3


def test_odd_ids_get_plain_unique_keys(tmp_path):
    ids = ["a.b/c", "a_b_c", "a.b.c", "ü" * 50, "x" * 200]
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        for number, image_id in enumerate(ids):
            writer.write(replace(fake_sample(number), image_id=image_id), IMAGE, "png")
    index = ShardIndex.load(tmp_path / "c")
    assert list(index.text["image_id"]) == ids
    assert len(set(index.text["key"])) == len(ids)
    assert all("." not in key and "/" not in key for key in index.text["key"])


@pytest.mark.parametrize(
    ("change", "image", "ext", "message"),
    [
        ({"tier": Tier.LOW}, IMAGE, "png", "tier"),
        ({"width": 65}, IMAGE, "png", "size"),
        ({"split": "../evil"}, IMAGE, "png", "split"),
        ({}, IMAGE, "jpg", "JPEG"),
        ({}, IMAGE, "pickle", "ext"),
        ({}, b"", "png", "PNG"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path, change, image, ext, message):
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        writer.write(fake_sample(0), IMAGE, "png")
        with pytest.raises(SampleError, match=message):
            writer.write(replace(fake_sample(1), **change), image, ext)


def test_an_id_is_written_once(tmp_path):
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        writer.write(fake_sample(0), IMAGE, "png")
        with pytest.raises(SampleError, match="before"):
            writer.write(fake_sample(0), IMAGE, "png")


def test_a_killed_build_leaves_no_valid_corpus(tmp_path):
    make_fake_corpus(tmp_path / "c", 4)
    writer = ShardWriter(tmp_path / "c", corpus="c", overwrite=True)
    writer.write(fake_sample(0), IMAGE, "png")
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not (tmp_path / "c" / "index.json").exists()


def test_an_existing_corpus_is_not_overwritten_unasked(tmp_path):
    make_fake_corpus(tmp_path / "c", 12)
    with pytest.raises(ConfigError, match="exists"):
        ShardWriter(tmp_path / "c", corpus="c")
    with ShardWriter(tmp_path / "c", corpus="c", overwrite=True) as writer:
        writer.write(fake_sample(0), IMAGE, "png")
    assert len(list((tmp_path / "c").rglob("*.tar"))) == 1


def test_a_full_disk_stops_before_the_reserve(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        writer.write(fake_sample(0), IMAGE, "png")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10))
            with pytest.raises(DiskSpaceError, match="room"):
                writer.write(fake_sample(1), IMAGE, "png")


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing"), ShardWriter(tmp_path / "c", corpus="c"):
        pass


class Forged(Sample):
    """Writes another GSD than the one it was checked with."""

    def to_json(self):
        return super().to_json().replace('"gsd_m_native":0.3', '"gsd_m_native":-0.3')


def test_what_does_not_read_back_is_no_corpus(tmp_path):
    good = fake_sample(0)
    writer = ShardWriter(tmp_path / "c", corpus="c")
    writer.write(Forged(**{name: getattr(good, name) for name in Sample.__dataclass_fields__}), IMAGE, "png")
    with pytest.raises(ShardError, match="positive"):
        writer.close()
    assert not (tmp_path / "c" / "index.json").exists()
