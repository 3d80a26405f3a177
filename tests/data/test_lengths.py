import shutil

import numpy as np
import pytest

from scaleearth_pl.core.errors import IndexSchemaError
from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.data.lengths import lengths_of
from scaleearth_pl.data.shards import ShardIndex, ShardReader


@pytest.fixture(scope="module")
def made(fake_corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    processor = GeoScaleDataModule(root=str(fake_corpus), cache_dir=str(cache), min_pixels=1024).processor
    return ShardIndex.load(fake_corpus), processor, cache


def test_lengths_are_those_of_the_encoded_text(made):
    index, processor, cache = made
    lengths = lengths_of(index, ("train", "val"), processor, cache)
    reader = ShardReader(index)
    assert lengths.rows.tolist() == index.rows(("train", "val")).tolist()
    for r, row in enumerate(lengths.rows.tolist()):
        sample = reader.read_sample(row)
        assert lengths.prefix_R[r] == len(
            processor.prefix([processor.n_image_tokens(sample.width, sample.height)], None)
        )
        branches = [processor.branch(qa) for qa in sample.qas]
        span = slice(lengths.first_Q[r], lengths.first_Q[r + 1])
        assert lengths.branch_Q[span].tolist() == [len(b.prompt) + len(b.answer) for b in branches]


def test_the_sidecar_is_measured_once_and_keyed_by_what_matters(made, monkeypatch):
    index, processor, cache = made
    first = lengths_of(index, ("val",), processor, cache)
    monkeypatch.setattr("scaleearth_pl.data.lengths.measure", None)
    again = lengths_of(index, ("val",), processor, cache)
    assert np.array_equal(first.branch_Q, again.branch_Q)
    assert not list(cache.glob(".*"))
    with pytest.raises(TypeError):
        lengths_of(index, ("test",), processor, cache)


def test_unreadable_samples_are_listed_not_planned(made, fake_corpus, tmp_path):
    root = shutil.copytree(fake_corpus, tmp_path / "c")
    index, processor, _ = made
    path = root / index.shards[index.shard_of_row[0]].file
    data = bytearray(path.read_bytes())
    data[int(index.number["json_offset"][0]) + 5] ^= 1
    path.write_bytes(data)
    damaged = ShardIndex.load(root)
    split = damaged.shards[0].split
    for _ in range(2):
        lengths = lengths_of(damaged, (split,), processor, tmp_path / "cache")
        assert 0 not in lengths.rows
        assert [row for row, _ in lengths.rejected] == [0]
        assert "altered" in lengths.rejected[0][1]
    data[int(index.number["json_offset"][0]) + 5] ^= 1
    path.write_bytes(data)
    restored = lengths_of(damaged, (split,), processor, tmp_path / "cache")
    assert 0 in restored.rows and restored.rejected == ()


def test_a_damaged_sidecar_says_what_to_do(made, tmp_path):
    index, processor, _ = made
    lengths_of(index, ("val",), processor, tmp_path)
    (path,) = tmp_path.glob("lengths-*.npz")
    whole = path.read_bytes()
    for n_bytes in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(IndexSchemaError, match="delete the file"):
            lengths_of(index, ("val",), processor, tmp_path)
