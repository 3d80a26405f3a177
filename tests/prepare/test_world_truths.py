"""Answers and factors of the world, told again from the rendered picture alone: other code, same truth."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from scaleearth_pl.prepare.world.canvas import View
from scaleearth_pl.prepare.world.factors import geometry_factors, texture_factors
from scaleearth_pl.prepare.world.identify import orientation, sides
from scaleearth_pl.prepare.world.render import Picture, render
from scaleearth_pl.prepare.world.scene import Blob, Building, Ribbon, Scene, Subject, Thing
from scaleearth_pl.prepare.world.sight import Sight, look

N_PX, WIDTH_PX = 128, 12.0
VIEW = View(x_m=0, y_m=0, gsd_m=1.0, n_px=N_PX)
BEARINGS = ("north-south", "northeast-southwest", "east-west", "northwest-southeast")
"""By bearing from north, clockwise, in steps of 45 degrees."""


def seen(*things: Thing, noun: str = "") -> tuple[Picture, Sight]:
    """A picture of things on grass; the first is a subject of that noun."""
    subjects = [Subject(noun=noun, size_m=WIDTH_PX, area_m2=None, thing=things[0], x_m=0, y_m=0)] if noun else []
    scene = Scene(seed=1, label="heath", base="grass", sun=(0.6, 0.8), things=things, subjects=tuple(subjects))
    picture = render(scene, VIEW)
    return picture, look(scene, picture)


def ribbon(kind: str, degrees: float) -> Ribbon:
    half = WIDTH_PX / 2
    return Ribbon(code=1, kind=kind, angle=math.radians(degrees), offset_m=0.0, low_m=-half, high_m=half)


def twice_the_direction(picture: Picture) -> tuple[float, float]:
    """(cos 2a, sin 2a) of the long axis of what bears code 1; a from the columns' axis to the rows'."""
    rows, columns = np.nonzero(picture.code_NN == 1)
    inside = np.hypot(rows - rows.mean(), columns - columns.mean()) < picture.code_NN.shape[0] / 2  # no corners
    spread = np.cov(columns[inside], rows[inside])
    across, along = spread[0, 0] - spread[1, 1], 2 * spread[0, 1]
    return across / math.hypot(across, along), along / math.hypot(across, along)


@pytest.mark.parametrize("kind", ["road", "river"])
@pytest.mark.parametrize("degrees", [0, 45, 90, 135, 8, 82])
def test_a_road_or_river_runs_where_its_pixels_run(kind: str, degrees: float) -> None:
    picture, sight = seen(ribbon(kind, degrees), noun=kind)
    cos2, sin2 = twice_the_direction(picture)
    bearing = 90 + math.degrees(math.atan2(sin2, cos2)) / 2  # rows count southward, and so clockwise
    runs = round(bearing / 45) % 4
    answers = {c.answer: c for c in orientation(sight, "image")}
    assert set(answers) == {"yes", "no"}
    assert f" {BEARINGS[runs]}?" in answers["yes"].question
    assert f" {BEARINGS[(runs + 2) % 4]}?" in answers["no"].question


def test_between_two_directions_nobody_is_asked() -> None:
    _, sight = seen(ribbon("road", 22), noun="road")
    assert list(orientation(sight, "image")) == []


PLACES = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}


@pytest.mark.parametrize(("kind", "name"), [("lake", "water"), ("forest", "forest")])
@pytest.mark.parametrize("where", PLACES)
def test_a_lake_or_forest_lies_on_the_side_of_its_pixels(kind: str, name: str, where: str) -> None:
    """In a corner it lies on two sides, and nobody is asked."""
    x, y = (0.25 * N_PX * direction for direction in PLACES[where])
    wobble = (0.05, 0, 0, -0.04, 0, 0, 0, 0)
    picture, sight = seen(Blob(code=1, kind=kind, x_m=x, y_m=y, half_m=(26, 24), angle=0.4, wobble=wobble))
    weights = (picture.code_NN == 1).astype(float)
    half = len(weights) // 2
    halves = {"left": weights[:, :half], "right": weights[:, half:], "top": weights[:half], "bottom": weights[half:]}
    fullest = [side for side, part in halves.items() if part.sum() > 0.8 * weights.sum()]
    assert fullest == ([where] if where in halves else [side for side in halves if side in where.split()])
    found = [(c.answer, name in c.question) for c in sides(sight, picture, "image")]
    assert found == ([(where, True)] if where in halves else [])


@pytest.mark.parametrize("degrees", [0, 45, 90, 135, 20])
def test_geometry_is_that_of_the_pixels(degrees: float) -> None:
    picture, sight = seen(ribbon("road", degrees), noun="road")
    found = geometry_factors(picture, sight)
    assert (found["ribbon_cos2"], found["ribbon_sin2"]) == pytest.approx(twice_the_direction(picture), abs=0.02)
    assert found["log10_largest_px"] == pytest.approx(math.log10(WIDTH_PX))
    assert (found["n_objects"], found["n_buildings"]) == (1, 0)
    if degrees in (0, 90):
        assert found["outline"] == pytest.approx(2 / (len(picture.code_NN) - 1))


def test_buildings_are_counted_and_grass_has_no_geometry() -> None:
    def roof(code: int, x_m: float) -> Building:
        return Building(
            code=code, x_m=x_m, y_m=0, length_m=20, breadth_m=12, height_m=4, angle=0.3, tint=1, gabled=False
        )

    found = geometry_factors(*seen(roof(1, -30), roof(2, 25)))
    assert (found["n_objects"], found["n_buildings"], found["ribbon_cos2"]) == (2, 2, 0)
    assert set(geometry_factors(*seen()).values()) == {0.0}


def grey(light: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(light)[..., None], 3, axis=2).astype(np.uint8)


def stripes(degrees: float, wavelength_px: float) -> np.ndarray:
    rows, columns = np.mgrid[:N_PX, :N_PX]
    angle = math.radians(degrees)
    phase = 2 * np.pi * (columns * math.cos(angle) + rows * math.sin(angle)) / wavelength_px
    return grey(120 + 80 * np.sin(phase))


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_stripes_are_directed(degrees: float) -> None:
    found = texture_factors(stripes(degrees, 16))
    assert found["directedness"] > 0.95
    assert found["contrast"] == pytest.approx(80 / math.sqrt(2), rel=0.03)


def test_clouds_are_not_directed_and_flat_ground_is_nothing() -> None:
    """Clouds, not noise of single pixels: two differences that share a pixel call that half directed (0.5)."""
    clouds = gaussian_filter(np.random.default_rng(0).standard_normal((512, 512)), 3, mode="wrap")
    assert texture_factors(grey(120 + 20 * clouds / clouds.std()))["directedness"] < 0.1
    flat = texture_factors(grey(np.full((N_PX, N_PX), 120.0)))
    assert (flat["contrast"], flat["edge_share"], flat["directedness"]) == (0, 0, 0)


def test_energy_is_told_apart_by_wavelength() -> None:
    fine, coarse = texture_factors(stripes(0, 4)), texture_factors(stripes(0, 64))
    assert fine["fine_energy"] == pytest.approx(math.log10(80**2 / 2), abs=0.05)
    assert fine["coarse_energy"] < 0 < coarse["coarse_energy"] - coarse["fine_energy"]
    assert coarse["coarse_energy"] == pytest.approx(math.log10(80**2 / 2), abs=0.05)
    assert (coarse["edge_share"], fine["edge_share"] > 0.9) == (0, True)
