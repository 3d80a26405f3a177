"""Change pairs in `prepare`: what is refused, what passes through, and that guards look at every image."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.archives import make_mtsccd
from fakes.corpus import fake_sample, random_image
from fakes.labelled import write_jsonl
from fakes.pairs import make_pair_corpus
from PIL import Image

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import generate, leakage, merge
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.registry import make_source
from scaleearth_pl.prepare.index import index_foreign
from scaleearth_pl.prepare.prints import count_images, read_prints
from scaleearth_pl.prepare.write import ShardWriter

IMAGE, OTHER = (random_image(np.random.default_rng(seed), 64, 64) for seed in range(2))
PAIR = replace(fake_sample(9), n_images=2)


@pytest.mark.parametrize(
    ("sample", "later", "message"),
    [
        (PAIR, [], "not as many images"),
        (fake_sample(9), [(OTHER, "png")], "not as many images"),
        (PAIR, [(random_image(np.random.default_rng(0), 64, 96), "png")], "another size"),
        (PAIR, [(OTHER, "jpg")], "JPEG"),
        (PAIR, [(OTHER, "pickle")], "ext"),
    ],
)
def test_the_writer_checks_every_image(tmp_path: Path, sample, later, message) -> None:
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        writer.write(fake_sample(0), IMAGE, "png")
        with pytest.raises(SampleError, match=message):
            writer.write(sample, IMAGE, "png", later=later)


@pytest.mark.parametrize(
    ("sample", "names", "reason"),
    [
        (PAIR, ["png", "2.png"], "numbered on"),
        (PAIR, ["1.png", "2.png"], "numbered on"),
        (PAIR, ["png", "1.png", "1.jpg"], "numbered on"),
        (PAIR, ["png", "01.png"], "not allowed"),
        (PAIR, ["png", "0.png"], "not allowed"),
        (PAIR, ["png", "1.pkl"], "not allowed"),
        (PAIR, ["png"], "not as many images"),
        (fake_sample(9), ["png", "1.png"], "not as many images"),
        (replace(PAIR, height=96), ["png", "1.png"], "another size"),
    ],
)
def test_foreign_members_that_are_no_pair_are_rejected(tmp_path: Path, sample, names, reason) -> None:
    members = [("0.json", fake_sample(0).to_json().encode()), ("0.png", IMAGE)]
    members += [("9.json", sample.to_json().encode()), *((f"9.{name}", IMAGE) for name in names)]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    scan = index_foreign(tmp_path, max_bad_share=0.9)
    assert any(reason in rejected.reason for rejected in scan.rejected)
    assert scan.n_samples == 1


def test_mtsccd_pairs_become_trees_of_two_images(tmp_path: Path) -> None:
    root = make_mtsccd(tmp_path)
    sources = {"mtsccd": {"pairs": "pairs.csv"}}
    tally = import_archives(ArchivesConfig(root=tmp_path / "mtsccd", sources=sources), tmp_path / "out")
    assert (tally.images.total(), tally.n_rejected) == (2, 0)
    index = ShardIndex.load(tmp_path / "out")
    reader = ShardReader(index)
    found = {sample.image_id: (sample, images) for sample, images in map(reader.read_all, range(len(index)))}
    files = [root / "MtSCCD_LUSC" / "train" / name for name in (
        "Hangzhou/residential/Hangzhou_residential.png",
        "Wuhan/residential/Wuhan_residential.png",
        "Wuhan/woodland/Wuhan_woodland.png",
    )]  # fmt: skip
    first, *second = (file.read_bytes() for file in files)
    for number, (answer, other) in enumerate(zip(("no", "yes"), second, strict=True)):
        sample, images = found[f"mtsccd-pair-{number}"]
        assert tuple(image.data for image in images) == (first, other)
        assert (sample.n_images, sample.gsd_m_native, sample.qas[0].answer) == (2, 1.0, answer)


def test_a_pair_of_two_sizes_or_with_a_bad_image_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make_mtsccd(tmp_path)
    woodland = root / "MtSCCD_LUSC" / "train" / "Wuhan" / "woodland" / "Wuhan_woodland.png"
    config = ArchivesConfig(root=tmp_path / "mtsccd", sources={"mtsccd": {"pairs": "pairs.csv"}}, max_bad_share=0.5)
    for number, spoil in enumerate(
        (lambda: Image.new("RGB", (60, 61)).save(woodland), lambda: woodland.write_bytes(b"x"))
    ):
        spoil()
        tally = import_archives(config, tmp_path / f"out{number}")
        assert (tally.images.total(), dict(tally.rejected)) == (1, {("mtsccd", "bad_image"): 1})
        assert ("differ in size" in (tmp_path / f"out{number}" / "quarantine.jsonl").read_text()) == (number == 0)


def test_the_split_of_a_pair_is_read_as_a_folders_name_or_counted(tmp_path: Path) -> None:
    pairs = make_mtsccd(tmp_path) / "pairs.csv"
    t1_t2 = pairs.read_text().splitlines()[1]
    pairs.write_text(
        "t1,t2,split\n" + "".join(f"{t1_t2},{split}\n" for split in ("Training", "", "Validation", "trian"))
    )
    source = make_source("mtsccd", {"pairs": "pairs.csv", "splits": ["train", "val"]}, pairs.parent)
    *found, bad = source.records()
    assert [entry.split for entry in found if isinstance(entry, Found)] == ["train", "train", "val"]
    assert isinstance(bad, Rejected) and bad.kind == "bad_row" and "'trian'" in bad.reason


def test_generation_passes_pairs_over_and_merging_keeps_them(tmp_path: Path) -> None:
    images = make_pair_corpus(tmp_path / "corpus")
    config = generate.GenerateConfig(corpus=tmp_path / "corpus")
    assert generate.plan_size(config) == 3 * len(config.families)
    write_jsonl(tmp_path / "records.jsonl", [])
    merge.merge(merge.MergeConfig(corpus=tmp_path / "corpus", records=tmp_path / "records.jsonl"), tmp_path / "new")
    index = ShardIndex.load(tmp_path / "new")
    reader = ShardReader(index)
    found = {sample.image_id: stored for sample, stored in map(reader.read_all, range(len(index)))}
    assert {name: tuple(image.data for image in stored) for name, stored in found.items()} == images


def test_the_leakage_guard_looks_at_the_second_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ours, shared, theirs = (random_image(rng, 64, 64) for _ in range(3))
    for name, split, first in (("train", "train", ours), ("test", "test", theirs)):
        with ShardWriter(tmp_path / name, corpus=name) as writer:
            writer.write(replace(fake_sample(0, split=split), n_images=2), first, "png", later=[(shared, "png")])
    assert count_images(tmp_path / "train") == len(read_prints(tmp_path / "train")) == 2
    rows = list(leakage.check(tmp_path / "train", [tmp_path / "test"]))
    assert leakage.dropped(rows) == ["train-00000"]
    (cover,) = (row for row in rows if row["kind"] == "coverage")
    assert (cover["images"], cover["found"]) == (1, 1)
