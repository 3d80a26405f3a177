import math
from pathlib import Path

import numpy as np
import pytest
from geo.geo_fakes import MARS, REAL, REAL_TRUTH_M, UTM31_ORIGIN, north_up, write_json, write_raster
from PIL import Image
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Resolution
from scaleearth_pl.geo.filegsd import gsd_of_file

UTM_SCALE = 1 / 0.9996


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real GeoTIFFs absent")
@pytest.mark.parametrize("name", REAL_TRUTH_M)
def test_real_files_within_one_percent(name: str) -> None:
    result, truth = gsd_of_file(REAL / name), REAL_TRUTH_M[name]
    if truth is None:
        assert result.gsd_m is None
        assert result.provenance is Provenance.UNKNOWN
        assert result.notes
    else:
        assert result.gsd_m == pytest.approx(truth, rel=0.01)
        assert (result.provenance, result.sigma_log10) == (Provenance.EXACT, 0.01)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real GeoTIFFs absent")
def test_real_traps_are_noted() -> None:
    naip = gsd_of_file(REAL / "m_4709963_se_14_1_20180716.tif")
    assert [c.source for c in naip.disagreeing] == ["name:naip"]
    cog = gsd_of_file(REAL / "cog.tif").chosen
    assert cog is not None
    assert cog.anisotropic
    assert (cog.gsd_x_m, cog.gsd_y_m) == pytest.approx((5.974, 9.998), rel=1e-3)
    assert any("print density" in note for note in gsd_of_file(REAL / "2020.tif").notes)


def unknown(result: Resolution, word: str) -> bool:
    return result.gsd_m is None and result.provenance is Provenance.UNKNOWN and any(word in n for n in result.all_notes)


def test_utm_and_rotated(tmp_path: Path) -> None:
    plain = write_raster(tmp_path / "a.tif", crs="EPSG:32631", transform=north_up(0.5))
    c, s = 0.5 * math.cos(0.6), 0.5 * math.sin(0.6)
    turned = Affine(c, s, UTM31_ORIGIN[0], s, -c, UTM31_ORIGIN[1])
    rotated = write_raster(tmp_path / "b.tif", crs="EPSG:32631", transform=turned)
    for path in (plain, rotated):
        assert gsd_of_file(path).gsd_m == pytest.approx(0.5 * UTM_SCALE, rel=1e-4)


def test_mercator_and_degrees_and_feet(tmp_path: Path) -> None:
    northing = 6378137 * math.atanh(math.sin(math.radians(60)))
    web = write_raster(tmp_path / "w.tif", crs="EPSG:3857", transform=north_up(10, (0, northing)))
    degrees = write_raster(tmp_path / "d.tif", crs="EPSG:4326", transform=north_up(1e-4, (10, 60)))
    feet = write_raster(tmp_path / "f.tif", crs="EPSG:2263", transform=north_up(2, (984_250, 200_000)))
    assert gsd_of_file(web).gsd_m == pytest.approx(5.0, rel=0.01)
    chosen = gsd_of_file(degrees).chosen
    assert chosen is not None
    assert (chosen.gsd_x_m, chosen.gsd_y_m, chosen.anisotropic) == (
        pytest.approx(5.58, rel=0.01),
        pytest.approx(11.14, rel=0.01),
        True,
    )
    assert gsd_of_file(feet).gsd_m == pytest.approx(2 * 0.3048006, rel=1e-3)


def test_custom_system_without_code(tmp_path: Path) -> None:
    albers = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=WGS84 +units=m"
    path = write_raster(tmp_path / "c.tif", crs=albers, transform=north_up(30, (-6e5, 2e6)))
    assert gsd_of_file(path).gsd_m == pytest.approx(30, rel=0.01)


def test_no_crs_and_no_transform_are_unknown(tmp_path: Path) -> None:
    assert unknown(gsd_of_file(write_raster(tmp_path / "a.tif", transform=north_up(0.5))), "without CRS")
    assert unknown(gsd_of_file(write_raster(tmp_path / "b.tif", crs="EPSG:32631")), "no transform")


def test_control_points_alone_are_unknown(tmp_path: Path) -> None:
    corners = [(0, 0), (0, 16), (12, 0), (12, 16)]
    gcps = [GroundControlPoint(r, c, 500_000 + c, 5_500_000 - r) for r, c in corners]
    path = write_raster(tmp_path / "g.tif", gcps=gcps, crs="EPSG:32631")
    assert unknown(gsd_of_file(path), "4 ground control points")


