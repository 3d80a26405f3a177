import math

import pytest

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.geo.crs import earth_crs, is_other_planet
from scaleearth_pl.geo.ground import Transform, is_anisotropic, measure_pixel, scaled

SIZE = (100, 80)


def at_centre(step_x: float, step_y: float, x: float, y: float) -> Transform:
    """North-up transform whose image centre is (x, y)."""
    return step_x, 0.0, x - step_x * SIZE[0] / 2, 0.0, -step_y, y + step_y * SIZE[1] / 2


def metres_per_degree(lat_deg: float) -> tuple[float, float]:
    """The textbook series for WGS 84, longitude and latitude: independent of PROJ."""
    p = math.radians(lat_deg)
    lon = 111412.84 * math.cos(p) - 93.5 * math.cos(3 * p) + 0.118 * math.cos(5 * p)
    return lon, 111132.954 - 559.822 * math.cos(2 * p) + 1.175 * math.cos(4 * p)


@pytest.mark.parametrize("lat", [0.0, 37.5, -53.4, 78.0])
@pytest.mark.parametrize("step", [1e-6, 9e-5, 0.01])
def test_degrees_follow_the_textbook_series(lat: float, step: float) -> None:
    pixel = measure_pixel(at_centre(step, step, 6.9, lat), SIZE, earth_crs("EPSG:4326"))
    lon_m, lat_m = metres_per_degree(lat)
    assert pixel.gsd_x_m == pytest.approx(step * lon_m, rel=1e-4)
    assert pixel.gsd_y_m == pytest.approx(step * lat_m, rel=1e-4)
    assert (pixel.lon, pixel.lat) == pytest.approx((6.9, lat))


def test_degrees_are_anisotropic_away_from_the_equator() -> None:
    far = measure_pixel(at_centre(9e-5, 9e-5, 6.9, 53.4), SIZE, earth_crs("EPSG:4326"))
    near = measure_pixel(at_centre(9e-5, 9e-5, 6.9, 5.0), SIZE, earth_crs("EPSG:4326"))
    assert is_anisotropic(far.gsd_x_m, far.gsd_y_m)
    assert not is_anisotropic(near.gsd_x_m, near.gsd_y_m)
    assert far.gsd_m == pytest.approx(math.sqrt(far.gsd_x_m * far.gsd_y_m))


@pytest.mark.parametrize("code", ["EPSG:3857", "EPSG:3395"])
@pytest.mark.parametrize("lat", [0.0, 45.0, 70.0])
def test_mercator_shrinks_by_cos_latitude(code: str, lat: float) -> None:
    p = math.radians(lat)
    eccentricity = 0.0818191908426 if code == "EPSG:3395" else 0.0
    s = eccentricity * math.sin(p)
    northing = 6378137 * (math.atanh(math.sin(p)) - eccentricity * math.atanh(s))
    pixel = measure_pixel(at_centre(10, 10, 1e6, northing), SIZE, earth_crs(code))
    assert pixel.lat == pytest.approx(lat, abs=1e-6)
    assert pixel.gsd_m == pytest.approx(10 * math.cos(p), rel=0.007)


def test_us_survey_feet_are_feet() -> None:
    """New York Long Island in US survey feet: the projection's own scale is within 0.01 % of one."""
    pixel = measure_pixel(at_centre(1, 1, 984_250, 200_000), SIZE, earth_crs("EPSG:2263"))
    assert pixel.gsd_m == pytest.approx(0.3048006, rel=2e-4)


@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 90.0, 200.0])
def test_rotation_does_not_change_the_gsd(angle: float) -> None:
    c, s = 0.5 * math.cos(math.radians(angle)), 0.5 * math.sin(math.radians(angle))
    pixel = measure_pixel((c, s, 500_000, s, -c, 5_500_000), SIZE, earth_crs("EPSG:32631"))
    assert pixel.gsd_x_m == pytest.approx(0.5 / 0.9996, rel=1e-4)
    assert pixel.gsd_y_m == pytest.approx(0.5 / 0.9996, rel=1e-4)
    assert not pixel.sheared


def test_sheared_transform_is_told() -> None:
    assert measure_pixel((1, 0.3, 500_000, 0, -1, 5_500_000), SIZE, earth_crs("EPSG:32631")).sheared


def test_an_oblique_pixel_is_as_large_as_its_area() -> None:
    """MODIS's sinusoidal grid at 140 E, 60 N: an equal-area map, whose pixels cover 463.3 m squared wherever they lie."""
    radius_m, lat, lon = 6_371_007.181, math.radians(60), math.radians(140)
    sinusoidal = earth_crs(f"+proj=sinu +lon_0=0 +R={radius_m} +units=m")
    side_m = 463.3127
    pixel = measure_pixel(at_centre(side_m, side_m, radius_m * lon * math.cos(lat), radius_m * lat), SIZE, sinusoidal)
    shear = lon * math.sin(lat)  # dx/dlat over dy/dlat: the meridian's slope on the map
    assert pixel.gsd_m == pytest.approx(side_m, rel=1e-5)
    assert pixel.gsd_y_m == pytest.approx(side_m * math.hypot(1, shear), rel=1e-4)
    assert pixel.sheared
    centre = measure_pixel(at_centre(side_m, side_m, 0.0, radius_m * lat), SIZE, sinusoidal)
    assert centre.gsd_m == pytest.approx(side_m, rel=1e-5)
    assert not centre.sheared


