import io

import numpy as np
import pytest
import rasterio
from PIL import Image

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.data import images
from scaleearth_pl.data.images import decode_rgb, image_size


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize(("ext", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("webp", "WEBP")])
def test_all_formats_decode(ext, kind):
    data = encoded(PICTURE, kind)
    assert image_size(data, ext, where="x") == (60, 40)
    assert decode_rgb(data, ext, size=(60, 40), where="x").mode == "RGB"


def test_lossless_pixels_survive_and_grey_becomes_rgb():
    assert np.array_equal(decode_rgb(encoded(PICTURE, "PNG"), "png", size=(60, 40), where="x"), PICTURE)
    grey = decode_rgb(encoded(PICTURE.convert("L"), "PNG"), "png", size=(60, 40), where="x")
    assert np.array_equal(np.asarray(grey)[..., 0], np.asarray(grey)[..., 2])


def test_only_the_promised_format_is_tried():
    with pytest.raises(SampleError, match="not a JPEG"):
        image_size(encoded(PICTURE, "PNG"), "jpg", where="shard#key")
    with pytest.raises(SampleError, match="not allowed"):
        image_size(b"", "gif", where="shard#key")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("ext", "kind"), [("png", "PNG"), ("jpg", "JPEG")])
def test_truncated_images_raise(ext, kind, share):
    data = encoded(PICTURE, kind)
    with pytest.raises(SampleError, match="shard#key"):
        decode_rgb(data[: int(share * len(data))], ext, size=(60, 40), where="shard#key")


def test_sixteen_bit_is_refused_with_the_remedy():
    deep = Image.fromarray(np.zeros((4, 4), np.uint16))
    with pytest.raises(SampleError, match="8-bit"):
        decode_rgb(encoded(deep, "PNG"), "png", size=(4, 4), where="x")


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize(("driver", "bands", "ext"), [("GTiff", 3, "tif"), ("GTiff", 4, "tif"), ("PNG", 3, "png")])
def test_sixteen_bit_colour_is_refused_although_pillow_calls_it_rgb(tmp_path, driver, bands, ext):
    """Pillow keeps the high bytes: reflectances of twelve bits would be 0 to 15 of 255."""
    file = tmp_path / f"deep.{ext}"
    more = {"photometric": "RGB", "compress": "deflate"} if driver == "GTiff" else {}
    with rasterio.open(file, "w", driver=driver, width=8, height=8, count=bands, dtype="uint16", **more) as dataset:
        dataset.write(np.full((bands, 8, 8), 3000, np.uint16))
    assert Image.open(file).mode in ("RGB", "RGBA")
    with pytest.raises(SampleError, match=r"8-bit.*;16"):
        decode_rgb(file.read_bytes(), ext, size=(8, 8), where="x")
    with pytest.raises(SampleError, match="8-bit"):
        image_size(file.read_bytes(), ext, where="x")


def test_another_size_than_promised_is_refused():
    with pytest.raises(SampleError, match="another size"):
        decode_rgb(encoded(PICTURE, "PNG"), "png", size=(40, 60), where="x")


def test_a_bomb_is_refused_from_its_header(monkeypatch):
    bomb = encoded(Image.new("1", (12_000, 10_000)), "PNG")
    with pytest.raises(SampleError, match="too large"):
        image_size(bomb, "png", where="x")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SampleError, match="more than 100 pixels"):
        image_size(encoded(PICTURE, "PNG"), "png", where="x")
