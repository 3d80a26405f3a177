"""Archives read in place and images made fit: what climbs out, lies about its size, is cut, or is no image at all."""

import errno
import io
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.archives import (
    make_patternnet,
    picture,
    put,
)
from PIL import Image

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers import store
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.finish import finish
from scaleearth_pl.prepare.importers.picture import picture_of
from scaleearth_pl.prepare.importers.record import Found, ImageRef, Imported
from scaleearth_pl.prepare.importers.store import FileTree, read_image
from scaleearth_pl.prepare.inject import Evidence

CLIMBING = ("../out.png", "/etc/out.png", "a/../../out.png", "C:/out.png", "a\\out.png")


def zip_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tar_of(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_members_that_climb_out_or_repeat_are_refused_and_named(tmp_path: Path, pack: Callable[..., Path]) -> None:
    data = picture(1, 8, 8)
    with pytest.warns(UserWarning, match="Duplicate") if pack is zip_of else nullcontext():
        path = pack(
            tmp_path / f"a.{pack.__name__[:3]}", [(n, data) for n in (*CLIMBING, "good.png", "good.png", "b/c.png")]
        )
    tree = FileTree(path)
    assert list(tree.names()) == ["b/c.png", "good.png"]
    reasons = dict(tree.refused)
    assert set(reasons) == {*CLIMBING, "good.png"}
    assert "twice" in reasons["good.png"]
    assert read_image(tree.find("b/c.png")) == data  # type: ignore[arg-type]
    assert [r.kind for r in tree.rejected("s")] == ["unsafe_path"] * len(tree.refused)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("again", ["a.png", "./a.png"])
def test_of_a_name_that_occurs_twice_the_accepted_member_is_read(
    tmp_path: Path, pack: Callable[..., Path], again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_MEMBER_BYTES", 1000)
    members = [("./a.png", b"first"), (again, bytes(100_000)), ("./b.png", b"b")]
    with pytest.warns(UserWarning, match="Duplicate") if (pack, again) == (zip_of, "./a.png") else nullcontext():
        tree = FileTree(pack(tmp_path / f"a.{pack.__name__[:3]}", members))
    assert list(tree.names()) == ["a.png", "b.png"]
    assert tree.refused == [(again, "name occurs twice")]
    assert [read_image(tree.find(name)) for name in ("a.png", "./b.png")] == [b"first", b"b"]  # type: ignore[arg-type]


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    tree = FileTree(tmp_path / "a.tar")
    assert not list(tree.names())
    assert dict(tree.refused) == dict.fromkeys(("soft.png", "hard.png", "pipe.png"), "not a plain file")


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_members_beyond_the_cap_are_refused_by_their_header(
    tmp_path: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_MEMBER_BYTES", 1000)
    tree = FileTree(pack(tmp_path / f"b.{pack.__name__[:3]}", [("bomb.png", bytes(100_000)), ("ok.png", b"x" * 900)]))
    assert list(tree.names()) == ["ok.png"]
    assert tree.refused == [("bomb.png", "member of 100000 bytes")]


def test_a_zip_that_lies_about_its_sizes_is_a_sample_error(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", [("bomb.png", bytes(100_000))])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    tree = FileTree(path)
    with pytest.raises(SampleError, match="cannot be read"):
        read_image(tree.find("bomb.png"))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_broken_stream_costs_its_member_and_is_counted(tmp_path: Path, method: int) -> None:
    folder = make_patternnet(tmp_path) / "PatternNet"
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(folder.parent))
    first = archive.infolist()[0]
    data, start = bytearray(path.read_bytes()), first.header_offset + 30 + len(first.filename)
    start += 9 if method == zipfile.ZIP_LZMA else 0  # past the properties, which zipfile itself reads
    data[start : start + 31] = b"\xff" * 31
    path.write_bytes(data)
    shutil.rmtree(folder)
    with pytest.raises(SampleError, match="cannot be read"):
        read_image(ImageRef(path=path, member=first.filename))
    sources = {"patternnet": {"root": "patternnet"}}
    tally = import_archives(ArchivesConfig(root=tmp_path, sources=sources, max_bad_share=0.5), tmp_path / "out")
    assert (tally.images.total(), dict(tally.rejected)) == (5, {("patternnet", "bad_image"): 1})


def test_archives_that_cannot_be_read_in_place_name_the_remedy(tmp_path: Path) -> None:
    tar_of(tmp_path / "packed.tar", [("a.png", picture(1, 8, 8))], "w:gz")
    (tmp_path / "cut.zip").write_bytes(zip_of(tmp_path / "whole.zip", [("a.png", bytes(500))]).read_bytes()[:60])
    for name in ("packed.tar", "cut.zip"):
        with pytest.raises(ConfigError, match="unpacked first"):
            FileTree(tmp_path / name)


def test_a_cut_tar_costs_the_member_that_is_cut(tmp_path: Path) -> None:
    data = [(f"{k}.png", np.random.default_rng(k).bytes(3000)) for k in range(3)]
    path = tar_of(tmp_path / "a.tar", data)
    whole = FileTree(path)
    path.write_bytes(path.read_bytes()[:8000])
    assert read_image(whole.find("1.png")) == data[1][1]  # type: ignore[arg-type]
    with pytest.raises(SampleError, match="ends inside"):
        read_image(whole.find("2.png"))  # type: ignore[arg-type]


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds one byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BROKEN = {
    "bomb.png": png_header(60_000, 60_000),
    "cut.png": picture(3, 64, 64)[:-200],
    "cut.jpg": picture(3, 256, 256, "JPEG")[:2000],
    "cut.tif": picture(3, 64, 64, "TIFF")[:3000],
    "text.png": b"this is no image",
    "empty.png": b"",
    "vrt.tif": b'<VRTDataset rasterXSize="9" rasterYSize="9"><SRS>/etc/passwd</SRS></VRTDataset>',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_and_bombs_are_sample_errors(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, BROKEN[name])
    with pytest.raises(SampleError):
        picture_of(ImageRef(path=path))
    with pytest.raises(SampleError, match=r"a\.zip!"):
        picture_of(ImageRef(path=zip_of(tmp_path / "a.zip", [(name, BROKEN[name])]), member=name))


def found_of(path: Path, **evidence: Any) -> Found:
    question = Question(id="q", type="t", family="other", question="What?", answer="that")
    return Found(
        source="s", split="train", image_id="i", image=ImageRef(path=path), qas=(question,),
        evidence=Evidence(image_id="i", name=path.name, **evidence),
    )  # fmt: skip


def test_ten_thousand_pixels_square_is_averaged_down_and_the_gsd_follows(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(path, compress_level=1)
    entry, resolution = finish(found_of(path, dataset="LoveDA"), max_pixels=1000 * 1000)
    assert isinstance(entry, Imported) and resolution is not None
    assert (entry.sample.width, entry.sample.height) == (1000, 1000)
    assert entry.sample.gsd_m_native == pytest.approx(0.3 * 10)
    assert any("averaging" in note for note in entry.notes)


def test_bytes_go_in_as_they_are_where_they_can(tmp_path: Path) -> None:
    for kind, ext in (("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp")):
        data = picture(5, 40, 30, kind)
        found = picture_of(ImageRef(path=put(tmp_path / f"a.{ext}", data)))
        assert (found.data, found.ext, found.size, found.notes) == (data, ext, (40, 30), ())
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(deep)
    assert any("stretched" in note for note in picture_of(ImageRef(path=deep)).notes)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing without a word; the fake stands for missing rights, which root does not lack."""
    for name in ("a/1.png", "closed/2.png"):
        put(tmp_path / name, picture(1, 8, 8))
    scandir = os.scandir

    def refuses(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(ConfigError, match=rf"cannot be read: Permission denied \(file {tmp_path / 'closed'}\)"):
        list(FileTree(tmp_path).names())
