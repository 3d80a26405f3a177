"""Report of a corpus: the counts are those of the shards, the card says what limits it, the figures show what is there."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.corpus import fake_sample, make_fake_corpus, random_image
from PIL import Image

from scaleearth_pl.core.gsd import Provenance, TierBoundaries
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.leakage import OFFICIAL_TOTALS
from scaleearth_pl.prepare.report import figures
from scaleearth_pl.prepare.report.command import CARD_NAME, main, report
from scaleearth_pl.prepare.report.stats import CorpusStats, read_stats
from scaleearth_pl.prepare.write import ShardWriter

FILES = {
    CARD_NAME,
    "landscape.png",
    "composition.png",
    "coverage.png",
    "landscape.csv",
    "composition.csv",
    "families.csv",
}


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def write(root: Path, samples: list[Sample]) -> Path:
    rng = np.random.default_rng(0)
    with ShardWriter(root, corpus=root.name) as writer:
        for sample in samples:
            writer.write(sample, random_image(rng, sample.width, sample.height), "png")
    return root


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_corpus(tmp_path_factory.mktemp("report") / "fake", 15, with_unknown=True)


def test_counts_are_those_of_the_shards(fake: Path, tmp_path: Path) -> None:
    found = report(fake, tmp_path)
    index = ShardIndex.load(fake)
    reader = ShardReader(index)
    samples = [reader.read_sample(row) for row in range(len(index))]
    n_questions = sum(len(s.qas) for s in samples)
    assert (found.stats.n_images, found.stats.n_questions) == (len(samples), n_questions)
    assert {path.name for path in tmp_path.iterdir()} == FILES == {path.name for path in found.files}
    for name in ("landscape.csv", "composition.csv"):
        rows = table(tmp_path / name)
        assert sum(int(row["questions"]) for row in rows) == n_questions
    assert sum(int(row["questions"]) for row in table(tmp_path / "families.csv")) == n_questions
    by_split = {
        s: sum(int(r["images"]) for r in table(tmp_path / "composition.csv") if r["split"] == s) for s in index.splits
    }
    assert by_split == {split: sum(s.split == split for s in samples) for split in index.splits}
    unknown = [row for row in table(tmp_path / "landscape.csv") if not row["gsd_m_native"]]
    assert int(unknown[0]["questions"]) == sum(len(s.qas) for s in samples if s.gsd_m_native is None) > 0


def test_a_single_gsd_is_drawn_where_it_is(tmp_path: Path) -> None:
    exact = {0.1524: (64, 64), 9.7: (96, 64)}
    samples = [
        replace(
            fake_sample(10 * k + n, gsd_m=gsd_m, size=size, n_questions=n + 1, provenance=Provenance.EXACT),
            source=f"s{k}",
        )
        for k, (gsd_m, size) in enumerate(exact.items())
        for n in range(3)
    ]
    report(write(tmp_path / "c", samples), tmp_path / "out")
    rows = {row["source"]: row for row in table(tmp_path / "out" / "landscape.csv")}
    assert len(rows) == 2
    for k, (gsd_m, (width, height)) in enumerate(exact.items()):
        assert float(rows[f"s{k}"]["gsd_m_native"]) == pytest.approx(gsd_m, rel=1e-5)
        assert float(rows[f"s{k}"]["side_px"]) == pytest.approx((width * height) ** 0.5, rel=1e-5)
        assert int(rows[f"s{k}"]["questions"]) == 6


def test_coverage_shows_only_what_states_coordinates(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", [fake_sample(k) for k in range(2)])
    report(plain, tmp_path / "out")
    assert not (tmp_path / "out" / "coverage.csv").exists()
    assert "2 images state no coordinates" in (tmp_path / "out" / CARD_NAME).read_text()
    located = [replace(fake_sample(k), lon=5.0 + k, lat=52.0) for k in range(2)]
    report(write(tmp_path / "some", [*located, fake_sample(7)]), tmp_path / "out")
    rows = table(tmp_path / "out" / "coverage.csv")
    assert {(row["lon"], row["lat"]) for row in rows} == {("5.0000", "52.0000"), ("6.0000", "52.0000")}
    assert "1 images state no coordinates" in (tmp_path / "out" / CARD_NAME).read_text()


def test_card_states_only_the_limits_that_the_numbers_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [
        replace(
            fake_sample(k, gsd_m=gsd_m, n_questions=6), lon=1.0, lat=2.0, licence="CC0", place_id=None, region_id=None
        )
        for k, gsd_m in enumerate((0.1, 0.5, 2.0, 30.0))
    ]
    report(write(tmp_path / "good", wide), tmp_path / "out")
    limits = (tmp_path / "out" / CARD_NAME).read_text().split("## Known limits")[1].split("##")[0].strip()
    assert limits.count("\n") == 0 and "leakage" in limits  # only the pointer to the guard
    bad = [
        replace(
            fake_sample(k, gsd_m=10.0, n_questions=1, provenance=Provenance.NOMINAL),
            split=("train", "test")[k],
            source="rsvqa_lr",
            place_id="p",
        )
        for k in range(2)
    ]
    monkeypatch.setitem(OFFICIAL_TOTALS, ("rsvqa_lr",), (1, 0.9))
    report(write(tmp_path / "bad", bad), tmp_path / "out")
    card = (tmp_path / "out" / CARD_NAME).read_text()
    for sentence in (
        "no evidence about continuity",
        "100.0% of the images have a GSD that is nominal",
        "No question in tier high",
        "No discriminative question",
        "1 places lie in several splits",
        "a test split is inside",
        "2 images state no licence",
    ):
        assert sentence in card, sentence
    assert ShardIndex.load(tmp_path / "bad").hash in card


def test_equal_corpora_give_equal_reports(fake: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        report(fake, tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_figures_have_metres_on_a_log_axis_and_room_for_many_sources(tmp_path: Path) -> None:
    stats = CorpusStats()
    for k in range(20):
        sample = fake_sample(k, gsd_m=0.05 * 1.5**k, size=(64 + k, 64))
        stats.add(replace(sample, source=f"source_{k}", lon=-170.0 + 17 * k, lat=-60.0 + 6 * k))
    figure = figures.landscape(stats, TierBoundaries())
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and re.search(r"GSD \(m per pixel", ax.get_xlabel())
    styles = {
        (tuple(np.round(c.get_facecolor()[0][:3], 3)), c.get_paths()[0].vertices.tobytes()) for c in ax.collections[:20]
    }
    assert len(styles) == 20
    for name, drawn in (("l", figure), ("c", figures.composition(stats)), ("m", figures.coverage(stats))):
        pixels = np.asarray(Image.open(figures.save(drawn, tmp_path / f"{name}.png")).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all(), f"{name}: something is cut off at the edge"


def test_bubbles_are_proportional_to_questions() -> None:
    stats = CorpusStats()
    for k, n in enumerate((10, 20, 40)):
        stats.add(fake_sample(k, gsd_m=10.0 ** (k - 1), n_questions=n))
    (ax,) = figures.landscape(stats, TierBoundaries()).axes
    sizes = np.sort(ax.collections[0].get_sizes())
    assert np.allclose(sizes / sizes[0], [1, 2, 4])


def test_a_rotten_sample_is_named_and_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_fake_corpus(tmp_path / "c", 4, n_val=0, n_test=0)
    index = ShardIndex.load(root)
    path = root / index.shards[0].file
    data = bytearray(path.read_bytes())
    data[int(index.number["json_offset"][0]) + 5] ^= 1
    path.write_bytes(data)
    assert main([str(root), "--out", str(tmp_path / "out")]) == 3
    assert "not counted" in capsys.readouterr().err
    assert read_stats(index).n_images == 3
    assert "1 samples were left out" in (tmp_path / "out" / CARD_NAME).read_text()
    assert main([str(tmp_path / "nowhere")]) == 2
