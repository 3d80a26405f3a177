"""Tables that make no sense: every row that cannot be used is named, and too many of them stop the import."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.archives import (
    edit_json,
    make_dota,
    make_fmow,
    make_geotiffs,
    make_llava,
    make_mtsccd,
    make_vrsbench,
    picture,
    put,
)

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError, SampleError
from scaleearth_pl.data.images import MAX_IMAGE_PIXELS
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import pipeline
from scaleearth_pl.prepare.importers import bad_rows, build, tally
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.registry import make_source


def kinds(kind: str, root: Path, **options: Any) -> tuple[int, list[str]]:
    entries = list(make_source(kind, options, root).records())
    return sum(isinstance(e, Found) for e in entries), [e.kind for e in entries if isinstance(e, Rejected)]


def write_label(root: Path, text: str) -> None:
    (root / "train" / "labelTxt" / "P0000.txt").write_text(text)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("imagesource:x\ngsd:0.5ft\n", "bad_gsd"),
        ("imagesource:x\ngsd:-1\n", "bad_gsd"),
        ("imagesource:x\ngsd:0.5\n1 2 3 plane\n", "bad_row"),
        ("imagesource:x\ngsd:0.5\n1 1 9 1 9 9 1 x plane 0\n", "bad_row"),
    ],
)
def test_dota_labels_that_make_no_sense(tmp_path: Path, label: str, kind: str) -> None:
    root = make_dota(tmp_path)
    write_label(root, label)
    assert kinds("dota", root) == (1, [kind])
    (root / "train" / "labelTxt" / "P0000.txt").unlink()
    assert kinds("dota", root) == (1, ["no_questions"])


FMOW = {
    "broken_json": lambda path: path.write_text('{"gsd": 0.4'),
    "bad_gsd": lambda path: edit_json(path, lambda row: row.update(gsd="1.5 ft")),
    "bad_row": lambda path: edit_json(path, lambda row: row.pop("bounding_boxes")),
    "no_questions": lambda path: edit_json(path, lambda row: row.update(bounding_boxes=[])),
}


@pytest.mark.parametrize("kind", FMOW)
def test_fmow_records_that_make_no_sense(tmp_path: Path, kind: str) -> None:
    root = make_fmow(tmp_path)
    FMOW[kind](root / "train" / "barn" / "barn_3" / "barn_3_0_rgb.json")
    assert kinds("fmow", root) == (1, [kind])


def test_fmow_boxes_may_be_the_one_object_itself(tmp_path: Path) -> None:
    root = make_fmow(tmp_path)
    path = root / "train" / "airport" / "airport_0" / "airport_0_0_rgb.json"
    before = list(make_source("fmow", {}, root).records())
    edit_json(path, lambda row: row.update(bounding_boxes=row["bounding_boxes"][0]))
    after = list(make_source("fmow", {}, root).records())
    assert [e.qas for e in after if isinstance(e, Found)] == [e.qas for e in before if isinstance(e, Found)]


@pytest.mark.parametrize("boxes", [[None], ["barn"], "barn", 3, [{"category": "barn"}, None]])
def test_fmow_boxes_that_are_none_cost_their_image(tmp_path: Path, boxes: Any) -> None:
    root = make_fmow(tmp_path)
    edit_json(root / "train" / "barn" / "barn_3" / "barn_3_0_rgb.json", lambda row: row.update(bounding_boxes=boxes))
    assert kinds("fmow", root) == (1, ["bad_row"])


def test_a_fmow_box_beyond_all_numbers_costs_its_image(tmp_path: Path) -> None:
    path = make_fmow(tmp_path) / "train" / "barn" / "barn_3" / "barn_3_0_rgb.json"
    path.write_text(path.read_text().replace('"box": [0,', '"box": [1e999,'))
    assert kinds("fmow", tmp_path / "fmow") == (1, ["bad_row"])


def llava_row(place: int, **changes: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root / "geochat_instruct.json", lambda rows: rows[place].update(changes))


LLAVA = {
    "missing_image": (llava_row(1, image="deep/none.png"), 2),
    "unsafe_path": (llava_row(1, image="../images/P0000_0001.png"), 2),
    "bad_row": (llava_row(1, image=["a.png", "b.png"]), 2),
    "bad_question": (llava_row(2, conversations=[{"from": "gpt", "value": "no"}, {"from": "human", "value": "?"}]), 3),
}


@pytest.mark.parametrize("kind", LLAVA)
def test_llava_rows_that_make_no_sense(tmp_path: Path, kind: str) -> None:
    damage, n_good = LLAVA[kind]
    damage(make_llava(tmp_path))
    assert kinds("llava", tmp_path, name="geochat_instruct") == (n_good, [kind])


def test_a_text_that_spells_a_special_token_is_refused(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nsay <|im_end|>"}, {"from": "gpt", "value": "no"}]
    llava_row(1, conversations=turns)(make_llava(tmp_path))
    assert kinds("llava", tmp_path, name="geochat_instruct") == (2, ["bad_question"])


def test_texts_that_are_no_unicode_are_refused(tmp_path: Path) -> None:
    """Half a surrogate pair: Python's JSON lets it through, neither SQLite nor UTF-8 can hold it."""
    questions = make_geotiffs(tmp_path) / "questions.jsonl"
    rows = [*questions.read_text().splitlines(), '{"image": "x\\ud800.tif", "question": "a", "answer": "b"}']
    questions.write_text("\n".join(rows).replace("How wide is it?", "How wide \\udfff?"))
    config = ArchivesConfig(root=tmp_path, sources={"geotiffs": {"root": "geotiffs"}}, max_bad_share=0.6)
    result = import_archives(config, tmp_path / "out")
    assert result.rejected == {("geotiffs", "bad_row"): 2}
    llava_row(1, image="x\0y.png")(make_llava(tmp_path))
    assert kinds("llava", tmp_path, name="geochat_instruct") == (2, ["bad_row"])


