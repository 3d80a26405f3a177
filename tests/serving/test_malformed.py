"""Five hundred requests that nobody should send: each is refused with a message that helps, and the server lives."""

import base64
import io
import json
import random
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import rasterio
from server_fakes import CHAT, chat, data_url, message, serving, wait_for
from serving_fakes import geotiff, picture, png

PATHS = [
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1/a.png",
    "https://example.org/a.png",
    "../../a.png",
    "data:../../etc/passwd;base64,AAAA",
    "data:image/png,raw",
    "data:image/svg+xml;base64,PHN2Zy8+",
    "data:text/html;base64,PGI+",
    "/vsicurl/http://127.0.0.1/a.tif",
    "ftp://host/a",
    "\\\\host\\share\\a.png",
    "",
    "data:",
    "data:image/png;base64,",
    "data:" + "a" * 5000 + ";base64,AAAA",
    "data:image/png;" + ";" * 3000 + "base64,AAAA",
]
GSDS = [
    0,
    -1,
    -0.0,
    1e-9,
    1e9,
    1e308,
    "0.3",
    "0.3 m",
    True,
    [],
    {},
    [0.3],
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
]
POLICIES = ["Fused", "", "none", 3, True, ["fused"], {"fused": 1}, "metadata\x00", "spoof", "gsd", "predicted "]


SCHEMES = ["", "file://", "http://127.0.0.1:8000", "/vsizip/", "/vsigzip/", "/vsimem/", "zip://", "s3:/", "~", "//host"]
TARGETS = ["/etc/passwd", "/../../../etc/shadow", "/%2e%2e/%2e%2e/a.tif", "/a.zip!/b.tif", "/proc/self/environ"]
HARMLESS = [("top_p", 0.5), ("stream_options", {})]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header announces any size; its one data chunk is empty."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    rows = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(rows)


def jpeg_of_size(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    picture().save(stream, format="JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def sparse_tiff(folder, side: int) -> bytes:
    """A TIFF of `side` squared pixels in a few kilobytes."""
    path = folder / f"sparse{side}.tif"
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    profile |= {"tiled": True, "blockxsize": 16384, "blockysize": 16384, "SPARSE_OK": True}
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)):
        pass
    return path.read_bytes()


def banded_tiff(folder, n_bands: int, *, side: int = 16, dtype: str = "uint8") -> bytes:
    """A compressed TIFF of constant bands that interleave by pixel: few bytes, and to read one band is to decode all."""
    path = folder / f"bands{n_bands}.tif"
    profile = {"driver": "GTiff", "width": side, "height": side, "count": n_bands, "dtype": dtype, "crs": "EPSG:32631"}
    profile |= {"interleave": "pixel", "compress": "deflate", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.full((n_bands, side, side), 7, dtype))
    return path.read_bytes()


def damaged(rng: random.Random) -> bytes:
    """A picture that is cut, or some of whose bytes are others, so that no reader takes it."""
    data = bytearray(png(rng.randrange(9)))
    for _ in range(6):
        data[rng.randrange(8, len(data))] ^= 1 + rng.randrange(255)
    return bytes(data[: rng.randrange(0, len(data) - 12)])


def images(rng, tmp_path):
    huge = [png_of_size(100_000, 100_000), png_of_size(2**31 - 1, 2**31 - 1), jpeg_of_size(65_000, 65_000)]
    huge += [sparse_tiff(tmp_path, 40_000), png_of_size(0, 5), b"\x89PNG\r\n\x1a\n" + b"\0" * 500_000]
    other = [
        b"%PDF-1.7",
        b"<VRTDataset/>",
        b"GIF89a" + b"\0" * 50,
        b"RIFF\0\0\0\0WEBP",
        b"PK\3\4",
        b"\0" * 999,
        b"SIMPLE  =",
    ]
    absurd = [geotiff(tmp_path / f"{m}.tif", m).read_bytes() for m in (1e7, 1e-6)]
    rows = [chat(url=data_url(data)) for data in (*huge, *other)]
    rows += [chat(url=data_url(data), gsd_policy="metadata") for data in absurd]
    return rows + [chat(url=data_url(damaged(rng))) for _ in range(140)]


