"""Where files lie and what tables call them: splits, classes and images are what the folders say, or it is counted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.archives import edit_json, make_dota, make_geotiffs, make_llava, make_mtsccd, make_patternnet, picture, put
from geo.geo_fakes import north_up, write_raster
from geo.test_rasterfile import chain_to_nowhere

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.dota import DotaParents
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.registry import make_source
from scaleearth_pl.prepare.inject import inject

EVERY = ["train", "val", "test"]
SHARES = {"val": 0.3, "test": 0.3}
IMAGE = picture(1, 16, 16)


def entries(kind: str, root: Path, **options: Any) -> tuple[list[Found], list[Rejected]]:
    found = list(make_source(kind, options, root).records())
    return [e for e in found if isinstance(e, Found)], [e for e in found if isinstance(e, Rejected)]


def put_images(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name, IMAGE)
    return root


def pairs_of(root: Path, *rows: str, **options: Any) -> tuple[list[Found], list[Rejected]]:
    put(root / "pairs.csv", "\n".join(("t1,t2,split,answer", *rows)))
    return entries("mtsccd", root, pairs="pairs.csv", splits=EVERY, **options)


def test_shares_draw_whole_cities(tmp_path: Path) -> None:
    cities = ("Hangzhou", "shanghai", "Wuhan", "nanjing", "Hefei")
    put_images(tmp_path / "MtSCCD", *(f"{city}/residential/{k}.png" for city in cities for k in range(12)))
    found, rejected = entries("mtsccd", tmp_path, shares=SHARES, splits=EVERY)
    assert (len(found), rejected) == (60, [])
    splits = {(f.region_id, f.split) for f in found}
    assert len(splits) == len(cities)
    assert len({split for _, split in splits}) > 1


def test_images_of_no_city_are_drawn_one_by_one(tmp_path: Path) -> None:
    put_images(tmp_path / "MtSCCD", *(f"residential/{k}.png" for k in range(60)))
    found, _ = entries("mtsccd", tmp_path, shares=SHARES, splits=EVERY)
    assert {f.split for f in found} == set(EVERY)


@pytest.mark.parametrize("stated", ["", "train"])
def test_a_pair_across_two_splits_is_counted(tmp_path: Path, stated: str) -> None:
    names = [f"{split}/hefei/residential/1.png" for split in ("train", "test")]
    put_images(tmp_path / "MtSCCD", *names)
    found, rejected = pairs_of(tmp_path, f"{','.join(names)},{stated},", f"{names[0]},./{names[0]},,")
    assert [f.split for f in found] == ["train"]
    assert [(r.item, r.kind) for r in rejected] == [("mtsccd-pair-0", "bad_row")]
    assert "two splits" in rejected[0].reason


def test_a_pair_across_two_drawn_cities_is_counted_unless_its_row_states_the_split(tmp_path: Path) -> None:
    cities = ("Hangzhou", "Shanghai", "Wuhan", "Nanjing", "Hefei")
    put_images(tmp_path / "MtSCCD", *(f"{city}/residential/1.png" for city in cities))
    drawn = {f.region_id: f.split for f in entries("mtsccd", tmp_path, shares=SHARES, splits=EVERY)[0]}
    other = next(city for city in cities[1:] if drawn[f"mtsccd-{city.lower()}"] != drawn["mtsccd-hangzhou"])
    names = f"Hangzhou/residential/1.png,{other}/residential/1.png"
    found, rejected = pairs_of(tmp_path, f"{names},,", f"{names},val,", shares=SHARES)
    assert [f.split for f in found] == ["val"]
    assert [r.kind for r in rejected] == ["bad_row"]


def test_a_pair_outside_class_folders_needs_its_answer(tmp_path: Path) -> None:
    put_images(tmp_path / "MtSCCD", "train/1.png", "2.png")
    found, rejected = pairs_of(tmp_path, "train/1.png,2.png,,yes", "2.png,train/1.png,,no", "2.png,2.png,,")
    assert [(f.split, f.class_label, f.qas[0].answer) for f in found] == [("train", None, "yes"), ("train", None, "no")]
    assert ["neither an answer" in r.reason for r in rejected] == [True]


def test_patternnet_heeds_a_folders_split(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "train/airplane/1.png", "test/airplane/2.png", "airplane/3.png")
    found, rejected = entries("patternnet", tmp_path, splits=["train", "test"])
    assert {f.image_id: f.split for f in found} == {
        "patternnet-airplane-1": "train", "patternnet-airplane-2": "test", "patternnet-airplane-3": "train",
    }  # fmt: skip
    assert not rejected
    assert len(entries("patternnet", tmp_path)[0]) == 2


@pytest.mark.parametrize(
    ("key", "says"), [("splt", "write 'split'"), ("Answer", "write 'answer'"), ("GSD", "write 'gsd_m'")]
)
def test_a_misspelt_column_of_ones_own_table_is_an_error_and_others_are_ones_own(
    tmp_path: Path, key: str, says: str
) -> None:
    row = {"image": "a.tif", "question": "q?", "answer": "a", "comment": "mine", "idx": 3}
    put_images(tmp_path, "a.tif")
    put(tmp_path / "questions.jsonl", json.dumps(row))
    entries("geotiffs", tmp_path)
    put(tmp_path / "questions.jsonl", json.dumps(row | {key: "0.3"}))
    with pytest.raises(ConfigError, match=rf"field '{key}'.*{says}"):
        entries("geotiffs", tmp_path)


def test_the_table_of_an_import_counts_tiers_by_split(tmp_path: Path) -> None:
    rows = [
        {"image": f"{name}.tif", "question": "q?", "answer": "a", "split": split}
        for name, split in (("fine", "train"), ("coarse", "test"), ("nowhere", "test"))
    ]
    put(make_geotiffs(tmp_path) / "questions.jsonl", "\n".join(map(json.dumps, [*rows, {"image": 3}])))
    sources = {"geotiffs": {"root": "geotiffs", "splits": ["train", "test"]}}
    config = ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.5)
    tally = import_archives(config, tmp_path / "out")
    columns = {str(column.header): list(column.cells) for column in tally.table().columns}
    assert (columns["split"], columns["images"]) == (["test", "train"], ["2", "1"])
    assert (columns["tiers"], columns["left out"]) == (["low 1, unknown 1", "high 1"], ["bad_row 1", ""])
    assert tally.as_dict()["sources"]["geotiffs"]["tiers"] == {"high": 1, "low": 1, "unknown": 1}


def test_questions_of_a_split_that_is_not_asked_for_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_geotiffs(tmp_path)
    entries("geotiffs", root)
    assert "not imported, for `splits` is ['train']: {'test': 1} questions" in caplog.text
    caplog.clear()
    entries("geotiffs", root, splits=["train", "test"])
    assert not caplog.text


@pytest.mark.parametrize("table", ["questions.jsonl", "questions.csv"])
def test_a_table_may_state_a_gsd_and_the_transform_wins(tmp_path: Path, table: str) -> None:
    """fine.tif measures half a metre; nowhere.tif knows nothing of itself."""
    root = make_geotiffs(tmp_path)
    stated = [("nowhere.tif", "30 cm"), ("nowhere.tif", ""), ("fine.tif", "2"), ("coarse.tif", "")]
    (root / "questions.jsonl").unlink()
    if table.endswith("csv"):
        lines = ["image,question,answer,gsd_m", *(f"{image},q?,a,{told}" for image, told in stated)]
    else:
        lines = [json.dumps({"image": i, "question": "q?", "answer": "a", "gsd_m": told or None}) for i, told in stated]
    put(root / table, "\n".join(lines))
    found, rejected = entries("geotiffs", root)
    chosen = {f.image_id: inject(f.evidence) for f in found}
    assert {name: (r.gsd_m, str(r.provenance)) for name, r in chosen.items()} == {
        "geotiffs-nowhere": (pytest.approx(0.3), "nominal"),
        "geotiffs-fine": (pytest.approx(0.5, rel=0.01), "exact"),
        "geotiffs-coarse": (pytest.approx(20.0, rel=0.01), "exact"),
    }
    assert "questions:gsd_m says 2 m" in chosen["geotiffs-fine"].disagreements[0]
    assert not rejected


def test_a_gsd_that_was_stated_in_vain_is_noted_and_converts_no_image(tmp_path: Path) -> None:
    """Beside the files: a wrong unit, a length that the transform contradicts, and nothing (of which nothing is said)."""
    root = make_geotiffs(tmp_path)
    for name, told in (("nowhere", "0.5ft"), ("fine", 2.0)):
        item = {"type": "Feature", "stac_version": "1.0.0", "properties": {"gsd": told}, "assets": {}}
        put(root / f"{name}.json", json.dumps(item))
    (root / "coarse.tif").unlink()
    write_raster(root / "coarse.tif", np.ones((3, 30, 40), np.uint8), transform=north_up(20), photometric="RGB")
    put(root / "plain.png", IMAGE)
    with (root / "questions.jsonl").open("a") as table:
        table.write(json.dumps({"image": "plain.png", "question": "q?", "answer": "a"}) + "\n")
    sources = {"geotiffs": {"root": "geotiffs", "dataset": "LoveDA"}}
    tally = import_archives(ArchivesConfig(root=tmp_path, sources=sources), tmp_path / "out")
    lines = (tmp_path / "out" / "notes.jsonl").read_text().splitlines()
    notes = {row["image_id"]: " ".join(row["notes"]) for row in map(json.loads, lines)}
    assert set(notes) == {"geotiffs-nowhere", "geotiffs-fine", "geotiffs-coarse"}
    assert "nowhere.json: record field not used" in notes["geotiffs-nowhere"]
    assert "stac:gsd says 2 m" in notes["geotiffs-fine"] and "LoveDA" not in notes["geotiffs-fine"]
    assert "transform without CRS" in notes["geotiffs-coarse"]
    assert (tally.images.total(), tally.converted.total()) == (4, 0)


@pytest.mark.parametrize(("values", "says"), [(["0"], "positive"), (["1 ft"], "length"), ([0.5, "60 cm"], "several")])
def test_a_stated_gsd_that_is_none_costs_its_image(tmp_path: Path, values: list[Any], says: str) -> None:
    rows = [{"image": "nowhere.tif", "question": "q?", "answer": "a", "gsd_m": v} for v in values]
    put(make_geotiffs(tmp_path) / "questions.jsonl", "\n".join(map(json.dumps, rows)))
    found, [rejected] = entries("geotiffs", tmp_path / "geotiffs")
    assert (found, rejected.kind) == ([], "bad_gsd")
    assert says in rejected.reason


def test_a_sensor_that_no_table_knows_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    for kind, option in (("geotiffs", "sensor"), ("geotiffs", "dataset"), ("llava", "dataset")):
        with pytest.raises(ConfigError, match=f"no such {option}.*'no such thing'"):
            make_source(kind, {option: "no such thing", "name": "mine"}, tmp_path)


@pytest.mark.parametrize(("kind", "folder"), [("patternnet", "PatternNet"), ("mtsccd", "MtSCCD")])
def test_a_split_without_an_image_is_an_error_and_not_an_empty_corpus(tmp_path: Path, kind: str, folder: str) -> None:
    put_images(tmp_path / folder, *(f"bridge/{number}.png" for number in range(20)))
    with pytest.raises(ConfigError, match=r"no image lies in this split .*value \['val'\].*shares"):
        entries(kind, tmp_path, splits=["train", "val"])
    found, _ = entries(kind, tmp_path, splits=["train", "val"], shares={"val": 0.3})
    assert {f.split for f in found} == {"train", "val"}


@pytest.mark.parametrize(
    ("kind", "folder", "strays"),
    [
        ("patternnet", "images", ["1.png", "test/2.png"]),
        ("patternnet", "PatternNet", ["1.png", "val/2.png"]),
        ("mtsccd", "MtSCCD", ["1.png", "mtsccd/2.png", "train/3.png", "train/Wuhan/4.png"]),
    ],
)
def test_an_image_in_no_class_folder_is_counted_and_only_such_is_a_wrong_layout(
    tmp_path: Path, kind: str, folder: str, strays: list[str]
) -> None:
    put_images(tmp_path / folder, *strays)
    with pytest.raises(ConfigError, match=r"no image lies in a class folder.*expected: .*<class>/<file>"):
        entries(kind, tmp_path)
    put_images(tmp_path / folder, "bridge/1.png")
    found, rejected = entries(kind, tmp_path)
    assert [f.class_label for f in found] == ["bridge"]
    assert sorted((r.item, r.kind) for r in rejected) == [(name, "no_questions") for name in sorted(strays)]
    shutil.rmtree(tmp_path / folder)
    (tmp_path / folder).mkdir()
    with pytest.raises(ConfigError, match="no image lies in a class folder"):
        entries(kind, tmp_path)


def test_llavas_split_must_be_among_its_splits(tmp_path: Path) -> None:
    make_llava(tmp_path)
    with pytest.raises(ConfigError, match=r"'split'.*'val'.*splits: \[val\]"):
        entries("llava", tmp_path, name="geochat_instruct", split="val")
    found, _ = entries("llava", tmp_path, name="geochat_instruct", split="val", splits=["val"])
    assert {f.split for f in found} == {"val"}


def test_two_spellings_of_a_name_are_one_image(tmp_path: Path) -> None:
    def respell(rows: list[dict[str, Any]]) -> None:
        rows[2]["image"] = "./P0000_0001.png"
        rows.append({**rows[1], "image": "deep//./x1.png"})

    edit_json(make_llava(tmp_path) / "geochat_instruct.json", respell)
    found, rejected = entries("llava", tmp_path, name="geochat_instruct")
    assert {f.image_id: len(f.qas) for f in found} == {
        "geochat_instruct-P0000_0001": 3, "geochat_instruct-P0001_0003": 1, "geochat_instruct-deep-x1": 2,
    }  # fmt: skip
    assert not rejected


def test_two_spellings_of_a_name_cannot_lie_in_two_splits(tmp_path: Path) -> None:
    rows: Iterator[dict[str, str]] = (
        {"image": image, "question": "q", "answer": "a", "split": split}
        for image, split in (("fine.tif", "train"), ("./fine.tif", "test"), ("", "train"))
    )
    put(make_geotiffs(tmp_path) / "questions.jsonl", "\n".join(map(json.dumps, rows)))
    found, rejected = entries("geotiffs", tmp_path / "geotiffs", splits=EVERY)
    assert (found, [r.kind for r in rejected]) == ([], ["bad_row", "bad_row"])
    assert "image name is ''" in rejected[0].reason
    assert "several splits" in rejected[1].reason


@pytest.mark.parametrize("kind", ["geotiffs", "llava"])
def test_names_that_would_be_one_id_are_told_apart_and_other_ids_stay(tmp_path: Path, kind: str) -> None:
    names = ("a.png", "a.tif", "x-y.png", "x/y.png", "a.tif.png", "gone.png", "gone.tif")
    folder = tmp_path / kind
    put_images(folder / ("images" if kind == "llava" else ""), *(n for n in names if n != "gone.png"))
    turns = [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a"}]
    rows = [
        {"image": n, "question": "q?", "answer": "a"} if kind == "geotiffs" else {"image": n, "conversations": turns}
        for n in names
    ]
    put(folder / "questions.jsonl", "\n".join(map(json.dumps, rows)))
    config = ArchivesConfig(
        root=tmp_path, sources={kind: {"root": "geotiffs"} if kind == "geotiffs" else {}}, max_bad_share=0.5
    )
    tally = import_archives(config, tmp_path / "out")
    assert tally.rejected == {(kind, "missing_image"): 1}
    assert tally.images.total() == 6
    found, _ = entries(kind, folder if kind == "geotiffs" else tmp_path, name=kind)
    ids = {f.image_id: str(f.image).removeprefix(f"{folder}/").removeprefix("images/") for f in found}
    plain = {f"{kind}-a": "a.png", f"{kind}-a.tif": "a.tif.png", f"{kind}-x-y": "x-y.png", f"{kind}-gone": "gone.tif"}
    assert plain.items() <= ids.items()
    later = {name: image_id for image_id, name in ids.items() if image_id not in plain}
    assert set(later) == {"a.tif", "x/y.png"}
    assert later["a.tif"].startswith(f"{kind}-a-") and later["x/y.png"].startswith(f"{kind}-x-y-")


def test_a_file_that_gdal_refuses_in_its_own_words_costs_one_image(tmp_path: Path) -> None:
    root = make_patternnet(tmp_path)
    not_pillows = np.ones((3, 12, 16), np.uint16)
    chain_to_nowhere(write_raster(root / "PatternNet" / "images" / "airplane" / "z.tif", not_pillows))
    config = ArchivesConfig(root=root, sources={"patternnet": {}}, max_bad_share=0.5)
    tally = import_archives(config, tmp_path / "out")
    assert (tally.images.total(), dict(tally.rejected)) == (6, {("patternnet", "bad_image"): 1})


def test_mtsccds_official_splits_are_not_drawn(tmp_path: Path) -> None:
    found, _ = entries("mtsccd", make_mtsccd(tmp_path), shares={"val": 0.5, "test": 0.4}, splits=EVERY)
    assert {(f.region_id, f.split) for f in found} == {
        ("mtsccd-hangzhou", "train"), ("mtsccd-wuhan", "train"), ("mtsccd-nanjing", "val"), ("mtsccd-hefei", "test"),
    }  # fmt: skip


@pytest.mark.parametrize("release", ["v1.5", "v2.0"])
def test_dotas_later_releases_have_their_labels_one_folder_deeper(tmp_path: Path, release: str) -> None:
    """Beside the oriented boxes lie upright ones, here of nothing."""
    root = make_dota(tmp_path)
    expected, _ = entries("dota", root)
    official = root / "train" / f"labelTxt-{release}" / f"DOTA-{release}_train"
    official.parent.mkdir()
    (root / "train" / "labelTxt").rename(official)
    put(official.with_name(f"{official.name}_hbb") / "P0000.txt", "imagesource:x\ngsd:7\n")
    assert entries("dota", root) == (expected, [])
    assert DotaParents(root).candidate("P0000") == DotaParents(official).candidate("P0000")
    shutil.rmtree(official)
    found, rejected = entries("dota", root)
    assert (found, {r.kind for r in rejected}) == ([], {"no_questions"})
    assert f"DOTA-{release}_train" in rejected[0].reason and "/P0000.txt" in rejected[0].reason
