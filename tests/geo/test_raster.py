import contextlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from geo.geo_fakes import REAL, north_up, write_raster
from PIL import Image
from rasterio.enums import ColorInterp, Resampling

import scaleearth_pl.geo.raster as raster_module
from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import effective_gsd_m
from scaleearth_pl.geo.filegsd import gsd_of_file
from scaleearth_pl.geo.raster import read_rgb, stretch_band

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def bands(*values: int, side: int = 8, dtype: str = "uint8") -> np.ndarray:
    return np.stack([np.full((side, side), v, dtype) for v in values])


def noise(count: int, dtype: str, high: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, high, (count, side, side)).astype(dtype)


def noted(path: Path, word: str) -> bool:
    return any(word in note for note in read_rgb(path).notes)


def test_eight_bit_rgb_is_untouched_and_unnoted(tmp_path: Path) -> None:
    values = noise(3, "uint8", 256)
    result = read_rgb(write_raster(tmp_path / "a.tif", values, photometric="RGB"))
    np.testing.assert_array_equal(result.pixels_HW3, np.moveaxis(values, 0, -1))
    assert (result.notes, result.size, result.native_size, result.valid_share) == ((), (64, 64), (64, 64), 1.0)


def test_one_band_is_repeated(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", bands(7))
    assert (read_rgb(path).pixels_HW3 == 7).all()
    assert read_rgb(path).pixels_HW3.shape == (8, 8, 3)
    assert noted(path, "one band repeated")


@pytest.mark.parametrize("interp", [(*RGB, ColorInterp.undefined), (*RGB, ColorInterp.alpha)])
def test_fourth_band_is_left_out(tmp_path: Path, interp: tuple[ColorInterp, ...]) -> None:
    path = write_raster(tmp_path / "a.tif", bands(1, 2, 3, 255), photometric="RGB", colorinterp=interp)
    assert read_rgb(path).pixels_HW3[0, 0].tolist() == [1, 2, 3]
    assert noted(path, "left out")


def test_four_bands_without_interpretation_take_the_first_three(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", bands(1, 2, 3, 4), photometric="MINISBLACK")
    assert read_rgb(path).pixels_HW3[0, 0].tolist() == [1, 2, 3]
    assert noted(path, "first three bands")
    assert noted(path, "fourth band left out")


def test_colour_interpretation_decides_the_order(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", bands(30, 20, 10), photometric="MINISBLACK", colorinterp=RGB[::-1])
    assert read_rgb(path).pixels_HW3[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("names", [("B02", "B03", "B04", "B08"), ("Blue", "Green", "Red", "NIR")])
def test_band_names_decide_where_colours_are_not_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = write_raster(tmp_path / "a.tif", bands(30, 20, 10, 99), photometric="MINISBLACK", descriptions=names)
    assert read_rgb(path).pixels_HW3[0, 0].tolist() == [10, 20, 30]
    assert noted(path, "by name")


def test_palette_is_looked_up(tmp_path: Path) -> None:
    colours = {0: (0, 0, 0, 255), 5: (200, 100, 50, 255)}
    path = write_raster(tmp_path / "a.tif", bands(5), photometric="PALETTE", colormap=colours)
    assert read_rgb(path).pixels_HW3[0, 0].tolist() == [200, 100, 50]
    assert noted(path, "palette")


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64", "int32"])
def test_deep_values_are_stretched_from_percentile_2_to_98(tmp_path: Path, dtype: str) -> None:
    ramp = np.arange(64 * 64, dtype=dtype).reshape(1, 64, 64)
    path = write_raster(tmp_path / "a.tif", ramp)
    grey = read_rgb(path).pixels_HW3[..., 0].reshape(-1)
    low, high = np.percentile(ramp, [2, 98])
    expected = np.rint(np.clip((ramp.reshape(-1) - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(grey.astype(float), expected, atol=1)
    assert (grey == 0).mean() == pytest.approx(0.02, abs=0.003)
    assert noted(path, "percentiles 2-98")


def test_nodata_and_nan_do_not_enter_the_percentiles(tmp_path: Path) -> None:
    values = noise(3, "int16", 1000)
    clean = read_rgb(write_raster(tmp_path / "a.tif", values))
    holed = values.copy()
    holed[:, :8, :] = -9999
    result = read_rgb(write_raster(tmp_path / "b.tif", holed, nodata=-9999))
    assert result.valid_share == pytest.approx(1 - 8 / 64)
    assert (result.pixels_HW3[:8] == 0).all()
    differences = np.abs(result.pixels_HW3[8:].astype(int) - clean.pixels_HW3[8:])
    assert differences.max() <= 8
    floats = values.astype("float32")
    floats[:, :8, :] = np.nan
    assert read_rgb(write_raster(tmp_path / "c.tif", floats)).valid_share == pytest.approx(1 - 8 / 64)


def test_constant_band_is_black_not_a_division_by_zero() -> None:
    pixels, ends = stretch_band(np.ma.masked_array(np.full((4, 4), 7.0)))
    assert (pixels == 0).all()
    assert ends == (7.0, 7.0)


def test_one_bit_masks_use_the_whole_range(tmp_path: Path) -> None:
    values = np.tile(np.array([0, 1], np.uint8), (1, 8, 4))
    path = write_raster(tmp_path / "a.tif", values, nbits=1)
    assert set(np.unique(read_rgb(path).pixels_HW3)) == {0, 255}


@pytest.mark.parametrize("bits", [8, 1])
def test_where_the_smallest_value_is_white_no_negative_comes_out(tmp_path: Path, bits: int) -> None:
    """GDAL hands such files out inverted by a palette or, where they name a colour interpretation, as they are."""
    values = noise(1, "uint8", 2**bits)
    path = write_raster(tmp_path / "a.tif", values, photometric="MINISWHITE", nbits=bits)
    np.testing.assert_array_equal(read_rgb(path).pixels_HW3, np.asarray(Image.open(path).convert("RGB")))
    assert noted(path, "inverted" if bits == 8 else "palette")
    picture = Image.fromarray(values[0]).convert("1" if bits == 1 else "L")
    picture.save(tmp_path / "b.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_rgb(tmp_path / "b.tif").pixels_HW3, np.asarray(picture.convert("RGB")))


def test_deep_values_whose_smallest_is_white_are_inverted_but_for_nodata(tmp_path: Path) -> None:
    values = noise(1, "uint16", 4000) + np.uint16(1)
    values[:, :4] = 0
    plain = read_rgb(write_raster(tmp_path / "a.tif", values, nodata=0)).pixels_HW3
    inverted = read_rgb(write_raster(tmp_path / "b.tif", values, nodata=0, photometric="MINISWHITE")).pixels_HW3
    assert (inverted[:4] == 0).all()
    np.testing.assert_array_equal(inverted[4:], 255 - plain[4:])


def test_large_raster_is_averaged_down_and_its_gsd_follows(tmp_path: Path) -> None:
    checker = np.indices((400, 600)).sum(axis=0) % 2 * np.uint8(200)
    path = tmp_path / "a.tif"
    write_raster(path, checker[None].astype(np.uint8), crs="EPSG:32631", transform=north_up(0.5), tiled=True)
    result = read_rgb(path, max_pixels=60_000)
    assert result.size == (300, 200)
    assert result.native_size == (600, 400)
    np.testing.assert_allclose(result.pixels_HW3, 100, atol=1)
    gsd_m = gsd_of_file(path).gsd_m
    assert gsd_m is not None
    assert effective_gsd_m(gsd_m, result.native_size, result.size) == pytest.approx(2 * gsd_m)
    assert any("decimated" in note for note in result.notes)


@pytest.mark.parametrize("max_pixels", [10**9, 4000])
def test_reading_in_strips_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_pixels: int) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, "uint16", 4000, 131), nodata=5)
    whole = read_rgb(path, max_pixels=max_pixels)
    monkeypatch.setattr(raster_module, "_STRIP_PIXELS", 2000)
    strips = read_rgb(path, max_pixels=max_pixels)
    assert strips.size == whole.size
    assert np.abs(strips.pixels_HW3.astype(int) - whole.pixels_HW3).max() <= 1


def test_window_is_read_alone(tmp_path: Path) -> None:
    values = noise(3, "uint8", 256)
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    result = read_rgb(path, window=(10, 20, 30, 5))
    np.testing.assert_array_equal(result.pixels_HW3, np.moveaxis(values[:, 20:25, 10:40], 0, -1))
    assert result.native_size == (30, 5)


@pytest.mark.parametrize("window", [(60, 0, 8, 8), (-1, 0, 8, 8), (0, 0, 0, 4)])
def test_window_outside_is_refused(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, "uint8", 9))
    with pytest.raises(SampleError, match="window"):
        read_rgb(path, window=window)


def test_raster_without_a_valid_pixel_and_complex_raster_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="no valid pixel"):
        read_rgb(write_raster(tmp_path / "a.tif", bands(0, dtype="uint16"), nodata=0))
    with pytest.raises(SampleError, match="complex"):
        read_rgb(write_raster(tmp_path / "b.tif", bands(1, dtype="complex64")))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_plain_image_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (20, 10), (200, 100, 50)).save(path)
    np.testing.assert_allclose(read_rgb(path).pixels_HW3[5, 5], [200, 100, 50], atol=6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "jp2"])
def test_image_cut_in_the_middle_raises_a_typed_error(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"a.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(np.moveaxis(noise(3, "uint8", 256, 128), 0, -1)).save(whole)
    read_rgb(whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SampleError, match="cut"):
        read_rgb(cut)


def test_truncated_pixels_raise_a_typed_error(tmp_path: Path) -> None:
    whole = write_raster(tmp_path / "a.tif", noise(3, "uint8", 256), compress="deflate", photometric="RGB")
    (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:6000])
    with pytest.raises(SampleError, match=r"cut\.tif"):
        read_rgb(tmp_path / "cut.tif")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_crash(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = write_raster(
        tmp_path / "a.tif", noise(3, "uint16", 4000, 32), crs="EPSG:32631", transform=north_up(1), compress="lzw"
    )
    data = bytearray(whole.read_bytes())
    for position in rng.integers(4, 600, 12):
        data[position] = rng.integers(256)
    (tmp_path / "bad.tif").write_bytes(bytes(data))
    for read in (read_rgb, gsd_of_file):
        with contextlib.suppress(SampleError):  # any other exception fails the test
            read(tmp_path / "bad.tif")


def test_a_program_in_disguise_is_not_run(tmp_path: Path) -> None:
    secret = write_raster(tmp_path / "secret.tif", bands(9))
    vrt = '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    vrt += f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    for name in ("x.tif", "x.vrt"):
        (tmp_path / name).write_text(vrt)
        with pytest.raises(SampleError, match="not a raster image"):
            read_rgb(tmp_path / name)


@pytest.mark.parametrize("suffix", [".ovr", ".msk"])
def test_rasters_beside_the_file_are_not_opened(tmp_path: Path, suffix: str) -> None:
    """GDAL takes X.tif.ovr for overviews and X.tif.msk for a mask, whatever is in them."""
    path = write_raster(tmp_path / "a.tif", noise(1, "uint8", 200, 64))
    alone = read_rgb(path, max_pixels=32 * 32)
    write_raster(tmp_path / f"a.tif{suffix}", bands(0, side=32 if suffix == ".ovr" else 64), photometric="MINISBLACK")
    beside = read_rgb(path, max_pixels=32 * 32)
    np.testing.assert_array_equal(beside.pixels_HW3, alone.pixels_HW3)
    assert set(beside.notes) - set(alone.notes) == {f"{suffix} beside the file not used"}


def test_overviews_that_are_named_in_another_file_are_refused(tmp_path: Path) -> None:
    """The item may name anything that GDAL can open; GDAL reads it from the file itself too."""
    path = write_raster(tmp_path / "a.tif", noise(1, "uint8", 200, 64), transform=north_up(1))
    write_raster(tmp_path / "secret.tif", bands(9, side=32))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.tif"))
    for read in (read_rgb, lambda p: read_rgb(p, max_pixels=32 * 32)):
        with pytest.raises(SampleError, match=r"another file.*secret\.tif.*gdal_translate"):
            read(path)


def test_decompression_bomb_is_refused_by_header(tmp_path: Path) -> None:
    """A sparse file of a few kilobytes that claims 2.5e9 pixels."""
    path = tmp_path / "bomb.tif"
    profile = {"width": 50_000, "height": 50_000, "count": 1, "dtype": "uint8", "tiled": True, "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32631", transform=north_up(1), **profile):
        pass
    assert path.stat().st_size < 2**20
    with pytest.raises(SampleError, match="pixels to decode"):
        read_rgb(path)
    assert gsd_of_file(path).gsd_m == pytest.approx(1.0004, rel=0.01)  # the header alone is harmless
    assert read_rgb(path, window=(40_000, 40_000, 64, 64)).size == (64, 64)


def test_overviews_make_a_large_raster_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "crs": "EPSG:32631", "transform": north_up(1)}
    path = write_raster(tmp_path / "a.tif", noise(1, "uint8", 200, 512), **tiles)
    monkeypatch.setattr(raster_module, "MAX_DECODED_PIXELS", 512 * 512 // 3)
    with pytest.raises(SampleError, match="overviews"):
        read_rgb(path, max_pixels=128 * 128)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert read_rgb(path, max_pixels=128 * 128).size == (128, 128)


def test_one_giant_strip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_module, "MAX_BLOCK_BYTES", 1000)
    with pytest.raises(SampleError, match="block"):
        read_rgb(write_raster(tmp_path / "a.tif", noise(1, "uint8", 9), blockysize=64, compress="deflate"))


def test_formats_without_blocks_have_the_lower_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_module, "MAX_WHOLE_PIXELS", 100)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(SampleError, match="100 pixels"):
        read_rgb(tmp_path / "a.png")
    write_raster(tmp_path / "a.tif", bands(1, 2, 3, side=20))
    assert read_rgb(tmp_path / "a.tif").size == (20, 20)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real GeoTIFFs absent")
def test_every_real_file_becomes_rgb_with_contrast() -> None:
    for path in sorted(REAL.glob("*.tif")):
        result = read_rgb(path)
        assert result.pixels_HW3.dtype == np.uint8
        assert result.pixels_HW3.std() > 10, path.name
        assert result.pixels_HW3.max() > 60, path.name