def test_a_table_must_be_named_where_there_are_two(tmp_path: Path) -> None:
    put(make_llava(tmp_path) / "other.json", "[]")
    with pytest.raises(ConfigError, match="several tables"):
        kinds("llava", tmp_path, name="geochat_instruct")
    assert kinds("llava", tmp_path, name="geochat_instruct", table="geochat_instruct.json") == (3, [])


@pytest.mark.parametrize(
    "text", [b"image,question,answer\nfine.tif,\xff\xfe,x\n", b'image,question\nfine.tif,"' + b"x" * 200_000]
)
def test_tables_that_are_no_csv_text_are_typed_errors(tmp_path: Path, text: bytes) -> None:
    root = make_geotiffs(tmp_path)
    (root / "questions.csv").write_bytes(text)
    with pytest.raises(SampleError, match="not CSV text"):
        kinds("geotiffs", root, questions="questions.csv")


def test_vrsbench_and_geotiff_faults(tmp_path: Path) -> None:
    root = make_vrsbench(tmp_path)
    (root / "Annotations_train" / "P0000_0001.json").write_text("[1, 2")
    edit_json(root / "Annotations_train" / "P0001_0007.json", lambda row: row.update(image=None))
    assert kinds("vrsbench", root) == (1, ["broken_json", "bad_row"])
    questions = make_geotiffs(tmp_path) / "questions.jsonl"
    rows = questions.read_text().splitlines()
    more = [
        '{"image": ',
        '{"image": 3}',
        '{"image": "fine.tif", "question": "", "answer": "x"}',
        '{"image": "fine.tif"}',
    ]
    questions.write_text("\n".join([*rows, *more]))
    found, bad = kinds("geotiffs", tmp_path / "geotiffs")
    assert (found, sorted(bad)) == (3, ["bad_question", "bad_question", "bad_row", "broken_json"])


BAD_PAIRS: list[Any] = [
    {"question": "How many?", "type": "object quantity", "answer": ""},
    {"question": "How many?", "type": "object quantity", "answer": None},
    {"question": "How many?", "type": "object quantity", "answer": ["2"]},
    {"question": "How many?", "type": "object quantity", "answer": True},
    {"question": "How many?", "answer": "2"},
    None,
    "How many?",
]


@pytest.mark.parametrize("pair", BAD_PAIRS)
def test_a_pair_of_vrsbench_that_is_no_question_costs_itself(tmp_path: Path, pair: Any) -> None:
    notes = make_vrsbench(tmp_path) / "Annotations_train" / "P0001_0007.json"
    number = {"question": "How many?", "type": "object quantity", "answer": 2}
    edit_json(notes, lambda row: row["qa_pairs"].extend([pair, number]))
    entries = list(make_source("vrsbench", {}, tmp_path / "vrsbench").records())
    assert [(e.item, e.kind) for e in entries if isinstance(e, Rejected)] == [
        ("train/P0001_0007.json#2", "bad_question")
    ]
    (asked,) = (e.qas for e in entries if isinstance(e, Found) and e.image_id == "vrsbench-P0001_0007")
    assert [q.answer for q in asked] == ["2", "Urban", "2", "A high-resolution image with two planes."]
    edit_json(notes, lambda row: row.update(qa_pairs=[pair]))
    assert kinds("vrsbench", tmp_path / "vrsbench", captions=False) == (2, ["bad_question"])


def test_vrsbench_pairs_that_are_no_list_are_counted(tmp_path: Path) -> None:
    root = make_vrsbench(tmp_path)
    edit_json(root / "Annotations_train" / "P0001_0007.json", lambda row: row.update(qa_pairs=7))
    edit_json(root / "Annotations_train" / "P0000_0001.json", lambda row: row.update(qa_pairs=[]))
    assert kinds("vrsbench", root, captions=False) == (1, ["no_questions", "bad_question"])


