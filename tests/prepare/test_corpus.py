"""`scaleearth prepare`: builds once, the same bytes for any number of processes, refuses to mix."""

import json
from pathlib import Path

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.corpus import alone, main, prepare, read_config
from scaleearth_pl.prepare.world import build
from scaleearth_pl.prepare.world.config import WorldConfig, generator

SMALL = "kind: world\nimages: {train: 9, val: 3, test: 3}\nimage_px: 64\nprocesses: 1\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The file and the folder of a small corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    file, out = folder / "small.yaml", folder / "small"
    file.write_text(SMALL + f"out: {out}\n")
    (folder / "small.partial").mkdir()
    (folder / "small.partial" / "torn.tar").write_text("left by a killed build")
    assert main([str(file)]) == 0
    return file, out


def test_corpus_reads_back(built):
    _, out = built
    index = ShardIndex.load(out)
    rows = {split: index.rows((split,)).tolist() for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 9, "val": 3, "test": 3}
    assert len(index.content_hash) == 64
    reader = ShardReader(index)
    sample, image = reader.read(rows["train"][0])
    assert sample.split == "train"
    assert image[:2] == b"\xff\xd8"
    assert not out.with_name("small.partial").exists()
    assert set(json.loads((out / "floors.json").read_text())) == {"val", "test"}


def test_number_of_processes_changes_no_byte(built, tmp_path):
    file, out = built
    other = prepare(file, ["processes=2", f"out={tmp_path / 'two'}"])
    tars = sorted(p.relative_to(out) for p in out.rglob("*.tar"))
    assert tars == sorted(p.relative_to(other) for p in other.rglob("*.tar"))
    assert tars
    for tar in tars:
        assert (out / tar).read_bytes() == (other / tar).read_bytes(), tar
    assert ShardIndex.load(out).content_hash == ShardIndex.load(other).content_hash


def test_second_run_finds_the_work_done(built, capsys):
    file, out = built
    before = (out / "index.json").stat().st_mtime_ns
    assert main([str(file), "--set", "processes=2"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (out / "index.json").stat().st_mtime_ns == before


def test_one_process_at_a_time_builds_a_corpus(built, tmp_path):
    """Else the second would remove the first one's work as that of a killed build."""
    file, _ = built
    out = tmp_path / "shared"
    unfinished = tmp_path / "shared.partial" / "00000.tar"
    unfinished.parent.mkdir()
    unfinished.touch()
    with alone(out), pytest.raises(ConfigError, match=r"another process is building.*shared.*--out"):
        prepare(file, out=out)
    assert unfinished.exists()
    assert prepare(file, out=out) == out
    assert not unfinished.exists()


def test_other_settings_are_refused_by_name(built):
    file, _ = built
    with pytest.raises(ConfigError, match=r"other settings.*config_hash.*--out"):
        prepare(file, ["seed=8"])


@pytest.mark.parametrize(("name", "value"), [("generator", lambda: "edited"), ("VERSION", "0")])
def test_a_corpus_of_another_generator_is_refused_with_the_way_to_rebuild(built, monkeypatch, name, value):
    file, out = built
    monkeypatch.setattr(build, name, value)
    with pytest.raises(
        ConfigError, match=rf"another generator.*rebuild with: rm -r {out} && scaleearth prepare {file}"
    ):
        prepare(file)
    monkeypatch.undo()
    assert prepare(file) == out


def test_a_corpus_without_record_is_refused(built, tmp_path):
    file, out = built
    (tmp_path / "index.json").write_bytes((out / "index.json").read_bytes())
    for text in (None, "[]", "{", "{}"):
        if text is not None:
            (tmp_path / "corpus.json").write_text(text)
        with pytest.raises(ConfigError, match="another generator"):
            prepare(file, [f"out={tmp_path}"])


def test_generator_digest_sees_edits_and_names_but_no_line_ends(tmp_path):
    def digest(**files: bytes) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_bytes(text)
        return generator(folder)

    one = digest(a=b"x = 1\n", b=b"y = 2\n")
    assert digest(b=b"y = 2\r\n", a=b"x = 1\r\n") == one
    others = [digest(a=b"x = 2\n", b=b"y = 2\n"), digest(a=b"x = 1\n", c=b"y = 2\n"), digest(a=b"x = 1\ny = 2\n")]
    assert len({one, *others}) == 4
    assert len(generator()) == 64


def test_a_folder_that_is_no_corpus_is_left_alone(built, tmp_path):
    file, _ = built
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a finished corpus"):
        prepare(file, [f"out={tmp_path}"])
    assert (tmp_path / "letters.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "changes", "problem"),
    [
        ("kind: mars\n", [], "unknown kind"),
        ("- kind\n", [], "not a mapping"),
        ("kind: {\n", [], "not YAML"),
        ("kind: world\n", ["seed"], "not key=value"),
        ("kind: world\nseed: 3\n", ["seed.deep=1"], "not a mapping"),
    ],
)
def test_bad_files_and_changes_are_typed_errors(tmp_path, text, changes, problem):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_config(file, changes)


def test_a_folder_that_looks_like_a_number_is_a_folder(built, tmp_path, monkeypatch):
    file, _ = built
    monkeypatch.chdir(tmp_path)
    assert main([str(file), "--out", "2024"]) == 0
    assert len(ShardIndex.load(tmp_path / "2024")) == 15
    with pytest.raises(ConfigError, match=r"field 'out', value 2024.*quotes"):
        prepare(file, ["out=2024"])


def test_absent_file_and_nested_change(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "none.yaml", [])
    file = tmp_path / "a.yaml"
    file.write_text(SMALL)
    assert read_config(file, ["images.train=12"])["images"] == {"train": 12, "val": 3, "test": 3}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"sead": 1}, "sead"),
        ({"images": {"dev": 3}}, "images.dev"),
        ({"images": {"train": 0}}, "images.train"),
        ({"images": {}}, "images"),
        ({"gsd_m": [1.0, 0.5]}, "gsd_m"),
        ({"gsd_m": [1.0]}, "gsd_m"),
        ({"questions": [9, 3]}, "questions"),
        ({"cue_less_share": 1.5}, "cue_less_share"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"image_px": 8}, "image_px"),
    ],
)
def test_impossible_settings_name_their_field(given, field):
    with pytest.raises(ConfigError, match=f"field '{field}'"):
        WorldConfig.from_dict(given)


def test_wrong_types_and_fresh_test_seed():
    with pytest.raises(ConfigError, match="wrong type"):
        WorldConfig.from_dict({"noise_levels": "much"})
    world = WorldConfig.from_dict({"test_seed": 99})
    assert [world.seed_of(s) for s in ("train", "val", "test")] == [7, 7, 99]


def test_the_shipped_file_is_the_default_world():
    file = Path(__file__).parents[2] / "experiments" / "corpus" / "world.yaml"
    config = read_config(file, [])
    assert config.pop("kind") == "world"
    assert config.pop("out") == "data_shards/world"
    assert WorldConfig.from_dict(config) == WorldConfig()