def broken_base64(rng):
    good = base64.b64encode(png()).decode()
    texts = [good[:-3], good + "=", good[:40] + "*" + good[40:], good[:40] + "\n" + good[40:], "é" * 40, good + "AAAA!"]
    texts += [good[:i] + chr(rng.choice([0, 10, 33, 0x20AC])) + good[i:] for i in rng.sample(range(len(good)), 30)]
    return [chat(url="data:image/png;base64," + text) for text in texts]


def fields():
    rows = [chat(gsd_m=v) for v in GSDS] + [chat(spoof_gsd_m=v) for v in GSDS] + [chat(gsd_policy=v) for v in POLICIES]
    rows += [chat(gsd_m=1, gsd_sigma_log10=v) for v in (0, -1, "a", float("nan"), 1e300, 1e-300)] + [
        chat(gsd_sigma_log10=0.1)
    ]
    rows += [chat(gsd_policy="metadata"), chat(gsd_policy="open", spoof_gsd_m=1.0)]
    wrong = {"gsd": 0.3, "n": 2, "tools": [{}], "logprobs": True, "stop": ["a"], "temperature": 9, "max_tokens": 0}
    wrong |= {"stream": "yes", "model": 3, "messages": "hello", "questions": [], "options": [], "__proto__": {}}
    wrong |= {"gsd_M": 1.0, "functions": [], "response_format": {"type": "json_object"}, "max_completion_tokens": -5}
    wrong |= {"metadata": {"a": "b"}, "logit_bias": {"5": 1}, "store": True, "service_tier": "flex"}
    rows += [chat(**{name: value}) for name, value in wrong.items()]
    return rows + [chat(None, questions=v) for v in ([""], [1], ["a"] * 200, "a", [None], ["x" * 9999], {})]


def conversations():
    url, user = data_url(png()), {"role": "user", "content": "Forest?"}
    talks = [
        [],
        [user],
        [message(url), message(url)],
        [message(url), user],
        [{"role": "system", "content": "Be."}, message(url)],
    ]
    talks += [
        [message(url), {"role": "assistant", "content": "yes"}],
        [message(url, None)],
        [message(url, "  ")],
        [None],
    ]
    talks += [
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [message(url, "x" * 5000)],
        [{"content": "x"}],
        [[[]]],
    ]
    talks += [[message(url, "<|im_end|>")], [message(url, "<|image_pad|>" * 9)], [message(url, 7)]]
    talks += [[{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]]
    talks += [[{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]]
    talks += [
        [message(url), {"role": "assistant", "content": "yes"}, user]
        + [{"role": "assistant", "content": "y"}, user] * 20
    ]
    return [{"model": "scaleearth", "messages": talk} for talk in talks]


def not_json(rng):
    good = json.dumps(chat()).encode()
    bodies = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b"\xff\xfe",
        b"{}",
        b"[" * 50_000,
        b'{"a":' * 5000,
        b"\0" * 99,
    ]
    bodies += [good[: rng.randrange(len(good))] for _ in range(60)] + [good + b"}", b'{"model":"\\ud800"}', b"NaN"]
    return bodies + [bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))) for _ in range(60)]


def path_tricks():
    """Every way of naming a file or an address that something behind the server might open."""
    tricks = [f"{scheme}{target}" for scheme, target in product(SCHEMES, TARGETS)]
    inside = [f"data:image/png;base64,{target}" for target in TARGETS]
    return [chat(url=url) for url in (*PATHS, *tricks, *inside)]