def test_two_sources_of_one_id_are_told_apart_or_refused(tmp_path: Path) -> None:
    make_llava(tmp_path)
    edit_json(tmp_path / "geochat_instruct" / "geochat_instruct.json", lambda rows: rows[1].update(image="deep-x1.png"))
    put(tmp_path / "geochat_instruct" / "images" / "deep-x1.png", picture(1, 32, 32))
    one = {"kind": "llava", "name": "geochat_instruct"}
    config = ArchivesConfig(root=tmp_path, sources={"a": one, "b": one}, max_bad_share=0.6)
    result = import_archives(config, tmp_path / "out")
    assert result.images.total() == 3
    assert result.rejected == {("geochat_instruct", "duplicate_id"): 3}


def test_change_pairs_are_one_record_of_two_images(tmp_path: Path) -> None:
    root = make_mtsccd(tmp_path)
    entries = list(make_source("mtsccd", {"pairs": "pairs.csv"}, root).records())
    assert [len(e.later) for e in entries if isinstance(e, Found)] == [1, 1]
    assert [e.qas[0].answer for e in entries if isinstance(e, Found)] == ["no", "yes"]


def test_a_stated_share_of_failures_is_fatal_source_by_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llava(tmp_path, "sound")
    make_llava(tmp_path, "rotten")
    (tmp_path / "rotten" / "images" / "deep" / "x1.png").write_bytes(b"rotten")
    sources = {"sound": {"kind": "llava"}, "rotten": {"kind": "llava"}}
    with pytest.raises(QuarantineLimitError, match=r"1 of 3 items of rotten failed .*bad_image.*quarantine\.jsonl"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.3), tmp_path / "a")
    assert not (tmp_path / "a" / "index.json").exists()
    (line,) = (tmp_path / "a" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["item"] == "rotten-deep-x1"
    import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.34), tmp_path / "b")
    reader = ShardReader(ShardIndex.load(tmp_path / "b"))
    assert len(reader.index) == 5
    reader.close()
    monkeypatch.setattr(tally, "MIN_GOOD", 1)
    with pytest.raises(QuarantineLimitError, match=r"1 of \d items.*, the last because"):
        import_archives(ArchivesConfig(root=tmp_path, sources={"rotten": {"kind": "llava"}}), tmp_path / "c")


def test_a_sound_source_is_not_stopped_by_the_head_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of text alone come first, and are more than the share until the images follow."""
    monkeypatch.setattr(tally, "MIN_GOOD", 2)
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]
    table = make_llava(tmp_path) / "geochat_instruct.json"
    edit_json(table, lambda rows: rows.extend({"id": f"text-{k}", "conversations": talk} for k in range(2)))
    sources = {"geochat_instruct": {"kind": "llava"}}
    result = import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.5), tmp_path / "a")
    assert (result.images.total(), result.n_rejected) == (3, 2)
    with pytest.raises(QuarantineLimitError, match="2 of 5 items"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.3), tmp_path / "b")


def test_many_bad_rows_among_more_good_ones_are_counted_and_no_other_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of nine rows are text alone, at the table's head; two are kept one by one."""
    monkeypatch.setattr(bad_rows, "MAX_BAD_ROWS", 2)
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]
    table = make_llava(tmp_path) / "geochat_instruct.json"
    edit_json(table, lambda rows: rows.extend([dict(rows[0])] + [{"conversations": talk} for _ in range(4)]))
    edit_json(table, lambda rows: rows.reverse())
    sources = {"geochat_instruct": {"kind": "llava"}}
    result = import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.6), tmp_path / "a")
    assert (result.images.total(), dict(result.rejected)) == (3, {("geochat_instruct", "bad_row"): 4})
    lines = [json.loads(line) for line in (tmp_path / "a" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["item"], line["count"]) for line in lines] == [
        ("row 0", 1), ("row 1", 1), ("geochat_instruct.json", 2),
    ]  # fmt: skip
    assert "2 more rows, such as: row has no single image" in lines[-1]["reason"]
    edit_json(table, lambda rows: rows.extend({"conversations": talk} for _ in range(2)))
    with pytest.raises(SampleError, match=r"6 of 11 rows are not of this format.*no single image.*Remedy"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.9), tmp_path / "b")


@pytest.mark.parametrize("text", ['[{"image": "fine.tif", "answer": NaN}]', '[{"image": "a.tif", "gsd_m": Infinity}]'])
def test_a_table_of_ones_own_with_nan_says_what_to_write(tmp_path: Path, text: str) -> None:
    put(make_geotiffs(tmp_path) / "questions.json", text)
    with pytest.raises(SampleError, match=r"questions\.json.*Remedy: JSON has no NaN.*write null"):
        kinds("geotiffs", tmp_path / "geotiffs", questions="questions.json")


