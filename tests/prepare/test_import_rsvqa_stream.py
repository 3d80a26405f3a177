"""The streaming RSVQA importer: the same samples as the strict one, any order of rows, and memory that stays flat."""

import json
import random
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fakes.archives import edit_json, make_xben

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError, SampleError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import rsvqa
from scaleearth_pl.prepare.importers import bad_rows
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.rsvqa_stream import RsvqaXben
from scaleearth_pl.prepare.importers.spool import Spool

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
SPLITS = ["train", "val", "test"]


def samples_of(root: Path) -> dict[str, tuple[Sample, bytes]]:
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    found = {index.text["image_id"][row]: reader.read(row) for row in range(len(index))}
    reader.close()
    return found


def entries(root: Path) -> tuple[dict[str, Found], dict[str, Rejected]]:
    found = list(RsvqaXben(root=root).records())
    good = {e.image_id: e for e in found if isinstance(e, Found)}
    return good, {e.kind: e for e in found if isinstance(e, Rejected)}


def table(root: Path, kind: str) -> Path:
    return root / "rsvqa_xben" / f"RSVQAxBEN_split_train_{kind}.json"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real tiles are not at hand")
def test_real_tiles_give_the_samples_of_the_strict_importer(tmp_path: Path) -> None:
    rsvqa.import_rsvqa(rsvqa.RsvqaConfig(root=REAL), tmp_path / "strict")
    sources = {"rsvqa_lr": {"splits": SPLITS}, "rsvqa_hr": {"splits": SPLITS}}
    tally = import_archives(ArchivesConfig(root=REAL, sources=sources), tmp_path / "stream")
    assert tally.n_rejected == 0
    assert sum(tally.questions.values()) == 7006
    strict, stream = samples_of(tmp_path / "strict"), samples_of(tmp_path / "stream")
    assert set(strict) == set(stream)
    for image_id, (sample, data) in strict.items():
        other, other_data = stream[image_id]
        # the strict importer leaves sigma to the provenance; the chain writes the same number out
        assert (other.sigma_log10, other_data) == (sample.sigma_log10, data)
        assert {**json.loads(other.to_json()), "gsd_sigma_log10": None} == json.loads(sample.to_json())


def test_every_question_arrives_with_its_own_answer(tmp_path: Path) -> None:
    make_xben(tmp_path, n_images=5, per_image=4, first=3)
    found, rejected = entries(tmp_path)
    assert not rejected
    assert list(found) == [f"rsvqa_xben-{i}" for i in range(3, 8)]
    for i, record in zip(range(3, 8), found.values(), strict=True):
        assert [q.id for q in record.qas] == [f"rsvqa_xben-q{4 * i + k}" for k in range(4)]
        assert [q.answer for q in record.qas] == ["yes", "no", "yes", "no"]
        assert all("  " not in q.question for q in record.qas)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    make_xben(tmp_path, n_images=6, per_image=5)
    before = entries(tmp_path)
    for kind in ("images", "questions", "answers"):
        edit_json(table(tmp_path, kind), lambda t, kind=kind: random.Random(1).shuffle(t[kind]))
    assert entries(tmp_path) == before


def test_gsd_without_res_x_is_the_constant_of_the_data_set(tmp_path: Path) -> None:
    make_xben(tmp_path, stated=False)
    import_archives(ArchivesConfig(root=tmp_path, sources={"rsvqa_xben": {}}), tmp_path / "out")
    for sample, _ in samples_of(tmp_path / "out").values():
        assert (sample.gsd_m_native, sample.gsd_provenance) == (10.0, Provenance.NOMINAL)


def test_images_may_stay_in_their_zip(tmp_path: Path) -> None:
    folder = make_xben(tmp_path)
    before, _ = entries(tmp_path)
    with zipfile.ZipFile(folder / "Images.zip", "w") as archive:
        for path in sorted((folder / "Images").iterdir()):
            archive.write(path, f"Images/{path.name}")
            path.unlink()
    (folder / "Images").rmdir()
    after, rejected = entries(tmp_path)
    assert not rejected
    assert [f.qas for f in after.values()] == [f.qas for f in before.values()]
    tally = import_archives(ArchivesConfig(root=tmp_path, sources={"rsvqa_xben": {}}), tmp_path / "out")
    assert tally.images == {("rsvqa_xben", "train"): 4}


