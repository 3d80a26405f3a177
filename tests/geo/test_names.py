import math

import pytest

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Stage
from scaleearth_pl.geo.names import box_candidate, name_candidates
from scaleearth_pl.geo.webmap import map_pixel_m, webmap_candidate, webmap_pixel

SIZE = (512, 512)


@pytest.mark.parametrize(
    ("stem", "gsd_m"),
    [
        ("m_4709963_se_14_1_20180716", 1.0),
        ("m_3610845_ne_12_060_20180504", 0.6),
        ("m_3610845_ne_12_030_20220504_20221001", 0.3),
        ("m_3712240_sw_10_.6_20160529", 0.6),
        ("M_4709963_SE_14_2_20050716", 2.0),
    ],
)
def test_naip(stem: str, gsd_m: float) -> None:
    (found,), notes = name_candidates(stem, None)
    assert found.gsd_m == gsd_m
    assert (found.provenance, found.stage, found.source) == (Provenance.NOMINAL, Stage.FILE_NAME, "name:naip")
    assert not notes


def test_naip_half_metre_code_is_an_interval() -> None:
    (found,), _ = name_candidates("m_3712240_sw_10_h_20160529", None)
    assert found.provenance is Provenance.IMPRECISE
    assert 0.5 < found.gsd_m < 0.6


@pytest.mark.parametrize("stem", ["m_4709963", "model_1_2", "tile_10m", "P0001", "16", "m_4709963_se_14_x_20180716"])
def test_other_names_say_nothing(stem: str) -> None:
    assert name_candidates(stem, SIZE) == ([], [])


def test_naip_code_zero_is_noted_not_raised() -> None:
    found, notes = name_candidates("m_4709963_se_14_000_20180716", SIZE)
    assert not found
    assert notes


def test_lhrs_corners_over_pixels() -> None:
    """0.01 degrees at 48 N on 512 pixels: 746 m by 1112 m."""
    (found,), _ = name_candidates("France_12_Paris_2.3400_48.0050_2.3500_47.9950", SIZE)
    assert found.gsd_x_m == pytest.approx(746 / 512, rel=0.002)
    assert found.gsd_y_m == pytest.approx(1112 / 512, rel=0.002)
    assert found.provenance is Provenance.NOMINAL


def test_lhrs_without_size_or_with_swapped_corners_is_noted() -> None:
    assert name_candidates("France_12_Paris_2.34_48.01_2.35_48.00", None)[1]
    found, notes = name_candidates("France_12_Paris_2.34_48.00_2.35_48.01", SIZE)
    assert not found
    assert "empty" in notes[0]


def test_skyscript_alias_is_a_factor_of_two_around_the_collection() -> None:
    (found,), _ = name_candidates("a112233_CH_20", SIZE)
    assert found.gsd_m == pytest.approx(0.1)
    assert found.sigma_log10 == pytest.approx(math.log10(2) / math.sqrt(3))
    assert name_candidates("a112233_ZZ_20", SIZE) == ([], [])


def test_box_across_the_antimeridian() -> None:
    there = box_candidate((179.995, 0, -179.995, 0.01), SIZE, stage=Stage.RECORD, source="b")
    here = box_candidate((9.995, 0, 10.005, 0.01), SIZE, stage=Stage.RECORD, source="b")
    assert there.gsd_m == pytest.approx(here.gsd_m)


@pytest.mark.parametrize(
    ("zoom", "gsd_m"), [(14, 9.55), (15, 4.78), (16, 2.39), (17, 1.19), (18, 0.597), (19, 0.299), (20, 0.149)]
)
def test_webmap_at_the_equator(zoom: int, gsd_m: float) -> None:
    assert webmap_pixel(zoom, 0.0).gsd_m == pytest.approx(gsd_m, rel=0.005)
    assert map_pixel_m(zoom) == pytest.approx(156543.03392 / 2**zoom)


@pytest.mark.parametrize("lat", [-60.0, 33.9, 52.0, 80.0])
def test_webmap_shrinks_with_latitude_and_halves_at_2x(lat: float) -> None:
    pixel = webmap_pixel(18, lat)
    assert pixel.gsd_m == pytest.approx(map_pixel_m(18) * math.cos(math.radians(lat)), rel=0.007)
    assert webmap_pixel(18, lat, 512).gsd_m == pytest.approx(pixel.gsd_m / 2, rel=1e-6)
    assert pixel.lat == pytest.approx(lat)


def test_webmap_is_nominal_because_of_upsampling() -> None:
    found = webmap_candidate(21, 33.9)
    assert found.provenance is Provenance.NOMINAL
    assert found.gsd_m == pytest.approx(0.062, rel=0.01)


@pytest.mark.parametrize(
    ("zoom", "lat", "tile"), [(25, 0, 256), (-1, 0, 256), (3, 86, 256), (3, math.nan, 256), (3, 0, 0)]
)
def test_impossible_webmap_raises(zoom: float, lat: float, tile: int) -> None:
    with pytest.raises(GsdError):
        webmap_pixel(zoom, lat, tile)
