import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from fakes.corpus import make_fake_corpus

from scaleearth_pl.core.errors import IndexSchemaError, SampleError, ShardError
from scaleearth_pl.data.shards import ShardIndex, ShardReader


@pytest.fixture
def corpus(fake_corpus, tmp_path):
    return shutil.copytree(fake_corpus, tmp_path / "corpus")


def read_all(root):
    index = ShardIndex.load(root)
    index.check_files(index.splits)
    reader = ShardReader(index)
    return [reader.read(row)[0].image_id for row in range(len(index))]


def test_reads_every_row_in_any_order(fake_corpus):
    index = ShardIndex.load(fake_corpus)
    reader = ShardReader(index)
    for row in np.random.default_rng(0).permutation(len(index)).tolist():
        sample, data = reader.read(row)
        assert sample.image_id == index.text["image_id"][row]
        assert len(sample.qas) == index.number["n_questions"][row]
        assert data[:4] == b"\x89PNG"


def test_a_pickled_reader_reopens_its_files(fake_corpus):
    reader = ShardReader(ShardIndex.load(fake_corpus))
    first = reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(0) == first
    reader.close()
    assert reader.read(0) == first


def test_every_cut_is_detected_before_the_first_read(corpus):
    index = ShardIndex.load(corpus)
    path = corpus / index.shards[0].file
    whole = path.read_bytes()
    for cut in range(0, len(whole), 512):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="size"):
            index.check_files((index.shards[0].split,))
        reader = ShardReader(index)
        for _ in range(2):  # whoever goes on after the error is told again
            with pytest.raises(ShardError, match="size"):
                reader.read(0)
    path.unlink()
    with pytest.raises(ShardError, match="missing"):
        index.check_files((index.shards[0].split,))


def test_every_changed_byte_of_a_member_is_detected(corpus):
    index = ShardIndex.load(corpus)
    path = corpus / index.shards[0].file
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for kind in ("image", "json"):
        start, size = int(index.number[f"{kind}_offset"][0]), int(index.number[f"{kind}_size"][0])
        for place in rng.integers(start, start + size, 40).tolist():
            damaged = whole.copy()
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(SampleError, match=f"{kind} member is cut or altered"):
                ShardReader(index).read(0)
            with pytest.raises(ShardError, match="altered"):
                index.verify()


def test_a_gsd_outside_the_tier_of_its_shard_is_refused(corpus):
    document = json.loads((corpus / "index.json").read_text())
    document["boundaries"] = {"high_below_m": 0.1, "mid_below_m": 10.0}
    (corpus / "index.json").write_text(json.dumps(document))
    with pytest.raises(SampleError, match="outside the tier"):
        read_all(corpus)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "scaleearth-index/0", "schema"),
        (("shards", 0, "file"), "../../etc/passwd.tar", "plain relative"),
        (("shards", 0, "file"), "pipe:cat x.tar", "plain relative"),
        (("shards", 0, "file"), "/abs/x.tar", "plain relative"),
        (("shards", 0, "tier"), "huge", "parse"),
        (("shards", 0, "samples", "key"), ["a"], "length"),
        (("shards", 0, "samples", "ext", 0), "pkl", "extension"),
        (("shards", 0, "samples", "image_size", 0), 2**40, "size"),
        (("shards", 0, "samples", "json_size", 0), 0, "size"),
        (("shards", 0, "samples", "json_offset", 0), -512, "offset"),
        (("shards", 0, "samples", "width", 0), None, "parse"),
    ],
)
def test_a_hostile_or_foreign_index_is_refused(corpus, path, value, message):
    document = json.loads((corpus / "index.json").read_text())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (corpus / "index.json").write_text(json.dumps(document))
    with pytest.raises(IndexSchemaError, match=message):
        ShardIndex.load(corpus)


def test_absent_index_or_split_says_what_to_do(tmp_path, fake_corpus):
    with pytest.raises(IndexSchemaError, match="scaleearth prepare"):
        ShardIndex.load(tmp_path)
    with pytest.raises(IndexSchemaError, match="'train'"):
        ShardIndex.load(fake_corpus).rows(("trian",))


def test_many_shards_need_few_handles(tmp_path, monkeypatch):
    monkeypatch.setattr("scaleearth_pl.data.shards.MAX_OPEN_SHARDS", 2)
    root = make_fake_corpus(tmp_path / "c", 24, samples_per_shard=1)
    reader = ShardReader(ShardIndex.load(root))
    for row in [*range(24), 0, 5]:
        reader.read(row)
    assert len(reader._handles) == 2


def test_a_reader_that_is_gone_holds_no_files(fake_corpus):
    index = ShardIndex.load(fake_corpus)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        ShardReader(index).read(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_fails_costs_the_sample(fake_corpus, monkeypatch):
    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("scaleearth_pl.data.shards.os.pread", broken)
    with pytest.raises(SampleError, match="cannot be read: Input/output error"):
        ShardReader(ShardIndex.load(fake_corpus)).read(0)