def test_tiles_of_another_data_set_are_no_tiles_of_this_one(tmp_path: Path) -> None:
    """HR's tables in the folder of xBEN's zip: ids are plain numbers in both."""
    folder = make_xben(tmp_path)
    for path in sorted(folder.glob("*.json")):
        path.rename(folder / path.name.replace("RSVQAxBEN", "USGS"))
    with zipfile.ZipFile(folder / "Images.zip", "w") as archive:
        for path in sorted((folder / "Images").iterdir()):
            archive.write(path, f"Images/{path.name}")
    sources = {"rsvqa_hr": {"root": folder.name}}
    with pytest.raises(ConfigError, match="no images of rsvqa_hr"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources), tmp_path / "a")
    (folder / "Images").rename(folder / "Data")
    with pytest.raises(QuarantineLimitError, match="4 of 4 items of rsvqa_hr failed"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources), tmp_path / "b")
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "b" / "quarantine.jsonl").read_text().splitlines()]
    assert all(
        re.search(r"another data set.*\(120, 120\).*official images, \(512, 512\)", reason) for reason in reasons
    )


def change_row(kind: str, place: int, **changes: Any) -> Any:
    return lambda root: edit_json(table(root, kind), lambda t: t[kind][place].update(changes))


FAULTS = {
    # padding: 2 images, 6 questions; the first active question is number 6 and asks about image 2
    "bad_row": (change_row("questions", 6, img_id="two"), 4, 11),
    "bad_question": (change_row("questions", 6, type="colour"), 4, 11),
    "no_questions": (lambda root: [change_row("questions", q, active=False)(root) for q in (6, 7, 8)], 3, 9),
    "orphan_questions": (change_row("images", 2, active=False), 3, 9),
    "duplicate_id": (change_row("answers", 7, id=6), 4, 11),
    "bad_gsd": (change_row("images", 2, res_x="33ft"), 3, 9),
    "missing_image": (lambda root: (root / "rsvqa_xben" / "Images" / "2.tif").unlink(), 3, 9),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_costs_its_image_or_its_question(tmp_path: Path, kind: str) -> None:
    damage, n_images, n_questions = FAULTS[kind]
    make_xben(tmp_path)
    damage(tmp_path)
    found, rejected = entries(tmp_path)
    assert kind in rejected
    assert (len(found), sum(len(f.qas) for f in found.values())) == (n_images, n_questions)


def test_a_question_without_answer_says_so(tmp_path: Path) -> None:
    make_xben(tmp_path)
    change_row("answers", 6, active=False)(tmp_path)
    _, rejected = entries(tmp_path)
    assert "question 6 has no active answer" in rejected["bad_question"].reason


@pytest.mark.parametrize("text", ['{"questions": [{"id": 0, "active": false}, {', '{"other": []}', "", "[]", "{}"])
def test_a_broken_table_stops_the_import_and_names_the_file(tmp_path: Path, text: str) -> None:
    make_xben(tmp_path)
    table(tmp_path, "questions").write_text(text)
    with pytest.raises(SampleError, match=r"RSVQAxBEN_split_train_questions\.json"):
        entries(tmp_path)


def test_a_missing_table_and_another_format_are_typed_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_xben(tmp_path, n_images=4)
    monkeypatch.setattr(bad_rows, "MAX_BAD_ROWS", 3)
    edit_json(table(tmp_path, "answers"), lambda t: [row.pop("id") for row in t["answers"]])
    with pytest.raises(SampleError, match=r"12 of 12 rows are not of this format.*answers\.json.*Remedy"):
        entries(tmp_path)
    table(tmp_path, "answers").unlink()
    with pytest.raises(ConfigError, match="table cannot be read"):
        entries(tmp_path)


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Python's own peak over reading 10 times the questions; SQLite's cache is bounded by its setting."""
    peaks = []
    for n_images in (40, 400):
        make_xben(tmp_path / str(n_images), n_images=n_images, per_image=10)
        tracemalloc.start()
        assert sum(1 for _ in RsvqaXben(root=tmp_path / str(n_images)).records()) == n_images
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_the_spool_leaves_nothing_behind(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.references([(1, "a"), (1, "b")])
        spool.rows([("y", 1, 7, "t", "later", None), ("x", 0, 8, "t", "first", 1), ("y", 0, 9, "t", "earlier", 2)])
        assert list(spool.groups()) == [
            ("x", None, [("8", "t", "first", "a")]),
            ("y", None, [("9", "t", "earlier", None), ("7", "t", "later", None)]),
        ]
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())