def test_rational_polynomials_alone_are_unknown(tmp_path: Path) -> None:
    zeros = [0.0] * 19
    rpcs = RPC(
        height_off=0, height_scale=1, lat_off=48, lat_scale=1, line_off=6, line_scale=6, long_off=3, long_scale=1,
        samp_off=8, samp_scale=8, line_num_coeff=[1.0, *zeros], line_den_coeff=[1.0, *zeros],
        samp_num_coeff=[1.0, *zeros], samp_den_coeff=[1.0, *zeros],
    )  # fmt: skip
    assert unknown(gsd_of_file(write_raster(tmp_path / "r.tif", rpcs=rpcs)), "rational polynomials")


@pytest.mark.parametrize("name", ["a b.tif", "zip!x.tif", "ü%20.tif", "a:b.tif", "-x.tif", "no_suffix"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    path = write_raster(tmp_path / "a.tif", crs="EPSG:32631", transform=north_up(0.5)).rename(tmp_path / name)
    assert gsd_of_file(path).gsd_m == pytest.approx(0.5 * UTM_SCALE, rel=1e-4)


def test_mars_is_unknown_even_with_a_tempting_name_and_record(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m_4709963_se_14_1_20180716.tif", crs=MARS, transform=north_up(5, (0, 0)))
    write_json(path.with_suffix(".json"), {"type": "Feature", "stac_version": "1.0.0", "properties": {"gsd": 5}})
    result = gsd_of_file(path)
    assert unknown(result, "planet")
    assert len(result.candidates) == 2


def test_wrong_system_for_the_coordinates_is_unknown(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "x.tif", crs="EPSG:4326", transform=north_up(0.5))
    assert unknown(gsd_of_file(path), "no longitude and latitude")


def test_resolution_tags_are_never_a_gsd(tmp_path: Path) -> None:
    tags = {"TIFFTAG_XRESOLUTION": "0.5", "TIFFTAG_YRESOLUTION": "0.5", "TIFFTAG_RESOLUTIONUNIT": "3"}
    assert unknown(gsd_of_file(write_raster(tmp_path / "r.tif", tags=tags)), "print density")
    Image.new("RGB", (8, 8)).save(tmp_path / "dpi.jpg", dpi=(300, 300))
    assert gsd_of_file(tmp_path / "dpi.jpg").gsd_m is None


def test_transform_beats_the_name_and_says_so(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m_4709963_se_14_1_20180716.tif", crs="EPSG:32631", transform=north_up(5))
    result = gsd_of_file(path)
    assert result.gsd_m == pytest.approx(5 * UTM_SCALE, rel=1e-4)
    assert any("name:naip says 1 m" in note for note in result.all_notes)


def test_name_stands_in_where_the_file_says_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "m_3610845_ne_12_060_20180504.png")
    result = gsd_of_file(tmp_path / "m_3610845_ne_12_060_20180504.png")
    assert (result.gsd_m, result.provenance) == (0.6, Provenance.NOMINAL)


@pytest.mark.parametrize(("suffix", "world"), [("jpg", "jgw"), ("png", "pgw"), ("png", "wld"), ("tif", "tfw")])
def test_world_file_needs_a_system(tmp_path: Path, suffix: str, world: str) -> None:
    image = tmp_path / f"tile.{suffix}"
    Image.new("RGB", (40, 40)).save(image)
    x, y = UTM31_ORIGIN
    image.with_suffix(f".{world}").write_text(f"0.25\n0\n0\n-0.25\n{x}\n{y}\n")
    assert unknown(gsd_of_file(image), "without CRS")
    expected = pytest.approx(0.25 * UTM_SCALE, rel=1e-4)
    assert gsd_of_file(image, assumed_crs="EPSG:32631").gsd_m == expected
    wkt = 'PROJCS["WGS_1984_UTM_Zone_31N",GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137,'
    wkt += '298.257223563]],PRIMEM["Greenwich",0],UNIT["Degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    wkt += 'PARAMETER["False_Easting",500000],PARAMETER["False_Northing",0],PARAMETER["Central_Meridian",3],'
    wkt += 'PARAMETER["Scale_Factor",0.9996],PARAMETER["Latitude_Of_Origin",0],UNIT["Meter",1]]'
    image.with_suffix(".prj").write_text(wkt)
    result = gsd_of_file(image)
    assert result.gsd_m == expected
    assert any(".prj" in note for note in result.notes)


def test_global_mosaic_is_imprecise_not_exact(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "w.tif", crs="EPSG:4326", transform=Affine(22.5, 0, -180, 0, -15, 90))
    assert gsd_of_file(path).provenance is Provenance.IMPRECISE


@pytest.mark.parametrize("content", [b"", b"II*\0", b"not an image at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_files_raise_typed_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tif").write_bytes(content)
    with pytest.raises(SampleError, match=r"bad\.tif"):
        gsd_of_file(tmp_path / "bad.tif")


def test_missing_file_and_folder_raise(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.tif"):
        with pytest.raises(SampleError):
            gsd_of_file(path)


def test_reading_leaves_no_file_behind(tmp_path: Path) -> None:
    gsd_of_file(write_raster(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint16)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
