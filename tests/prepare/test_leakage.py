"""Leakage guard: copies are found however they were re-encoded or turned, different tiles are not, and it says so."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.corpus import fake_sample, make_fake_corpus, random_image
from PIL import Image, ImageEnhance

from scaleearth_pl.core import imagehash as perceptual
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import Question
from scaleearth_pl.data import images
from scaleearth_pl.prepare import leakage
from scaleearth_pl.prepare.drop_list import read_drop
from scaleearth_pl.prepare.prints import read_prints
from scaleearth_pl.prepare.write import ShardWriter

REAL = Path(__file__).parents[3] / "shared" / "real"


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue()))


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR),
    "averaged to a quarter": lambda image: image.reduce(4),
    "squeezed": lambda image: image.resize((image.width, image.height * 9 // 10)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "mirrored, JPEG 75": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 75),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "transversed, half": lambda image: image.transpose(Image.Transpose.TRANSVERSE).reduce(2),
}


def blobs(seed: int, size: int = 128) -> Image.Image:
    """A scene of structure at several scales, so that no two seeds look alike."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 8, 16)]
    scaled = [np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) for layer in layers]
    return Image.fromarray(np.mean(scaled, axis=0).astype(np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    """Whether the two-step test takes `b` for a copy of `a` in some orientation."""
    x, y = perceptual.fingerprint(a), perceptual.fingerprint(b)
    return any(
        perceptual.correlation(x.thumbnail, y.thumbnail, turn) >= perceptual.MIN_CORRELATION
        for turn in range(8)
        for _ in perceptual.near_pairs(x.hashes[None, 0], y.hashes[None, turn])
    )


def real_tiles() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(REAL.glob("rsvqa_*/*/*.tif"))]


@pytest.mark.parametrize("edit", list(EDITS))
def test_copies_are_found(edit: str) -> None:
    assert all(same(blobs(seed), EDITS[edit](blobs(seed))) for seed in range(6))


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real tiles at ../shared/real")
def test_real_tiles_are_told_apart_and_their_copies_are_found() -> None:
    tiles = real_tiles()
    prints = [perceptual.fingerprint(tile) for tile in tiles]
    hashes = np.stack([p.hashes for p in prints])
    pairs = {(i, j) for turn in range(8) for i, j, _ in perceptual.near_pairs(hashes[:, 0], hashes[:, turn]) if i != j}
    assert len(tiles) == 70 and not pairs
    for edit in ("JPEG 75", "half size", "turned"):
        assert all(same(tile, EDITS[edit](tile)) for tile in tiles[::5]), edit


def test_search_finds_exactly_the_pairs_within_the_distance() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2**63, (n, perceptual.WORDS), dtype=np.uint64) for n in (300, 200))
    for bits, (i, j) in enumerate([(5, 7), (299, 0), (0, 199), (100, 100)]):
        flipped = np.zeros(256, np.uint8)
        flipped[rng.choice(256, 21 * (bits + 1), replace=False)] = 1
        b[j] = a[i] ^ np.packbits(flipped).view(np.uint64)
    brute = np.bitwise_count(a[:, None] ^ b[None]).sum(axis=2)
    for limit in (0, 21, 62, 64, 63, 84):
        expected = {(i, j, int(brute[i, j])) for i, j in zip(*np.nonzero(brute <= limit), strict=True)}
        assert set(perceptual.near_pairs(a, b, max_distance=limit)) == expected
    assert {d for *_, d in perceptual.near_pairs(a, b, max_distance=64)} == {21, 42, 63}
    assert not list(perceptual.near_pairs(a[:0], b))


def test_correlation_parts_pictures_whose_hashes_agree_by_chance() -> None:
    x = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    assert perceptual.correlation(x, x, 0) == pytest.approx(1)
    assert perceptual.correlation(x, 62 - x, 0) == pytest.approx(-1)
    assert perceptual.correlation(x, 62 - x, 3) == pytest.approx(1)
    flat = np.full((32, 32), 7, np.uint8)
    assert perceptual.correlation(flat, flat, 0) == 1 and perceptual.correlation(flat, x, 0) == 0