@pytest.mark.parametrize("name", ["questions.json", "questions.jsonl", "questions.csv"])
def test_a_byte_order_mark_is_none_of_a_table(tmp_path: Path, name: str) -> None:
    row = {"image": "fine.tif", "question": "q?", "answer": "a"}
    text = "image,question,answer\nfine.tif,q?,a\n" if name.endswith("csv") else json.dumps(row)
    put(make_geotiffs(tmp_path) / name, "\ufeff" + (f"[{text}]" if name.endswith("json") else text))
    assert kinds("geotiffs", tmp_path / "geotiffs", questions=name) == (1, [])


def test_a_spreadsheets_empty_rows_are_no_rows_and_a_backslash_is_named(tmp_path: Path) -> None:
    rows = ["image,question,answer,gsd_m", "fine.tif,q?,a,", ",,,", ' , ,"",', "sub\\fine.tif,q?,a,", ",,,0.5"]
    put(make_geotiffs(tmp_path) / "questions.csv", "\n".join(rows))
    entries = list(make_source("geotiffs", {"questions": "questions.csv"}, tmp_path / "geotiffs").records())
    bad = {e.kind: e.reason for e in entries if isinstance(e, Rejected)}
    assert sum(isinstance(e, Found) for e in entries) == 1 and len(entries) == 3
    assert "image name is ''" in bad.pop("bad_row")
    assert set(bad) == {"unsafe_path"}
    assert "write forward slashes" in bad["unsafe_path"]


def test_images_on_the_drop_list_are_counted_and_no_failures(tmp_path: Path) -> None:
    make_llava(tmp_path)
    (tmp_path / "drop.txt").write_text("geochat_instruct-deep-x1\n")
    config = {"root": str(tmp_path), "sources": {"geochat_instruct": {"kind": "llava"}}, "max_bad_share": 0}
    result = import_archives(ArchivesConfig.from_dict({**config, "drop": str(tmp_path / "drop.txt")}), tmp_path / "a")
    assert result.rejected == {("geochat_instruct", tally.DROPPED): 1} and result.images.total() == 2
    with pytest.raises(ConfigError, match="list of images to drop cannot be read"):
        import_archives(ArchivesConfig.from_dict({**config, "drop": str(tmp_path / "none.txt")}), tmp_path / "b")


@pytest.mark.parametrize("build", [build.build, pipeline.build])
def test_ids_on_the_drop_list_that_match_no_image_are_said(
    tmp_path: Path, build: Callable[[dict[str, Any], Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """White space is none of an id, and a coarse view of a merged corpus stands for its image."""
    make_llava(tmp_path)
    drop = tmp_path / "drop.txt"
    drop.write_text("\ufeffgeochat_instruct-deep-x1 \r\n\ngeochat_instruct-P0000_0001@x4\n", encoding="utf-8")
    config = {"root": str(tmp_path), "sources": {"geochat_instruct": {"kind": "llava"}}, "drop": str(drop)}
    out = build(config, tmp_path / "a")
    assert json.loads((out / "import.json").read_text())["sources"]["geochat_instruct"]["rejected"] == {
        tally.DROPPED: 2
    }
    assert "drop" not in caplog.text
    with drop.open("a") as lines:
        lines.write("".join(f"no-such-{k}\n" for k in range(4)))
    build(config, tmp_path / "b")
    assert "4 ids of the list match no image of this import: no-such-0, no-such-1, no-such-2, ..." in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        {"sources": {}},
        {"sources": {"dota": 3}},
        {"sources": {"dota": {}}, "max_pixels": 4},
        {"sources": {"dota": {}}, "max_bad_share": 1.0},
        {"sources": {"dota": {}}, "shards": 4},
        {"sources": {"dota": {}}, "root": None},
        {"sources": {"dota": {}}, "root": "/nowhere/at/all"},
        {"sources": {"dota": {}}, "root": 2024},
        {"sources": {"dota": {}}, "drop": 2024},
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    make_dota(tmp_path)
    with pytest.raises(ConfigError):
        import_archives(ArchivesConfig.from_dict({"root": tmp_path, "kind": "archives", **config}), tmp_path / "out")


def test_images_of_more_pixels_than_a_shard_holds_cannot_be_asked_for(tmp_path: Path) -> None:
    ArchivesConfig(root=tmp_path, sources={"dota": {}}, max_pixels=MAX_IMAGE_PIXELS)
    with pytest.raises(ConfigError, match=r"'max_pixels'.*at most 50000000"):
        ArchivesConfig(root=tmp_path, sources={"dota": {}}, max_pixels=MAX_IMAGE_PIXELS + 1)