@pytest.mark.parametrize(
    ("code", "x", "y", "step"),
    [("EPSG:32631", 7e5, 6.6e6, 10.0), ("EPSG:3857", 1e6, 8e6, 30.0), ("EPSG:4326", 6.9, 78.0, 9e-5)],
)
def test_right_angles_leave_the_geometric_mean_of_the_edges(code: str, x: float, y: float, step: float) -> None:
    pixel = measure_pixel(at_centre(step, step, x, y), SIZE, earth_crs(code))
    assert pixel.gsd_m == pytest.approx(math.sqrt(pixel.gsd_x_m * pixel.gsd_y_m), rel=1e-12)
    assert not pixel.sheared


def test_custom_projection_without_code_and_bound_and_compound_systems() -> None:
    albers = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=WGS84 +units=m"
    assert measure_pixel(at_centre(30, 30, -6e5, 2e6), SIZE, earth_crs(albers)).gsd_m == pytest.approx(30, rel=1e-3)
    bound = "+proj=sterea +lat_0=52.15616 +lon_0=5.38764 +k=0.9999079 +x_0=155000 +y_0=463000 +ellps=bessel"
    shifted = earth_crs(bound + " +towgs84=565.4,50.3,465.6,-0.4,0.35,-1.9,4.08 +units=m")
    assert measure_pixel(at_centre(0.25, 0.25, 127_500, 428_000), SIZE, shifted).gsd_m == pytest.approx(0.25, rel=1e-3)
    compound = earth_crs("EPSG:7405")
    assert measure_pixel(at_centre(5, 5, 400_000, 300_000), SIZE, compound).gsd_m == pytest.approx(5, rel=1e-3)


def test_grads_of_paris_are_not_degrees() -> None:
    pixel = measure_pixel(at_centre(1e-4, 1e-4, 0.0, 50.0), SIZE, earth_crs("EPSG:4807"))
    assert pixel.lat == pytest.approx(45.0)
    assert pixel.lon == pytest.approx(2.337, abs=1e-3)
    assert pixel.gsd_y_m == pytest.approx(10.0, rel=0.002)


def test_centimetre_pixels_keep_their_digits_where_inverse_projections_stop_early() -> None:
    albers = earth_crs("EPSG:5070")
    fine = measure_pixel(at_centre(0.01, 0.01, 2e5, 2e6), SIZE, albers)
    coarse = measure_pixel(at_centre(100.0, 100.0, 2e5, 2e6), SIZE, albers)
    assert fine.gsd_m * 1e4 == pytest.approx(coarse.gsd_m, rel=2e-4)


def test_spread_tells_how_far_one_number_holds() -> None:
    small = measure_pixel(at_centre(10, 10, 1e6, 6e6), SIZE, earth_crs("EPSG:3857"))
    world = measure_pixel((3.6, 0, -180, 0, -2.25, 90), SIZE, earth_crs("EPSG:4326"))
    assert small.spread_log10 < 1e-3 < 0.3 < world.spread_log10


@pytest.mark.parametrize("transform", [(0, 0, 0, 0, 0, 0), (1, 1, 0, 1, 1, 0), (math.nan, 0, 0, 0, 1, 0)])
def test_degenerate_transform_raises(transform: Transform) -> None:
    with pytest.raises(GsdError, match="degenerate"):
        measure_pixel(transform, SIZE, earth_crs("EPSG:32631"))


def test_metres_declared_as_degrees_raise_instead_of_a_huge_gsd() -> None:
    with pytest.raises(GsdError, match="no longitude and latitude"):
        measure_pixel((0.5, 0, 500_000, 0, -0.5, 5_500_000), SIZE, earth_crs("EPSG:4326"))


def test_place_outside_the_projection_raises() -> None:
    with pytest.raises(GsdError):
        measure_pixel(at_centre(10, 10, 9e7, 9e7), SIZE, earth_crs("+proj=ortho +lat_0=0 +lon_0=0"))


@pytest.mark.parametrize("code", ["IAU_2015:49900", "+proj=longlat +R=1737400", "+proj=longlat +a=6051800 +b=6051800"])
def test_other_planets_are_refused(code: str) -> None:
    assert is_other_planet(code)
    with pytest.raises(GsdError, match="another planet"):
        earth_crs(code)


@pytest.mark.parametrize("code", ["EPSG:4978", "EPSG:5773", 'LOCAL_CS["site",UNIT["metre",1]]', "EPSG:99999999", "x"])
def test_what_is_no_map_of_the_surface_is_refused(code: str) -> None:
    assert not is_other_planet(code)
    with pytest.raises(GsdError):
        earth_crs(code)


def test_scaled_pixels_cover_the_same_corner() -> None:
    assert scaled((1, 0, 7, 0, -2, 9), 2, 3) == (2, 0, 7, 0, -6, 9)