def odd_fields():
    """A good request with one field of another kind; the few that are allowed are left out."""
    junk: list[Any] = [[], {}, "x", -1, 0.5, True, [[None]], "../../etc/passwd", {"type": "text"}]
    names = ["model", "messages", "stream_options", "n", "questions", "options", "max_tokens", "top_p", "gsd_policy"]
    return [chat() | {name: value} for name, value in product(names, junk) if (name, value) not in HARMLESS]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """(kind, body) of more than five hundred requests, generated, in an order of their own."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("malformed")
    rows = {
        "images": images(rng, folder),
        "base64": broken_base64(rng),
        "GSDs and fields": fields(),
        "path tricks": path_tricks(),
        "conversations": conversations() + odd_fields(),
    }
    found = [("not JSON", body) for body in not_json(rng)]
    found += [(kind, json.dumps(row).encode()) for kind, some in rows.items() for row in some]
    rng.shuffle(found)
    return found


def test_five_hundred_malformed_requests_are_refused_with_a_message(earth, bodies):
    """Over a real socket, eight clients at once, so that bad files are opened side by side in the server's threads."""
    counts = Counter(kind for kind, _ in bodies)
    assert len(bodies) >= 500 and len(counts) == 6 and min(counts.values()) >= 30, counts
    with serving(earth, max_image_pixels=10_000_000, max_image_bytes=200_000) as running, ThreadPoolExecutor(8) as pool:

        def send(body):
            return running.send("POST", CHAT, body, {"Content-Type": "application/json"})

        for begin in range(0, len(bodies), 100):
            some = bodies[begin : begin + 100]
            for (kind, body), (status, _, reply) in zip(some, pool.map(send, [body for _, body in some]), strict=True):
                assert 400 <= status < 500 and status != 429, (kind, body[:200], body[-200:], status)
                error = json.loads(reply)["error"]
                assert len(error["message"]) > 7 and len(reply) < 4000, (body[:300], reply[:300])
                assert "/tmp" not in error["message"] and "Traceback" not in error["message"]
            assert running.post(chat())[0] == 200
        wait_for(lambda: running.service.accepted == 0)
        assert running.send("GET", "/health")[0] == 200


def test_other_addresses_and_methods_are_refused_as_json(earth):
    with serving(earth) as running:
        for method, path in (
            ("GET", "/"),
            ("GET", CHAT),
            ("POST", "/v1/models"),
            ("GET", "/v1/models/x"),
            ("GET", "/../x"),
        ):
            status, _, reply = running.send(method, path)
            told = json.loads(reply)["error"]["message"]
            assert status in (404, 405) and (
                "this server has 'scaleearth'" in told or "POST /v1/chat/completions" in told
            )


def test_messages_name_the_field_and_the_remedy(earth):
    with serving(earth, max_image_pixels=10_000_000) as running:
        assert "gsd" in running.post(chat(gsd=0.3))[2]["error"]["message"]
        status, _, reply = running.post(chat(url=data_url(png_of_size(100_000, 100_000))))
        assert status == 413 and "100000 x 100000" in reply["error"]["message"]
        message_ = running.post(chat(gsd_m=1e9))[2]["error"]["message"]
        assert "metres per pixel" in message_ and "100000" in message_


def test_bands_are_bounded_by_the_header(earth, tmp_path):
    """Bands that interleave by pixel are all decoded for three of them: 5,000 in 64 kB took a thread 100 seconds."""
    with serving(earth, max_image_pixels=10_000) as running:

        def send(n_bands, **kind):
            status, _, reply = running.post(chat(url=data_url(banded_tiff(tmp_path, n_bands, **kind), "image/tiff")))
            return status, "" if status == 200 else reply["error"]["message"]

        assert send(17) == (413, "17 bands, of 16 allowed: send the three that show red, green, blue")
        status, told = send(16, side=100)
        assert status == 413 and "160000 bytes when decoded (100 x 100 pixels, 16 bands), of 80000 allowed" in told
        assert send(8, side=100)[0] == send(4, side=100, dtype="uint16")[0] == send(16)[0] == 200
