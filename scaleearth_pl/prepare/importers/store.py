"""Folders, zip and tar files read in place, and names that strangers chose.

Nothing is ever extracted: a member is read into memory by its own offset, so a path that climbs out of the archive has
nowhere to climb to. It is refused all the same, as is a link, a device and a name that occurs twice, since such an
archive is not what its publisher made: of such a name the first member is taken, by its own header, however the name is
written (`./a.png` is `a.png`). A member larger than `MAX_MEMBER_BYTES` is refused by its header, and the zip
reader stops at the size that the header states, so a bomb costs a bounded amount of memory.

Price: a gzipped tar has no offsets and is refused with the remedy; the index of a tar of a million members is held in
memory (about 250 bytes each).
"""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NoReturn

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.data.shard_index import MAX_MEMBER_BYTES
from scaleearth_pl.prepare.importers.record import ImageRef, Rejected

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2", ".img", ".ntf")

_Place = tuple[int, int] | zipfile.ZipInfo
_READ_ERRORS = (
    OSError,  # bzip2's too
    KeyError,
    zipfile.BadZipFile,
    RuntimeError,  # an unknown password, and NotImplementedError for an unknown compression
    EOFError,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class _Listing:
    """Members by plain name, without "./": (offset, size) in a tar, the header in a zip; those refused, with reasons."""

    members: dict[str, _Place] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, place: _Place, size: int, problem: str | None) -> None:
        plain = str(PurePosixPath(name))
        problem = problem or unsafe_reason(name) or ("name occurs twice" if plain in self.members else None)
        if problem is None and size > MAX_MEMBER_BYTES:
            problem = f"member of {size} bytes"
        if problem is None:
            self.members[plain] = place
        else:
            self.refused.append((name, problem))


class FileTree:
    """The files below a folder, or in a zip or tar, under relative names with forward slashes.

    Args:
        path: the folder or archive.

    Raises:
        ConfigError: nothing there, a compressed tar, or a broken archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ConfigError("folder or archive does not exist", file=self.path)
        self._listing = None if self.path.is_dir() else _listing(self.path)

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Members that will not be read, with reasons."""
        return self._listing.refused if self._listing else []

    def names(self, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[str]:
        """Names with one of `suffixes`, sorted folder by folder; links to folders and macOS's shadows are left out.

        Raises:
            ConfigError: a folder cannot be listed: its images would be missing without a word.
        """
        if self._listing is not None:
            wanted = (name for name in self._listing.members if name.lower().endswith(suffixes))
            yield from sorted(name for name in wanted if not name.rsplit("/", 1)[-1].startswith("._"))
            return
        for folder, below, files in os.walk(self.path, onerror=_unlisted):
            below.sort()
            for file in sorted(files):
                if file.lower().endswith(suffixes) and not file.startswith("._"):
                    yield (Path(folder) / file).relative_to(self.path).as_posix()

    def find(self, name: str) -> ImageRef | None:
        """The file of that name, or None; an unsafe name is never looked for."""
        if unsafe_reason(name):
            return None
        if self._listing is None:
            path = self.path / name
            return ImageRef(path=path) if path.is_file() else None
        member = str(PurePosixPath(name))
        return ImageRef(path=self.path, member=member) if member in self._listing.members else None

    def image_or_rejected(self, name: object, *, source: str, item: str) -> ImageRef | Rejected:
        """The image of a table's row, or why there is none."""
        if not isinstance(name, str) or not name.strip():
            return Rejected(source=source, item=item, kind="bad_row", reason=f"image name is {name!r}")
        if problem := unsafe_reason(name):
            return Rejected(source=source, item=item, kind="unsafe_path", reason=f"{name!r}: {problem}")
        found = self.find(name)
        if found is None:
            return Rejected(source=source, item=item, kind="missing_image", reason=f"{self.path} has no {name!r}")
        return found

    def rejected(self, source: str) -> Iterator[Rejected]:
        """The refused members as records."""
        for name, reason in self.refused:
            yield Rejected(source=source, item=name, kind="unsafe_path", reason=f"{self.path}: {name!r}: {reason}")


def unsafe_reason(name: str) -> str | None:
    """Why a relative name must not be used, or None."""
    if "\\" in name:
        return "a backslash parts no folders here: write forward slashes"
    if not name or "\0" in name:
        return "not a plain relative path"
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "absolute path"
    return "path climbs out of its folder" if ".." in name.split("/") else None


def _unlisted(error: OSError) -> NoReturn:
    raise ConfigError(
        f"folder cannot be read: {error.strerror}",
        file=error.filename,
        remedy="give this user the right to read it, or move it out of the source",
    ) from error


def first_tree(root: Path, *names: str) -> FileTree | None:
    """The first of `names` below `root` that exists; "" is `root` itself, "a/b" a folder or archive."""
    for name in names:
        path = root / name
        if path.is_dir() or (path.is_file() and path.suffix in (".zip", ".tar")):
            return FileTree(path)
    return None


def read_image(ref: ImageRef) -> bytes:
    """The bytes of a file or member.

    Raises:
        SampleError: gone, larger than `MAX_MEMBER_BYTES`, or damaged in the archive.
    """
    try:
        if ref.member is None:
            size = ref.path.stat().st_size
            if size > MAX_MEMBER_BYTES:
                raise SampleError(f"image file has more than {MAX_MEMBER_BYTES} bytes", file=ref.path, value=size)
            return ref.path.read_bytes()
        place = _listing(ref.path).members[ref.member]
        if isinstance(place, zipfile.ZipInfo):  # by name, the last member of that name would be read
            return _zip(ref.path, os.getpid()).read(place)
        offset, size = place
        with ref.path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise SampleError("archive ends inside this member", file=str(ref))
        return data
    except _READ_ERRORS as error:
        raise SampleError(f"image cannot be read: {error}", file=str(ref)) from error


@lru_cache(maxsize=16)
def _listing(path: Path) -> _Listing:
    listing = _Listing()
    try:
        if zipfile.is_zipfile(path):
            for info in _zip(path, os.getpid()).infolist():
                if not info.is_dir():
                    listing.add(info.filename, info, info.file_size, _zip_problem(info))
            return listing
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if not member.isdir():
                    problem = None if member.isreg() else "not a plain file"
                    listing.add(member.name, (member.offset_data, member.size), member.size, problem)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ConfigError(
            f"archive cannot be read in place: {error}",
            file=path,
            remedy="a compressed tar must be unpacked first; fetch a broken archive again",
        ) from error
    return listing


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if mode and stat.S_ISLNK(mode):
        return "not a plain file"
    return "encrypted" if info.flag_bits & 1 else None


@lru_cache(maxsize=16)
def _zip(path: Path, pid: int) -> zipfile.ZipFile:
    """Kept open, since the directory of a large zip takes seconds to read; by process, since forks share offsets."""
    del pid
    return zipfile.ZipFile(path)
