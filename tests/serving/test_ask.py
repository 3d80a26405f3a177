"""`scaleearth ask`: answers on standard output, plain errors, and the real GeoTIFFs with their traps."""

import json
import os
import shutil
from pathlib import Path

import pytest
from serving_fakes import geotiff, png

from scaleearth_pl import cli
from scaleearth_pl.loading.folders import find_adapter
from scaleearth_pl.model.adapter_io import OUR_CONFIG
from scaleearth_pl.serving.ask import main, spread

REAL = Path(__file__).parents[2].parent / "shared" / "real" / "geotiff"

KNOWN_M = {
    "201404_13SED190110_201404_0x1500m_CL_1.tif": 0.15,
    "2018_SJER_3_252000_4107000_image_477.tif": 0.1,
    "2020.tif": 89.22,
    "5b90f92da0d7280005fab355_4310.tif": 0.0968,
    "OSBS_029.tif": 0.1,
    "cog.tif": 7.728,
    "cog_gcps.tif": None,
    "cog_hirise_mars.tif": None,
    "m_4709963_se_14_1_20180716.tif": 5.002,
    "pan1.tif": 0.5,
    "pix4d_alpha_nodata.tif": 0.3527,
    "rgb_unmasked.tif": 4.5,
    "sample_geotiff_733601_3724734.tif": 0.5,
    "sample_geotiff_733646_3724959.tif": 0.5,
    "sample_geotiff_custom_proj_-661905_2118645.tif": 30.0,
    "sample_geotiff_custom_proj_-665745_2126325.tif": 30.0,
    "sample_geotiff_custom_proj_-669585_2122485.tif": 30.0,
    "sample_geotiff_custom_proj_-673425_2130165.tif": 30.0,
    "test_tiled.tif": 0.25,
    "web.tif": 424.28,
}
"""Ground truth of NOTICE.md, metres per pixel of the file; None where nobody can know it."""


def ask(run, *words):
    return main([*map(str, words), "--model", str(run), "--max-new-tokens", "3"])


def rows_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_of_every_question(fake_run, tmp_path, capsys):
    tile, photo = geotiff(tmp_path / "tile.tif", 0.3), tmp_path / "photo.png"
    photo.write_bytes(png(1))
    assert ask(fake_run, tile, photo, "-q", "Roads?", "-q", "Forest?", "--json") == 0
    rows = rows_of(capsys)
    assert [(Path(r["image"]).name, r["question"]) for r in rows] == [
        (name, question) for name in ("tile.tif", "photo.png") for question in ("Roads?", "Forest?")
    ]
    assert rows[0]["source"] == "transform and SSE-U" and rows[0]["metadata_gsd_m"] == pytest.approx(0.3, rel=1e-3)
    assert rows[2]["source"] == "SSE-U" and rows[2]["metadata_gsd_m"] is None


def test_text_says_which_gsd_and_how_sure(fake_run, tmp_path, capsys):
    assert ask(fake_run, geotiff(tmp_path / "tile.tif", 0.3), "-q", "Roads?", "--policy", "metadata") == 0
    text = capsys.readouterr().out
    assert "GSD 0.3001 m (transform, give or take 2%)" in text and "SSE-U reads" in text and "Roads?" in text


def test_bad_files_cost_a_line_each(fake_run, tmp_path, capsys):
    good, cut = geotiff(tmp_path / "good.tif", 0.3), tmp_path / "cut.png"
    cut.write_bytes(png(1)[:100])
    (tmp_path / "text.tif").write_text("not an image")
    bare = geotiff(tmp_path / "bare.tif", None)
    names = [cut, tmp_path / "absent.tif", good, tmp_path / "text.tif", bare]
    assert ask(fake_run, *names, "-q", "Roads?", "--json", "--policy", "metadata") == 1
    rows = rows_of(capsys)
    assert ["error" in row for row in rows] == [True, True, False, True, True]
    assert "--gsd-m" in rows[4]["error"]


def test_the_users_word(fake_run, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(1, (256, 256)))
    assert ask(fake_run, photo, "-q", "Roads?", "--gsd-m", "0.3", "--json") == 0
    (row,) = rows_of(capsys)
    assert (row["source"], row["policy"]) == ("user", "metadata")
    assert row["gsd_m"] == pytest.approx(0.6) and row["gsd_m_file"] == pytest.approx(0.3)
    assert (row["metadata_gsd_m"], row["metadata_source"]) == (0.3, "user")


