"""Files whose damage GDAL tells by errors of other kinds: each is one `SampleError`, or costs nothing at all."""

import struct
from pathlib import Path

import pytest
from geo.geo_fakes import north_up, write_raster

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.geo.raster import read_rgb
from scaleearth_pl.geo.rasterfile import open_raster, read_header
from scaleearth_pl.prepare.geotag import main

ONE_COEFFICIENT = '<PAMDataset><Metadata domain="RPC"><MDI key="LINE_OFF">1</MDI></Metadata></PAMDataset>'


def chain_to_nowhere(path: Path) -> Path:
    """A TIFF whose first directory points to a second one in the middle of the header."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (n_tags,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * n_tags, 2)
    path.write_bytes(data)
    return path


def test_an_error_in_gdals_own_words_is_a_typed_one(tmp_path: Path) -> None:
    """rasterio raises it as a plain Exception where bands are asked for their colour, after the file was opened."""
    damaged = chain_to_nowhere(write_raster(tmp_path / "a.tif"))
    with pytest.raises(SampleError, match=r"raster cannot be read: .*a\.tif"):
        read_rgb(damaged)


@pytest.mark.parametrize("error", [KeyError("LINE_SCALE"), IndexError("band")])
def test_a_missing_item_is_a_typed_error_that_names_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(SampleError, match=str(error.args[0])), open_raster(write_raster(tmp_path / "a.tif")):
        raise error


def test_rational_polynomials_are_present_or_absent_however_incomplete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_raster(tmp_path / "bare.tif")
    assert not read_header(bare).has_rpcs
    placed = write_raster(tmp_path / "placed.tif", crs="EPSG:32631", transform=north_up(0.5))
    for path in (bare, placed):
        Path(f"{path}.aux.xml").write_text(ONE_COEFFICIENT)
        assert read_header(path).has_rpcs
    assert main([str(bare), str(placed)]) == 0
    unknown, known = capsys.readouterr().out.splitlines()
    assert "rational polynomials and no transform" in unknown
    assert '"provenance": "exact"' in known
