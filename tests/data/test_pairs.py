"""Several images in one sample: through shards into one tree, and what a bad one costs."""

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from fakes.corpus import fake_sample, make_fake_corpus, random_image
from fakes.pairs import Images, make_pair_corpus
from fakes.runs import make_data, tiny_model
from PIL import Image
from torch.nn.functional import cross_entropy

from scaleearth_pl.core.errors import IndexSchemaError, QuarantineLimitError, SampleError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import MAX_IMAGES, Sample
from scaleearth_pl.data.collate import Tree, collate, encode_tree
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.index import index_foreign
from scaleearth_pl.prepare.write import ShardWriter

WHOLE = {"global_batch_tokens": 10**6, "micro_token_budget": 10**6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Images]:
    root = tmp_path_factory.mktemp("pairs") / "corpus"
    return root, make_pair_corpus(root)


def test_pairs_come_back_byte_for_byte_beside_single_images(made: tuple[Path, Images]) -> None:
    root, images = made
    index = ShardIndex.load(root)
    index.verify()
    reader = ShardReader(index)
    found = {sample.image_id: (sample, stored) for sample, stored in map(reader.read_all, range(len(index)))}
    assert {name: tuple(image.data for image in stored) for name, (_, stored) in found.items()} == images
    assert all(sample.n_images == len(stored) == len(images[name]) for name, (sample, stored) in found.items())
    assert len(index.later) == 5
    for row in range(len(index)):
        if row in index.later:
            with pytest.raises(SampleError, match="several images"):
                reader.read(row)
        else:
            assert reader.read(row)[1] == reader.read_all(row)[1][0].data
    reader.close()


def test_plain_webdataset_reads_both_images_under_one_key(made: tuple[Path, Images]) -> None:
    root, images = made
    urls = [str(path) for path in sorted(root.rglob("*.tar"))]
    for record in webdataset.WebDataset(urls, shardshuffle=False):
        sample = Sample.from_json(record["json"])
        assert (record["png"], *(record[f"{k}.jpg"] for k in range(1, sample.n_images))) == images[sample.image_id]


def test_the_scan_of_foreign_shards_finds_the_same_pairs(made: tuple[Path, Images], tmp_path: Path) -> None:
    root = shutil.copytree(made[0], tmp_path / "pairs")
    ours = json.loads((root / "index.json").read_text())
    index_foreign(root)
    assert json.loads((root / "index.json").read_text())["shards"] == ours["shards"]


def test_a_corpus_of_single_images_says_nothing_of_pairs(fake_corpus: Path) -> None:
    """Its index and samples are those of before, so that old versions read them and hashes stand."""
    document = json.loads((fake_corpus / "index.json").read_text())
    assert all("later" not in entry["samples"] for entry in document["shards"])
    assert "n_images" not in fake_sample(0).to_json()
    assert Sample.from_json(fake_sample(0).to_json()).n_images == 1
    pair = replace(fake_sample(0), n_images=2)
    assert Sample.from_json(pair.to_json()) == pair


@pytest.mark.parametrize("n_images", [0, MAX_IMAGES + 1, True, 2.0, "2", None])
def test_an_impossible_number_of_images_is_refused(n_images: Any) -> None:
    with pytest.raises(SampleError, match="n_images"):
        replace(fake_sample(0), n_images=n_images)


def by_hand(root: Path, images: Images, data: Any) -> list[Tree]:
    """The trees of split train, from the images as they were before they went into shards."""
    processor, trees = data.processor, []
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    for row in index.rows(("train",)).tolist():
        sample = reader.read_sample(row)
        pixels = [Image.open(io.BytesIO(one)).convert("RGB") for one in images[sample.image_id]]
        processed = [processor.image(one) for one in pixels]
        trees.append(encode_tree(sample, processed, sample.qas, processor, boundaries=TierBoundaries()))
    reader.close()
    return trees


def test_a_pair_is_one_tree_of_the_planned_length(made: tuple[Path, Images]) -> None:
    root, images = made
    data = make_data(root, **WHOLE)
    (batch,) = data.step_batch(0).micro
    assert Counter(batch.tree_of_image_I.tolist()) == {
        g: len(images[tree.image_id]) for g, tree in enumerate(batch.trees)
    }
    split = data.split_plan("train")
    planned = dict(
        zip([data.index.text["image_id"][r] for r in split.lengths.rows], split.lengths.prefix_R, strict=True)
    )
    assert {t.image_id: n for t, n in zip(batch.trees, batch.prefix_len_G.tolist(), strict=True)} == planned
    assert [row in data.index.later for row in split.lengths.rows.tolist()].count(True) == 3


def test_losses_of_pair_trees_are_those_of_trees_built_by_hand(made: tuple[Path, Images]) -> None:
    root, images = made
    data = make_data(root, **WHOLE)
    model = tiny_model(root).eval()
    trees = {tree.info.image_id: tree for tree in by_hand(root, images, data)}
    (batch,) = data.step_batch(0).micro
    with torch.no_grad():
        ours, hand = model(batch), model(collate([trees[tree.image_id] for tree in batch.trees]))
    assert ours.ce_sum.equal(hand.ce_sum) and ours.nll_sum.equal(hand.nll_sum) and ours.mu_G.equal(hand.mu_G)


