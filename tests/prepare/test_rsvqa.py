"""RSVQA importer: generated fakes in the official layout, and the real sample tiles where they are at hand."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import rsvqa
from scaleearth_pl.prepare.rsvqa_files import PARTS, lon_lat_of_centre

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"

FAKE = {"lr": ("10m", "S2", 32, "rural_urban", "rural"), "hr": (".1524m", "ULTRACAM_EAGLE_FALCON", 48, "area", "0m2")}


def write_split(root: Path, part: str, split: str, image_ids: list[int]) -> Path:
    """Two questions per image, lists padded with inactive rows before and, for images only, after."""
    resolution, sensor, pixels, kind, answer = FAKE[part]
    spec = PARTS[part]
    (root / spec.image_folder).mkdir(parents=True, exist_ok=True)
    n_questions = 2 * (max(image_ids) + 1)
    images = [{"id": i, "active": False} for i in range(max(image_ids) + 5)]
    questions = [{"id": i, "active": False} for i in range(n_questions)]
    answers = [{"id": i, "active": False} for i in range(n_questions)]
    for i in image_ids:
        picture = np.random.default_rng(i).integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / spec.image_folder / f"{i}.tif")
        images[i] = {
            "id": i, "active": True, "sensor": sensor, "res_x": resolution, "res_y": resolution,
            "upperleft_map_x": 470644.9, "upperleft_map_y": 6756027.2, "questions_ids": [2 * i, 2 * i + 1],
        }  # fmt: skip
        rows = [("presence", "Is there a  road  in the image?", "yes"), (kind, "What of the  residential area", answer)]
        for j, (type_, text, reply) in enumerate(rows, start=2 * i):
            questions[j] = {"id": j, "img_id": i, "type": type_, "question": text, "answers_ids": [j], "active": True}
            answers[j] = {"id": j, "question_id": j, "answer": reply, "active": True}
    for name, table in (("images", images), ("questions", questions), ("answers", answers)):
        (root / f"{spec.prefix}_split_{split}_{name}.json").write_text(json.dumps({name: table}))
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for part in ("lr", "hr"):
        write_split(root / f"rsvqa_{part}", part, "train", [0, 1, 2])
        write_split(root / f"rsvqa_{part}", part, "val", [3])
        write_split(root / f"rsvqa_{part}", part, "test", [5])
    return root


def edit(path: Path, change) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def read_all(root: Path):
    reader = ShardReader(ShardIndex.load(root))
    return [reader.read(i) for i in range(len(reader.index))]


def test_every_active_question_arrives_once_with_gsd_and_provenance(raw, tmp_path):
    report = rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=raw), tmp_path / "out")
    samples = [s for s, _ in read_all(tmp_path / "out")]
    assert Counter((s.source, s.split) for s in samples) == Counter(report.images)
    assert sum(report.images.values()) == 10
    assert len({q.id for s in samples for q in s.qas}) == 20
    for s in samples:
        is_lr = s.source == "rsvqa_lr"
        assert s.gsd_m_native == pytest.approx(10.0 if is_lr else 0.1524)
        assert s.gsd_provenance is (Provenance.EXACT if is_lr else Provenance.NOMINAL)
        assert s.tier is (Tier.LOW if is_lr else Tier.HIGH)
        assert s.place_id == s.region_id == s.image_id
        assert all("  " not in q.question for q in s.qas)
        assert {q.type: q.family for q in s.qas}.get("area", "scale_specific") == "scale_specific"


def test_image_bytes_are_the_archives_own(raw, tmp_path):
    rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=raw, parts=("hr",), splits=("train",)), tmp_path / "out")
    with tarfile.open(next((tmp_path / "out").rglob("*.tar"))) as tar:
        names = [m.name for m in tar if m.name.endswith(".tif")]
        stored = [tar.extractfile(n).read() for n in names]
    assert stored == [(raw / "rsvqa_hr" / "Data" / f"{i}.tif").read_bytes() for i in range(3)]


def test_archives_unpacked_side_by_side_give_the_same_corpus(raw, tmp_path):
    flat = tmp_path / "flat"
    for part in ("lr", "hr"):
        for split, ids in (("train", [0, 1, 2]), ("val", [3]), ("test", [5])):
            write_split(flat, part, split, ids)
    for name, root in (("a", raw), ("b", flat)):
        rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=root), tmp_path / name)
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()


def test_test_phili_is_a_source_of_its_own(raw, tmp_path):
    write_split(raw / "rsvqa_hr", "hr", "test_phili", [7])
    config = rsvqa.RsvqaConfig(root=raw, splits=("test", "test_phili"))
    report = rsvqa.import_rsvqa(config, tmp_path / "out")
    assert set(report.images) == {("rsvqa_lr", "test"), ("rsvqa_hr", "test"), ("rsvqa_hr_phili", "test_phili")}


def test_orphans_and_short_images_are_counted(raw, tmp_path):
    file = raw / "rsvqa_lr" / "LR_split_train_images.json"
    edit(file, lambda t: t["images"][1].update(active=False))
    report = rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=raw, parts=("lr",)), tmp_path / "out")
    assert (report.orphans, report.too_few) == (2, 0)
    config = rsvqa.RsvqaConfig(root=raw, parts=("lr",), min_questions=3)
    with pytest.raises(ConfigError, match="nothing was written"):
        rsvqa.import_rsvqa(config, tmp_path / "none")


def questions_file(raw: Path) -> Path:
    return raw / "rsvqa_hr" / "USGS_split_train_questions.json"


BREAKS = {
    "missing file": (lambda raw: questions_file(raw).unlink(), ConfigError, "USGS_split_train_questions.json"),
    "cut JSON": (lambda raw: questions_file(raw).write_text('{"questions": [{'), SampleError, "does not parse"),
    "other JSON": (lambda raw: questions_file(raw).write_text("[]"), SampleError, "no such list"),
    "missing image": (lambda raw: (raw / "rsvqa_hr/Data/1.tif").unlink(), SampleError, "1.tif"),
    "broken image": (
        lambda raw: (raw / "rsvqa_hr/Data/1.tif").write_bytes((raw / "rsvqa_hr/Data/1.tif").read_bytes()[:300]),
        SampleError,
        "1.tif",
    ),
    "unknown unit": (
        lambda raw: edit(raw / "rsvqa_hr/USGS_split_train_images.json", lambda t: t["images"][1].update(res_x="0.5ft")),
        GsdError,
        "0.5ft",
    ),
    "zero GSD": (
        lambda raw: edit(raw / "rsvqa_hr/USGS_split_train_images.json", lambda t: t["images"][1].update(res_y="0m")),
        GsdError,
        "res_y",
    ),
    "no GSD": (
        lambda raw: edit(raw / "rsvqa_hr/USGS_split_train_images.json", lambda t: t["images"][1].pop("res_x")),
        GsdError,
        "res_x",
    ),
    "unknown type": (
        lambda raw: edit(questions_file(raw), lambda t: t["questions"][2].update(type="colour")),
        SampleError,
        "colour",
    ),
    "lost answer": (
        lambda raw: edit(
            raw / "rsvqa_hr/USGS_split_train_answers.json", lambda t: t["answers"][2].update(active=False)
        ),
        SampleError,
        "no active answer",
    ),
    "no active flag": (
        lambda raw: edit(questions_file(raw), lambda t: t["questions"][2].pop("active")),
        SampleError,
        "active",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_bad_input_names_file_and_value(raw, tmp_path, case):
    damage, kind, text = BREAKS[case]
    damage(raw)
    with pytest.raises(kind, match=text.replace(".", r"\.")):
        rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=raw), tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"root": "empty"},
        {"root": None},
        {"root": "raw", "prats": ["lr"]},
        {"root": "raw", "parts": ["xben"]},
        {"root": "raw", "splits": ["tset"]},
        {"root": "raw", "min_questions": 0},
    ],
)
def test_bad_config_is_refused(raw, tmp_path, config):
    (tmp_path / "empty").mkdir()
    root = {"empty": tmp_path / "empty", "raw": raw, None: None}[config["root"]]
    with pytest.raises(ConfigError):
        rsvqa.build({"kind": "rsvqa", **config, "root": root}, tmp_path / "out")


def test_command_line_writes_and_reports(raw, tmp_path, capsys):
    arguments = ["--root", str(raw), "--out", str(tmp_path / "out")]
    assert rsvqa.main([*arguments, "--parts", "lr"]) == 0
    assert "rural_urban" in capsys.readouterr().out
    assert rsvqa.main([*arguments, "--parts", "lr"]) == 2
    assert "ConfigError" in capsys.readouterr().err
    assert rsvqa.main([*arguments, "--overwrite"]) == 0
    assert len(ShardIndex.load(tmp_path / "out")) == 10


def test_mercator_corner_becomes_the_centre_in_degrees():
    # An equatorial tile: half a degree is 55.66 km of Mercator metres, with no stretch to speak of.
    lon, lat = lon_lat_of_centre((0.0, 0.0), 10.0, (256, 256))
    assert (lon, lat) == pytest.approx((0.011498, -0.011498), abs=1e-5)
    # Four neighbouring LR tiles lie 4143 Mercator metres apart: 2560 m on the ground at 51.7 degrees.
    lon, lat = lon_lat_of_centre((470644.9, 6756027.2), 10.0, (256, 256))
    assert pytest.approx(6378137.0 * np.arctanh(np.sin(np.radians(lat))), abs=10.0) == 6756027.2 - 4143.0 / 2


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real tiles are not at hand")
def test_real_tiles_import_completely(tmp_path):
    assert rsvqa.build({"kind": "rsvqa", "root": str(REAL)}, tmp_path / "out") == tmp_path / "out"
    samples = read_all(tmp_path / "out")
    assert Counter((s.source, s.split) for s, _ in samples) == {
        (source, split): n
        for source in ("rsvqa_lr", "rsvqa_hr")
        for split, n in (("train", 25), ("val", 5), ("test", 5))
    }
    questions = Counter((s.source, s.split) for s, _ in samples for _ in s.qas)
    assert [questions["rsvqa_lr", x] for x in ("train", "val", "test")] == [2504, 500, 501]
    assert [questions["rsvqa_hr", x] for x in ("train", "val", "test")] == [2501, 500, 500]
    assert {(s.source, s.gsd_m_native) for s, _ in samples} == {("rsvqa_lr", 10.0), ("rsvqa_hr", 0.1524)}
    latitudes = {s.source: s.lat for s, _ in samples}
    assert latitudes["rsvqa_lr"] == pytest.approx(51.7, abs=1.5)
    assert latitudes["rsvqa_hr"] == pytest.approx(40.9, abs=1.0)
    for sample, image_bytes in samples:
        with Image.open(io.BytesIO(image_bytes)) as image:
            assert image.size == (sample.width, sample.height)
