import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fakes.corpus import fake_sample, make_fake_corpus, random_image

from scaleearth_pl.core.errors import QuarantineLimitError, ShardError
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.index import index_foreign, main

IMAGE = random_image(np.random.default_rng(0), 64, 64)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pair(number: int, **kwargs) -> list[tuple[str, bytes]]:
    sample = fake_sample(number, **kwargs)
    return [(f"{number:04d}.json", sample.to_json().encode()), (f"{number:04d}.png", IMAGE)]


def test_foreign_shards_of_mixed_tiers_get_an_index(tmp_path):
    members = [m for n, gsd_m in enumerate([0.3, 3.0, 0.4, None]) for m in pair(n, gsd_m=gsd_m)]
    write_tar(tmp_path / "deep" / "any.tar", members)
    scan = index_foreign(tmp_path)
    index = ShardIndex.load(tmp_path)
    reader = ShardReader(index)
    assert scan.n_samples == len(index) == 4
    assert {(s.split, str(s.tier)) for s in index.shards} == {("train", "high"), ("train", "mid"), ("train", "unknown")}
    assert {reader.read(row)[0].image_id for row in range(4)} == {f"train-{n:05d}" for n in range(4)}
    assert all(reader.read(row)[1] == IMAGE for row in range(4))


def test_entries_of_folders_are_no_samples(tmp_path):
    """`tar cf a.tar data` as people pack: with them, one of two items would be rejected."""
    for name, data in pair(0):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
    scan = index_foreign(tmp_path / "shards", max_bad_share=0)
    assert (scan.n_samples, scan.rejected) == (1, [])


def test_the_index_of_our_own_shards_is_reproduced(tmp_path):
    root = make_fake_corpus(tmp_path / "fake", 12)
    ours = json.loads((root / "index.json").read_text())
    index_foreign(root)
    again = json.loads((root / "index.json").read_text())
    assert again["shards"] == ours["shards"]


def test_every_cut_is_detected(tmp_path):
    members = [m for n in range(3) for m in pair(n)]
    write_tar(tmp_path / "a.tar", members)
    whole = (tmp_path / "a.tar").read_bytes()
    end_of_data = max(i for i in range(0, len(whole), 512) if whole[i : i + 512].strip(b"\0")) + 512
    for cut in range(512, end_of_data + 1, 512):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(ShardError):
            index_foreign(tmp_path, max_bad_share=1.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([("9.png", IMAGE)], "one .json and one image"),
        ([("9.json", fake_sample(9).to_json().encode())], "one .json and one image"),
        ([("9.json", b""), ("9.png", IMAGE)], "0 bytes"),
        (pair(0), "duplicate"),
        ([("9.json", fake_sample(0).to_json().encode()), ("9.png", IMAGE)], "duplicate image_id"),
        ([("9.pyd", b"x"), *pair(9)], "not allowed"),
        ([("../../9.json", b"{}"), ("../../9.png", IMAGE)], "outside"),
        ([("9.json", fake_sample(9).to_json().replace("0.3", "-0.3", 1).encode()), ("9.png", IMAGE)], "positive"),
        ([("9.json", fake_sample(9).to_json().replace("0.3", '"0.3m"', 1).encode()), ("9.png", IMAGE)], "number"),
        ([("9.json", fake_sample(9).to_json().replace("0.3", "NaN", 1).encode()), ("9.png", IMAGE)], "positive"),
        ([("9.json", fake_sample(9).to_json().replace("0.3", "300", 1).encode()), ("9.png", IMAGE)], "tier"),
        ([("9.json", fake_sample(9).to_json().encode()), ("9.png", IMAGE[:20])], "PNG"),
        ([("9.json", fake_sample(9, size=(32, 32)).to_json().encode()), ("9.png", IMAGE)], "size"),
    ],
)
def test_bad_members_are_rejected_with_their_reason(tmp_path, bad, reason):
    write_tar(tmp_path / "a.tar", [m for n in range(4) for m in pair(n)] + bad)
    scan = index_foreign(tmp_path, max_bad_share=0.5)
    assert any(reason in rejected.reason for rejected in scan.rejected)
    assert scan.n_samples == 4 + (bad[0][0] == "9.pyd")
    with pytest.raises(QuarantineLimitError, match="rejected"):
        index_foreign(tmp_path, max_bad_share=0.0)


def test_memory_holds_one_member_not_the_shard(tmp_path):
    n, image = 8, random_image(np.random.default_rng(0), 512, 512)
    texts = [fake_sample(k, size=(512, 512)).to_json().encode() for k in range(n)]
    write_tar(
        tmp_path / "a.tar", [m for k, text in enumerate(texts) for m in ((f"{k}.json", text), (f"{k}.png", image))]
    )
    index_foreign(tmp_path)  # imports and caches are not the shard's
    tracemalloc.start()
    assert index_foreign(tmp_path).n_samples == n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(image)


def test_sparse_members_are_refused(tmp_path):
    """What lies at the offset of a sparse member is not its content, and readers go by offsets."""
    write_tar(tmp_path / "a.tar", [("8.png", IMAGE), *pair(9)])
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = bytearray(tar.getmember("8.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, len(IMAGE))
    header[483:495] = b"%011o\0" % len(IMAGE)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(header) + data[512:])
    scan = index_foreign(tmp_path, max_bad_share=0.5)
    assert (scan.n_samples, [r.reason for r in scan.rejected]) == (1, ["not a plain file"])


def test_links_and_compressed_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(QuarantineLimitError, match="plain file"):
        index_foreign(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(ShardError, match="uncompressed"):
        index_foreign(tmp_path)


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no .tar" in capsys.readouterr().err
    write_tar(tmp_path / "a.tar", pair(0))
    assert main([str(tmp_path)]) == 0
    assert "1 samples" in capsys.readouterr().out
