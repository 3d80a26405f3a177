import copy
from typing import Any

import pytest

from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.records import record_candidates

STAC: dict[str, Any] = {
    "type": "Feature",
    "stac_version": "1.0.0",
    "properties": {"gsd": 0.66, "proj:epsg": 32631},
    "assets": {
        "visual": {
            "href": "https://example.org/a/visual.tif?sig=1",
            "proj:transform": [0.5, 0, 500000, 0, -0.5, 5500000, 0, 0, 1],
            "proj:shape": [2000, 1000],
            "raster:bands": [{"spatial_resolution": 0.5}, {"spatial_resolution": 0.5}],
        },
        "thumbnail": {"href": "./thumb.jpg", "roles": ["thumbnail"]},
    },
}
FMOW: dict[str, Any] = {
    "gsd": 0.468,
    "pan_resolution_dbl": 0.468,
    "multi_resolution_dbl": 1.87,
    "mean_pixel_width": 4.6e-6,
    "mean_pixel_height": 4.6e-6,
    "img_width": 1000,
    "img_height": 800,
    "raw_location": "POLYGON ((7.0 47.5, 7.01 47.5, 7.01 47.51, 7.0 47.51, 7.0 47.5))",
}


def by_source(record: Any, name: str = "visual.tif", size: tuple[int, int] | None = None) -> dict[str, Candidate]:
    return {c.source: c for c in record_candidates(record, file_name=name, size=size)[0]}


def test_stac_pixels_come_before_the_sensor() -> None:
    found = by_source(STAC)
    assert found["stac:proj:transform"].gsd_m == pytest.approx(0.5 / 0.9996, rel=1e-3)
    assert found["stac:proj:transform"].provenance is Provenance.EXACT
    assert found["stac:raster:spatial_resolution"].stage is Stage.PIXEL_RECORD
    assert found["stac:gsd"].stage is Stage.RECORD
    assert found["stac:gsd"].gsd_m == 0.66


def test_stac_gsd_follows_a_resize_told_by_the_shape() -> None:
    half = by_source(STAC, size=(500, 1000))
    assert half["stac:proj:transform"].gsd_m == pytest.approx(1.0 / 0.9996, rel=1e-3)
    assert half["stac:raster:spatial_resolution"].gsd_m == pytest.approx(1.0)


def test_stac_thumbnail_does_not_inherit_the_item() -> None:
    assert by_source(STAC, "thumb.jpg") == {}


def test_a_stac_thumbnail_has_the_items_grid_only_where_its_size_is_told() -> None:
    item = copy.deepcopy(STAC)
    item["properties"]["proj:transform"] = item["assets"]["visual"].pop("proj:transform")
    assert by_source(item, "thumb.jpg", size=(100, 200)) == {}
    item["properties"]["proj:shape"] = item["assets"]["visual"].pop("proj:shape")
    found = by_source(item, "thumb.jpg", size=(100, 200))
    assert set(found) == {"stac:proj:transform"}
    assert found["stac:proj:transform"].gsd_m == pytest.approx(5.0 / 0.9996, rel=1e-3)


def test_stac_item_level_gsd_serves_unknown_assets() -> None:
    assert set(by_source(STAC, "other.tif")) == {"stac:gsd"}


@pytest.mark.parametrize("key", ["raster:spatial_resolution", "gsd"])
def test_stac_bands_count_only_where_they_agree(key: str) -> None:
    asset = {"href": "x.tif", "bands": [{key: 10}, {key: 10}]}
    record = {"type": "Feature", "stac_version": "1.1.0", "properties": {}, "assets": {"a": asset}}
    assert by_source(record)[f"stac:{key}"].gsd_m == 10
    asset["bands"] = [{key: 10}, {key: 60}]
    assert by_source(record) == {}


def test_stac_legacy_eo_gsd() -> None:
    record = {"type": "Feature", "stac_version": "0.6.0", "properties": {"eo:gsd": 15}}
    assert by_source(record)["stac:gsd"].gsd_m == 15


def test_stac_of_mars_yields_nothing() -> None:
    record = copy.deepcopy(STAC)
    record["properties"]["proj:code"] = "IAU_2015:49900"
    found, notes = record_candidates(record, file_name="visual.tif", size=None)
    assert not found
    assert "planet" in notes[0]