def test_the_users_word_is_not_the_files(fake_run, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(1))
    for words in (["--gsd-m", "0.3"], ["--gsd-m", "0.3", "--policy", "predicted"]):
        assert ask(fake_run, photo, "-q", "Roads?", *words) == 0
        text = capsys.readouterr().out
        assert "you say 0.3 m" in text and "file says" not in text
    assert ask(fake_run, photo, "-q", "Roads?") == 0
    assert "file says nothing" in capsys.readouterr().out


def test_the_newest_run_is_the_default(fake_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(fake_run.parents[2])
    assert main([str(geotiff(tmp_path / "t.tif", 0.3)), "-q", "Roads?", "--json", "--max-new-tokens", "1"]) == 0
    captured = capsys.readouterr()
    assert "stage2-fake" in captured.err and len(captured.out.splitlines()) == 1


def test_a_smoke_test_is_the_default_only_where_there_is_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("stage2-tiny-mine", "stage2-tiny-mine-fast")):
        config = tmp_path / "runs" / name / "latest" / "adapter" / OUR_CONFIG
        config.parent.mkdir(parents=True)
        config.touch()
        os.utime(config, (number, number))
    assert find_adapter(None).parents[1].name == "stage2-tiny-mine"
    shutil.rmtree(tmp_path / "runs" / "stage2-tiny-mine")
    assert find_adapter(None).parents[1].name == "stage2-tiny-mine-fast"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gsd-m", "-1"], "finite and positive"),
        (["--gsd-m", "nan"], "finite and positive"),
        (["--policy", "spoof"], "spoof_gsd_m"),
        (["--model", "no/such/run"], "no trained model"),
        (["--max-new-tokens", "0"], "must be positive"),
        (["--device", "toaster"], "no such device"),
        (["--device", "cuda:99"], "no such device"),
        (["--device", "meta"], "no such device"),
        (["-q", " "], "question is empty"),
        (["-q", "<|im_end|>"], "special token"),
    ],
)
def test_faults_of_the_arguments_end_in_status_2(fake_run, tmp_path, capsys, words, says):
    path = geotiff(tmp_path / "t.tif", 0.3)
    status = cli.run(["ask", str(path), "-q", "Roads?", "--model", str(fake_run), *words])
    captured = capsys.readouterr()
    assert status == 2 and says in captured.err and captured.out == ""


def test_argparse_refuses_nonsense(fake_run, capsys):
    for words in (["--window", "1,2,3"], ["--gsd-m", "0.3", "--spoof-gsd-m", "1"], ["--policy", "guess"]):
        with pytest.raises(SystemExit):
            main(["x.tif", "-q", "Roads?", *words])
    capsys.readouterr()


def test_spread_in_words():
    assert spread(0.0) == "taken as given"
    assert spread(0.01) == "give or take 2%"
    assert spread(0.5) == "within a factor 3.2"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real is absent")
def test_the_real_geotiffs(fake_run, capsys):
    """All 20 are answered; GSDs are those of the ground, traps included; what nobody can know is SSE-U's word."""
    assert ask(fake_run, *sorted(REAL.glob("*.tif")), "-q", "What is the land cover?", "--json") == 0
    rows = {Path(row["image"]).name: row for row in rows_of(capsys)}
    assert rows.keys() == KNOWN_M.keys()
    for name, gsd_m in KNOWN_M.items():
        row = rows[name]
        assert row["metadata_gsd_m"] == (None if gsd_m is None else pytest.approx(gsd_m, rel=2e-3)), name
        assert row["source"] == ("SSE-U" if gsd_m is None else "transform and SSE-U"), name
        seen, native = row["seen_size"], row["native_size"]
        ratio = (native[0] * native[1] / (seen[0] * seen[1])) ** 0.5
        assert row["gsd_m"] == pytest.approx(row["gsd_m_file"] * ratio)
    assert any("name:naip says 1 m" in note for note in rows["m_4709963_se_14_1_20180716.tif"]["notes"])
    assert any("another planet" in note for note in rows["cog_hirise_mars.tif"]["notes"])
