import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from geo.geo_fakes import MARS, REAL, REAL_TRUTH_M, north_up, write_raster

from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.prepare.geotag import main

FIELDS = ["file", "gsd_m", "gsd_x_m", "gsd_y_m", "sigma_log10", "provenance", "source", "anisotropic", "notes"]


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, list[dict[str, Any]]]:
    status = main([str(arg) for arg in args])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_line_a_file_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_raster(tmp_path / "good.tif", crs="EPSG:32631", transform=north_up(0.5))
    bare = write_raster(tmp_path / "bare.tif")
    mars = write_raster(tmp_path / "mars.tif", crs=MARS, transform=north_up(5, (0, 0)))
    status, rows = run(capsys, good, bare, mars)
    assert status == 0
    assert [row["file"] for row in rows] == [str(good), str(bare), str(mars)]
    assert all(list(row) == FIELDS for row in rows)
    assert rows[0]["gsd_m"] == pytest.approx(0.5002, rel=1e-4)
    assert (rows[0]["provenance"], rows[0]["sigma_log10"], rows[0]["source"]) == ("exact", 0.01, "transform")
    for row in rows[1:]:
        assert (row["gsd_m"], row["provenance"], row["sigma_log10"], row["source"]) == (None, "unknown", None, None)
        assert row["notes"]


def test_null_if_and_only_if_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write_raster(tmp_path / "a.tif"), write_raster(tmp_path / "m_4709963_se_14_1_20180716.tif")]
    for row in run(capsys, *files)[1]:
        assert (row["gsd_m"] is None) == (Provenance(row["provenance"]) is Provenance.UNKNOWN)


def test_unreadable_file_is_an_error_line_and_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0 cut")
    good = write_raster(tmp_path / "good.tif", crs="EPSG:32631", transform=north_up(0.5))
    status, rows = run(capsys, tmp_path / "bad.tif", tmp_path / "none.tif", good)
    assert status == 1
    assert [("error" in row) for row in rows] == [True, True, False]
    assert rows[0]["gsd_m"] is None
    assert "none.tif" in rows[1]["error"]
    assert rows[2]["gsd_m"] is not None


def test_assumed_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_raster(tmp_path / "a.tif", transform=north_up(2))
    _, (row,) = run(capsys, "--crs", "EPSG:32631", path)
    assert row["gsd_m"] == pytest.approx(2.0008, rel=1e-4)
    assert any("assumed" in note for note in row["notes"])


@pytest.mark.parametrize("args", [["--crs", "EPSG:nonsense", "a.tif"], ["--crs", "IAU_2015:49900", "a.tif"], []])
def test_wrong_command_line_exits_with_two(args: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real GeoTIFFs absent")
def test_module_over_the_real_folder() -> None:
    files = [str(REAL / name) for name in REAL_TRUTH_M]
    done = subprocess.run(
        [sys.executable, "-m", "scaleearth_pl.prepare.geotag", *files], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, truth in zip(rows, REAL_TRUTH_M.values(), strict=True):
        assert row["gsd_m"] is None if truth is None else row["gsd_m"] == pytest.approx(truth, rel=0.01)