def test_the_loss_of_a_pair_is_that_of_transformers_own_prompt_with_two_images(made: tuple[Path, Images]) -> None:
    root, images = made
    data = make_data(root, **WHOLE)
    pair = next(tree for tree in by_hand(root, images, data) if len(tree.images) == 2)
    model = tiny_model(root, adapted=False).eval()
    with torch.no_grad():
        ours = model(collate([pair])).ce_sum
        model.backbone.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
        total = 0.0
        for branch in pair.branches:
            ids = torch.tensor([[*pair.prefix, *branch.prompt, *branch.answer]])
            logits = model.backbone(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == data.processor.image_token_id).int(),
                pixel_values=torch.cat([image.pixel_values_PD for image in pair.images]),
                image_grid_thw=torch.tensor([image.grid for image in pair.images]),
            ).logits[0]
            n = len(branch.answer)
            total += float(cross_entropy(logits[-n - 1 : -1], ids[0, -n:], reduction="sum"))
    assert float(ours) == pytest.approx(total, rel=1e-4)


def test_sse_u_pools_the_images_of_a_tree(made: tuple[Path, Images]) -> None:
    """It reads both, whichever comes first, and twice the same image is that image."""
    root, images = made
    data = make_data(root, **WHOLE)
    pair = next(tree for tree in by_hand(root, images, data) if len(tree.images) == 2)
    first, second = pair.images
    model = tiny_model(root).eval()
    sample = replace(fake_sample(0), width=first.seen_size[0], height=first.seen_size[1])

    def mu(*shown: Any) -> float:
        tree = encode_tree(sample, shown, sample.qas, data.processor, boundaries=TierBoundaries())
        batch = collate([tree])
        with torch.no_grad():
            return float(model.read_gsd(model.encode(batch), batch)[0])

    assert mu(first, second) == pytest.approx(mu(second, first), abs=1e-6)
    assert mu(first, first) == pytest.approx(mu(first), abs=1e-6)
    assert min(abs(mu(first, second) - mu(one)) for one in pair.images) > 1e-4


def flip(root: Path, row: int) -> str:
    """Changes one byte of the second image of a row."""
    index = ShardIndex.load(root)
    path = root / index.shards[int(index.shard_of_row[row])].file
    data = bytearray(path.read_bytes())
    data[index.later[row][0].offset + 40] ^= 1
    path.write_bytes(data)
    return index.text["image_id"][row]


def test_a_corrupt_second_image_costs_its_sample_and_is_counted(made: tuple[Path, Images], tmp_path: Path) -> None:
    root = shutil.copytree(made[0], tmp_path / "corpus")
    index = ShardIndex.load(root)
    row = next(row for row in index.rows(("train",)).tolist() if row in index.later)
    bad = flip(root, row)
    with pytest.raises(SampleError, match="image 1 member is cut or altered"):
        ShardReader(index).read_all(row)
    data = make_data(root, max_bad_share=0.2, **WHOLE)
    batch = data.step_batch(0)
    assert batch.n_holes == 1
    assert {t.image_id for m in batch.micro for t in m.trees} == {f"train-{n:05d}" for n in range(6)} - {bad}
    with pytest.raises(QuarantineLimitError, match="image 1 member"):
        make_data(root, max_bad_share=0.1, **WHOLE).step_batch(0)


def test_a_second_image_that_does_not_decode_is_quarantined(tmp_path: Path) -> None:
    """Its header is sound and its checksum true: only decoding finds out."""
    good = random_image(np.random.default_rng(0), 64, 64, "jpg")
    with ShardWriter(tmp_path / "corpus", corpus="c") as writer:
        for number in range(4):
            sample = replace(fake_sample(number), n_images=2)
            writer.write(sample, good, "jpg", later=[(good[: len(good) // 2] if number == 1 else good, "jpg")])
        writer.write(fake_sample(4, split="val"), good, "jpg")
    batch = make_data(tmp_path / "corpus", max_bad_share=0.3, **WHOLE).step_batch(0)
    assert (batch.n_holes, sum(len(m.trees) for m in batch.micro)) == (1, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "length"),
        ([[["pkl", 0, 9, 0]]] * 4, "extension"),
        ([[["png", 0, 2**40, 0]]] * 4, "size"),
        ([[["png", 0, 0, 0]]] * 4, "size"),
        ([[["png", 0, 9, 0]] * MAX_IMAGES] * 4, "too many"),
        ([[["png", 0, 9]]] * 4, "parse"),
        (None, "parse"),
    ],
)
def test_a_hostile_column_of_later_images_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    root = make_fake_corpus(tmp_path / "c", 4, n_val=0, n_test=0)
    document = json.loads((root / "index.json").read_text())
    entry = max(document["shards"], key=lambda e: len(e["samples"]["key"]))
    n_rows = len(entry["samples"]["key"])
    entry["samples"]["later"] = value[:n_rows] if value else value
    (root / "index.json").write_text(json.dumps(document))
    with pytest.raises(IndexSchemaError, match=message):
        ShardIndex.load(root)


def test_an_index_that_invents_a_second_image_contradicts_the_sample(tmp_path: Path) -> None:
    root = make_fake_corpus(tmp_path / "c", 1, n_val=0, n_test=0)
    document = json.loads((root / "index.json").read_text())
    columns = document["shards"][0]["samples"]
    image = [columns[f"image_{what}"][0] for what in ("offset", "size", "crc32")]
    columns["later"] = [[["png", *image]]]
    (root / "index.json").write_text(json.dumps(document))
    with pytest.raises(SampleError, match=r"contradicts the index.*n_images"):
        ShardReader(ShardIndex.load(root)).read_all(0)
