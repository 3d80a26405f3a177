from pathlib import Path

import pytest
from geo.geo_fakes import write_json

import scaleearth_pl.geo.sidecars as sidecars_module
from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.sidecars import parse_dota, parse_json, parse_world_file, read_sidecars, world_file_names

V1 = "imagesource:GoogleEarth\ngsd:0.266170468393\n1.0 2.0 3.0 2.0 3.0 4.0 1.0 4.0 plane 0\n"
V2 = "acquisition dates:2017-07-13\nimagesource:GF-2\ngsd:0.81\n"


def test_world_file_names_by_suffix() -> None:
    names = [p.name for p in world_file_names(Path("a/tile.tif"))]
    assert names == ["tile.tfw", "tile.tifw", "tile.wld", "tile.TFW", "tile.TIFW", "tile.WLD"]
    assert world_file_names(Path("t.jpeg"))[0].name == "t.jgw"


def test_world_file_counts_from_the_centre_of_the_first_pixel(tmp_path: Path) -> None:
    (tmp_path / "a.tfw").write_text("0.5\n0.1\n0.2\n-0.5\n1000.35\n1999.8\n")
    transform = parse_world_file(tmp_path / "a.tfw")
    assert transform == pytest.approx((0.5, 0.2, 1000.0, 0.1, -0.5, 2000.0))


def test_sidecars_in_capitals_are_read(tmp_path: Path) -> None:
    """As old deliveries have them: IMG.TIF, IMG.TFW, IMG.PRJ."""
    (tmp_path / "A.TFW").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    (tmp_path / "A.PRJ").write_text('PROJCS["utm"]')
    found = read_sidecars(tmp_path / "A.TIF", (8, 8))
    assert found.transform == pytest.approx((0.5, 0.0, 1000.0, 0.0, -0.5, 2000.0))
    assert found.crs_text == 'PROJCS["utm"]'


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d e f", "1 0 0 -1 0 nan", "1 0 0 -1 0 0 0"])
def test_broken_world_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jgw").write_text(text)
    with pytest.raises(SampleError, match="six"):
        parse_world_file(tmp_path / "a.jgw")
    found = read_sidecars(tmp_path / "a.jpg", (8, 8))
    assert found.transform is None
    assert "not used" in found.notes[0]


@pytest.mark.parametrize(("text", "gsd_m"), [(V1, 0.266170468393), (V2, 0.81)])
def test_dota_versions(text: str, gsd_m: float) -> None:
    found = parse_dota(text)
    assert found is not None
    assert found.gsd_m == gsd_m
    assert found.provenance is Provenance.EXACT


@pytest.mark.parametrize("value", ["", "null", "None", "  "])
def test_dota_without_gsd(value: str) -> None:
    assert parse_dota(f"imagesource:GoogleEarth\ngsd:{value}\n") is None
    box = "2244.0 1791.0 2254.0 1795.0 2245.0 1813.0 2238.0 1809.0 small-vehicle 1"
    assert parse_dota(f"imagesource:GoogleEarth\ngsd:{value}\n{box}\n") is None


def test_text_of_someone_else_is_not_dota() -> None:
    assert parse_dota("gsd: 3\na caption about a harbour") is None


@pytest.mark.parametrize("value", ["about a metre", "-1", "0", "nan"])
def test_dota_with_a_wrong_gsd(tmp_path: Path, value: str) -> None:
    text = f"imagesource:GF-2\ngsd:{value}\n"
    with pytest.raises(GsdError):
        parse_dota(text)
    (tmp_path / "P0001.txt").write_text(text)
    found = read_sidecars(tmp_path / "P0001.png", None)
    assert not found.candidates
    assert "P0001.txt" in found.notes[0]


@pytest.mark.parametrize("folder", ["labelTxt", "meta", "images"])
def test_dota_folders(tmp_path: Path, folder: str) -> None:
    for name in ("images", folder):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / folder / "P0001.txt").write_text(V1)
    (found,) = read_sidecars(tmp_path / "images" / "P0001.png", None).candidates
    assert found.source == "dota:gsd"


def test_dota_gsd_after_thousands_of_objects_is_found(tmp_path: Path) -> None:
    objects = "1.0 2.0 3.0 2.0 3.0 4.0 1.0 4.0 plane 0\n" * 2000
    (tmp_path / "P0001.txt").write_text("imagesource:GF-2\n" + objects + "gsd:0.8\n")
    (found,) = read_sidecars(tmp_path / "P0001.png", None).candidates
    assert found.gsd_m == 0.8


@pytest.mark.parametrize("name", ["scene.json", "scene.tif.json"])
def test_json_beside_the_image(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"type": "Feature", "stac_version": "1.0.0", "properties": {"gsd": 3}})
    (found,) = read_sidecars(tmp_path / "scene.tif", None).candidates
    assert found.gsd_m == 3


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000, "\xff"])
def test_broken_json_is_a_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(SampleError):
        parse_json(tmp_path / "a.json")
    found = read_sidecars(tmp_path / "a.tif", None)
    assert not found.candidates
    assert "a.json not used" in found.notes[0]


def test_huge_json_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars_module, "MAX_JSON_BYTES", 10)
    with pytest.raises(SampleError, match="10 bytes"):
        parse_json(write_json(tmp_path / "a.json", {"caption": "long enough"}))


def test_nothing_beside_the_image(tmp_path: Path) -> None:
    found = read_sidecars(tmp_path / "a.tif", None)
    assert (found.candidates, found.transform, found.crs_text, found.notes) == ([], None, None, [])