def test_fmow_grid_differs_from_its_sensor_gsd() -> None:
    """The record of formats: 0.511 m N-S by 0.347 m E-W where gsd says 0.468."""
    found = by_source(FMOW, "airport_1_0_rgb.jpg")
    grid = found["fmow:mean_pixel_size"]
    assert (grid.gsd_x_m, grid.gsd_y_m) == (pytest.approx(0.346, rel=0.01), pytest.approx(0.511, rel=0.01))
    assert grid.anisotropic
    assert grid.stage < found["fmow:gsd"].stage
    assert found["fmow:gsd"].gsd_m == 0.468


def test_fmow_multispectral_files_need_the_multispectral_gsd() -> None:
    found = by_source(FMOW, "airport_1_0_msrgb.jpg")
    assert found["fmow:multi_resolution_dbl"].gsd_m == 1.87
    assert "fmow:gsd" not in found


def test_fmow_resized_image() -> None:
    full, half = by_source(FMOW, "a_rgb.jpg", (1000, 800)), by_source(FMOW, "a_rgb.jpg", (500, 400))
    for source, candidate in full.items():
        assert half[source].gsd_m == pytest.approx(2 * candidate.gsd_m)


@pytest.mark.parametrize(("text", "gsd_m"), [(".1524m", 0.1524), ("10m", 10.0)])
def test_rsvqa_resolution_is_text_with_a_unit(text: str, gsd_m: float) -> None:
    found = by_source({"id": 0, "res_x": text, "res_y": text, "sensor": "S2"})["rsvqa:res_x"]
    assert found.gsd_m == pytest.approx(gsd_m)
    assert found.provenance is Provenance.NOMINAL


def test_skyscript_box_over_pixels() -> None:
    found = by_source({"box": [8.0, 47.0, 8.001, 47.001]}, size=(760, 1112))["skyscript:box"]
    assert found.gsd_m == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 60, 70],  # pixels
        [0.1, 0.2, 0.5, 0.6],  # shares of the image
        [100, 50, 101, 51.5],  # on Earth, but of pixels of three kilometres
        [300, 400, 301, 401],
        [60, 70, 10, 20],
    ],
)
def test_a_detectors_box_is_no_corner_box_unless_its_record_is_skyscripts(box: list[float]) -> None:
    record = {"box": box, "label": "ship", "score": 0.9}
    assert record_candidates(record, file_name="a.jpg", size=(40, 40)) == ([], [])
    found, notes = record_candidates(record | {"surrounding_tags": []}, file_name="a.jpg", size=(40, 40))
    assert [c.source for c in found] == ["skyscript:box"] or "record field not used" in notes[0]


def test_webmap_capture() -> None:
    assert by_source({"zoom": 18, "lat": 60.0})["webmap:zoom"].gsd_m == pytest.approx(0.2986, rel=0.005)


@pytest.mark.parametrize("bad", [None, "wide", [], {}, -1, 0, float("nan"), float("inf"), "1e999", True, 10**400])
@pytest.mark.parametrize("record", [STAC, FMOW, {"res_x": 1}, {"zoom": 18, "lat": 1}, {"box": [1, 2, 3, 4]}])
def test_malformed_fields_are_noted_never_raised(record: dict[str, Any], bad: object) -> None:
    for place in _places(record):
        broken = copy.deepcopy(record)
        holder = broken
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = bad
        found, notes = record_candidates(broken, file_name="visual.tif", size=(100, 100))
        assert all(0 < c.gsd_m < 1e9 for c in found)
        assert all(isinstance(note, str) for note in notes)


def test_a_bad_number_is_noted() -> None:
    found, notes = record_candidates({"res_x": "-3m"}, file_name="", size=None)
    assert not found
    assert "positive" in notes[0]


def test_unknown_records_say_nothing() -> None:
    assert record_candidates({"caption": "a harbour"}, file_name="", size=(8, 8)) == ([], [])


def _places(record: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else []
    return [p for key, value in items for p in [(*prefix, key), *_places(value, (*prefix, key))]]