def write_corpus(root: Path, images: dict[tuple[str, str], tuple[Image.Image, str]]) -> Path:
    """Images by (split, place), each with its encoding."""
    with ShardWriter(root, corpus=root.name, samples_per_shard=4) as writer:
        for number, ((split, place), (image, ext)) in enumerate(images.items()):
            stream = io.BytesIO()
            image.save(stream, {"jpg": "JPEG", "png": "PNG"}[ext])
            sample = fake_sample(number, split=split, size=image.size, n_questions=2)
            writer.write(replace(sample, place_id=place), stream.getvalue(), ext)
    return root


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training that holds all of a foreign test split (turned and re-encoded), one val image and one duplicate."""
    root = tmp_path_factory.mktemp("leak")
    test = [blobs(100 + k) for k in range(3)]
    benchmark = write_corpus(root / "benchmark", {("test", f"b{k}"): (image, "png") for k, image in enumerate(test)})
    images = {("train", f"p{k}"): (blobs(k), "png") for k in range(5)}
    images |= {("train", f"q{k}"): (EDITS["mirrored, JPEG 75"](image), "jpg") for k, image in enumerate(test)}
    images |= {("train", "copy"): (blobs(1).reduce(2), "png"), ("val", "v0"): (jpeg(blobs(2), 80), "jpg")}
    images |= {("val", "v1"): (blobs(50), "png")}
    return write_corpus(root / "training", images), benchmark


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, object]]]:
    status = leakage.main([str(a) for a in arguments])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_command_names_leaks_duplicates_and_whole_splits(
    leaky: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, benchmark = leaky
    status, rows = run(capsys, training, "--against", benchmark, "--drop", tmp_path / "drop.txt")
    assert status == 3
    leaks = [(r["image_id"], r["other_split"], r["orientation"]) for r in rows if r["kind"] == "leak"]
    assert leaks == [
        ("train-00002", "val", "same"),
        *((f"train-0000{5 + k}", "test", "mirrored") for k in range(3)),
    ]
    assert [(r["image_id"], r["other_image_id"]) for r in rows if r["kind"] == "duplicate"] == [
        ("train-00001", "train-00008")
    ]
    covered = {(r["split"], r["found"], r["images"]): r["note"] for r in rows if r["kind"] == "coverage"}
    assert set(covered) == {("val", 1, 2), ("test", 3, 3)} and "ALL" in str(covered["test", 3, 3])
    drop = read_drop(tmp_path / "drop.txt")
    assert drop == {"train-00002", *(f"train-0000{k}" for k in (5, 6, 7, 8))}


def test_what_is_dropped_leaves_a_clean_corpus(leaky: tuple[Path, Path]) -> None:
    training, benchmark = leaky
    rows = list(leakage.check(training, [benchmark]))
    keep = set(read_prints(training).image_id) - set(leakage.dropped(rows))
    left = [r for r in rows if r["kind"] in ("leak", "duplicate") and r["image_id"] in keep]
    assert all(r["kind"] == "duplicate" and r["other_image_id"] not in keep for r in left)


def test_clean_corpus_is_clean_and_folders_of_images_count(
    leaky: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = write_corpus(tmp_path / "c", {(s, s): (blobs(k), "png") for k, s in enumerate(("train", "val", "test"))})
    assert run(capsys, clean)[0] == 0
    folder = tmp_path / "benchmark"
    folder.mkdir()
    blobs(0).rotate(180).save(folder / "a.jpg", quality=85)
    (folder / "broken.png").write_bytes(b"no picture")
    status, rows = run(capsys, clean, "--against", folder)
    assert status == 3 and [r["other_image_id"] for r in rows if r["kind"] == "leak"] == ["a.jpg"]
    assert [r["image_id"] for r in rows if r["kind"] == "unreadable"] == ["broken.png"]
    (covered,) = (r for r in rows if r["kind"] == "coverage" and r["split"] == "images")
    assert (covered["images"], covered["unreadable"]) == (1, 1) and "1 of its images could not" in str(covered["note"])
    (folder / "a.jpg").unlink()
    blobs(77).save(folder / "b.png")
    assert run(capsys, clean, "--against", folder)[0] == 4


def test_evaluation_images_that_no_shard_would_hold_are_looked_at_as_importers_do(
    leaky: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-bit, BMP, JPEG 2000 and more pixels than a shard's image may have (the cap is lowered for the last)."""
    grey = np.asarray(blobs(0).convert("L"), dtype=np.uint16)
    Image.fromarray(grey * 200).save(tmp_path / "deep.png")
    blobs(1).save(tmp_path / "flat.bmp")
    blobs(3).save(tmp_path / "waves.JP2")
    blobs(4).resize((600, 600)).save(tmp_path / "huge.tif")
    blobs(3).save(tmp_path / "._shadow.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 500 * 500)
    rows = list(leakage.check(leaky[0], [tmp_path], within=False))
    leaks = {(r["other_image_id"], r["image_id"]) for r in rows if r["kind"] == "leak" and r["other_split"] == "images"}
    assert leaks == {
        ("deep.png", "train-00000"), ("flat.bmp", "train-00001"), ("flat.bmp", "train-00008"),
        ("waves.JP2", "train-00003"), ("huge.tif", "train-00004"),
    }  # fmt: skip
    (covered,) = (r for r in rows if r["kind"] == "coverage" and r["split"] == "images")
    assert (covered["images"], covered["unreadable"]) == (4, 0)


def test_images_that_a_shard_holds_keep_their_fingerprint(tmp_path: Path) -> None:
    """Also the large ones, which `geo.raster` would average down first."""
    pictures = {"a.jpg": blobs(5).resize((1500, 1400)), "b.png": blobs(6).convert("P"), "c.webp": blobs(7)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    prints = read_prints(tmp_path)
    expected = [perceptual.fingerprint(Image.open(tmp_path / name).convert("RGB")) for name in pictures]
    assert prints.image_id == tuple(pictures)
    np.testing.assert_array_equal(prints.hashes, [one.hashes for one in expected])
    np.testing.assert_array_equal(prints.thumbnail, [one.thumbnail for one in expected])


def test_a_set_of_which_no_image_reads_says_why_before_it_is_refused(leaky: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows: list[dict[str, object]] = []
    with pytest.raises(ConfigError, match=r"nothing to evaluate on.*'images'.*1 images could not be read"):
        rows.extend(leakage.check(leaky[0], [tmp_path], within=False))  # keeps what came before the error
    assert [r["image_id"] for r in rows if r["kind"] == "unreadable"] == ["broken.png"]


def test_views_of_one_place_are_no_duplicates(tmp_path: Path) -> None:
    fine = blobs(1)
    views = [(replace(fake_sample(k, n_questions=1), place_id="p"), fine.reduce(2**k)) for k in range(2)]
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        for sample, image in views:
            stream = io.BytesIO()
            image.save(stream, "PNG")
            writer.write(replace(sample, width=image.width, height=image.height), stream.getvalue(), "png")
    assert [r["kind"] for r in leakage.check(tmp_path / "c")] == []


def test_of_two_duplicates_the_better_known_gsd_stays_and_stages_may_share_images(tmp_path: Path) -> None:
    """One scene: in both stages, and in `train` thrice, of which only the last knows its GSD exactly."""
    known = [("stage1", None), ("train", None), ("train", Provenance.NOMINAL), ("train", Provenance.EXACT)]
    with ShardWriter(tmp_path / "c", corpus="c") as writer:
        for number, (split, provenance) in enumerate(known):
            stream = io.BytesIO()
            jpeg(blobs(1), 95 - number).save(stream, "PNG")
            gsd_m = {"gsd_m": 0.3, "provenance": provenance} if provenance else {"gsd_m": None}
            sample = replace(fake_sample(number, split=split, size=(128, 128), **gsd_m), place_id=f"p{number}")
            writer.write(sample, stream.getvalue(), "png")
    rows = list(leakage.check(tmp_path / "c"))
    pairs = {(r["image_id"], r["other_image_id"]) for r in rows if r["kind"] == "duplicate"}
    assert pairs == {(f"train-0000{a}", f"train-0000{b}") for a, b in ((3, 2), (3, 1), (2, 1))}
    assert leakage.dropped(rows) == ["train-00001", "train-00002"]


def test_all_official_questions_mean_that_the_test_split_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(leakage.OFFICIAL_TOTALS, ("rsvqa_lr", "rsvqa_lr_more"), (13, 0.9))  # one was refused
    for n_images, guilty in ((2, False), (3, True)):
        root = tmp_path / str(n_images)
        rng = np.random.default_rng(0)
        with ShardWriter(root, corpus="c") as writer:
            for k in range(n_images):
                qas = tuple(
                    Question(id=f"{k}-{q}", type="t", family="other", question="q?", answer="a") for q in range(4)
                )
                sample = replace(
                    fake_sample(k, gsd_m=10.0, provenance=Provenance.EXACT),
                    source="rsvqa_lr" if k else "rsvqa_lr_more",
                    tier=Tier.LOW,
                    qas=qas,
                )
                writer.write(sample, random_image(rng, 64, 64), "png")
        kinds = [row["kind"] for row in leakage.check(root, within=False)]
        assert ("whole_source" in kinds) is guilty and leakage.exit_status(kinds) == (3 if guilty else 0)


def test_a_test_split_reaches_the_share_that_train_and_val_do_not() -> None:
    """Questions of the official splits: LR by its tables, HR by the shares that its paper states."""
    splits = {
        "rsvqa_lr": {"train": 57_223, "val": 10_005, "test": 10_004},
        "rsvqa_hr": {"train": 61.5, "val": 11.2, "test": 20.5, "test_phili": 6.8},
    }
    for (source, *_), (total, share) in leakage.OFFICIAL_TOTALS.items():
        count = splits[source]
        assert sum(count.values()) == (total if source == "rsvqa_lr" else pytest.approx(100))
        trained = count["train"] + count["val"]
        assert trained < share * sum(count.values()) - 0.02 * sum(count.values())
        for test in set(count) - {"train", "val"}:
            assert trained + count[test] > 1.03 * share * sum(count.values()), (source, test)


def test_a_set_without_anything_to_evaluate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = make_fake_corpus(tmp_path / "train", 4, n_val=0, n_test=0)
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        list(leakage.check(train, [make_fake_corpus(tmp_path / "other", 4, n_val=0, n_test=0, seed=5)]))
    with pytest.raises(ConfigError, match="no training split"):
        list(leakage.check(make_fake_corpus(tmp_path / "test", 0, n_test=2)))
    assert leakage.main([str(tmp_path / "nowhere")]) == 2
    assert "index" in capsys.readouterr().err
