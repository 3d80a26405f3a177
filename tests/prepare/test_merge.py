"""Generated questions back into shards: right GSD, right place, what the audit let pass, equal bytes."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.labelled import make_chain, make_labelled_corpus, write_jsonl
from PIL import Image

from scaleearth_pl.core.errors import QuarantineLimitError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.data.images import decode_rgb
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import filter as filtering
from scaleearth_pl.prepare import merge
from scaleearth_pl.prepare.agreement import ALL_AXES, verdicts_of
from scaleearth_pl.prepare.ledger import read_records
from scaleearth_pl.prepare.views import coarse_image


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"))


def records(path: Path) -> list[dict[str, Any]]:
    return list(read_records(path))


def read_corpus(root: Path) -> dict[str, tuple[Any, bytes, str]]:
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    rows = {index.text["image_id"][row]: (*reader.read(row), index.text["ext"][row]) for row in range(len(index))}
    reader.close()
    return rows


def merge_into(chain: Path, out: Path, *more: str, records: Path | None = None) -> int:
    where = ["--corpus", str(chain / "corpus"), "--records", str(records or chain / "filtered.jsonl")]
    return merge.main([*where, "--out", str(out), *more])


def test_questions_go_back_into_shards_at_their_own_gsd(chain: Path, tmp_path: Path) -> None:
    assert merge_into(chain, tmp_path / "new") == 0
    old, new = read_corpus(chain / "corpus"), read_corpus(tmp_path / "new")
    assert set(new) == set(old) | {f"train-0000{k}@x4" for k in range(6)}
    asked = {(r["image_id"], r["factor"]): set[str]() for r in records(chain / "filtered.jsonl")}
    for r in records(chain / "filtered.jsonl"):
        asked[r["image_id"], r["factor"]] |= {qa["id"] for qa in r["qas"]}
    for image_id, (sample, data, _) in new.items():
        base, _, factor = image_id.partition("@x")
        own = {"own"} if not factor else set()
        assert {q.id for q in sample.qas} == own | asked.get((base, int(factor or 1)), set())
        fine, fine_data, fine_ext = old[base]
        if not factor:
            assert data == fine_data
            continue
        assert sample.gsd_m_native == pytest.approx(4 * fine.gsd_m_native)
        assert sample.place_id == new[base][0].place_id is not None
        assert (sample.width, sample.height) == (32, 32)
        pixels = np.asarray(decode_rgb(fine_data, fine_ext, size=(128, 128), where=""), dtype=np.float64)
        mean = pixels.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(decode_rgb(data, "png", size=(32, 32), where="")) - mean).max() <= 0.51
    assert new["train-00001@x4"][0].tier is Tier.LOW
    assert new["train-00001"][0].tier is Tier.MID


def test_the_audit_decides_what_goes_back(chain: Path, tmp_path: Path) -> None:
    judged = verdicts_of(read_records(chain / "audit.jsonl"))
    passed = {identity for identity, axes in judged.items() if axes[ALL_AXES]}
    assert 0 < len(passed) < len(judged)

    def generated(name: str, *more: str) -> set[str]:
        assert merge_into(chain, tmp_path / name, "--only-generated", *more) == 0
        return {q.id for sample, *_ in read_corpus(tmp_path / name).values() for q in sample.qas}

    assert generated("a", "--audit", str(chain / "audit.jsonl")) == passed
    some = records(chain / "audit.jsonl")[:5]
    write_jsonl(tmp_path / "some.jsonl", some)
    some_judged = verdicts_of(some)
    assert generated("b", "--audit", str(tmp_path / "some.jsonl")) == passed & set(some_judged)
    unjudged = set(judged) - set(some_judged)
    kept = generated("c", "--audit", str(tmp_path / "some.jsonl"), "--keep-unjudged")
    assert kept == (passed & set(some_judged)) | unjudged


STALE: dict[str, dict[str, Any]] = {
    "image_sha256": {"image_sha256": "0" * 64},
    "gsd_m": {"gsd_m": 0.03},
    "gsd_provenance": {"gsd_provenance": "nominal"},
    "width": {"width": 64},
    "class": {"class": "beach"},
    "factor": {"factor": 64},
}


@pytest.mark.parametrize("fact", list(STALE))
def test_questions_asked_of_another_view_are_left_out_and_counted(chain: Path, tmp_path: Path, fact: str) -> None:
    """The old record and the new one of one view lie in one ledger, as after a corrected GSD."""
    fresh = next(r for r in records(chain / "filtered.jsonl") if r["image_id"] == "train-00000" and r["factor"] == 1)
    old = {**fresh, **STALE[fact], "id": "0" * 32, "qas": [{**qa, "id": f"old-{qa['id']}"} for qa in fresh["qas"]]}
    write_jsonl(tmp_path / "both.jsonl", [fresh, old])
    filtering.filter_file(tmp_path / "both.jsonl", tmp_path / "kept.jsonl")
    config = merge.MergeConfig(corpus=chain / "corpus", records=tmp_path / "kept.jsonl", keep_own=False)
    report = merge.merge(config, tmp_path / "new")
    assert report.stale == {fact: len(fresh["qas"])}
    (sample, *_) = read_corpus(tmp_path / "new")["train-00000"]
    assert {q.id for q in sample.qas} == {qa["id"] for qa in fresh["qas"]}
    assert report.generated == len(fresh["qas"])


def test_stale_records_and_missing_ones_are_said_by_the_command(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = records(chain / "filtered.jsonl")
    write_jsonl(tmp_path / "old.jsonl", [{**rows[0], "gsd_m": 0.03}, *rows[1:]])
    assert merge_into(chain, tmp_path / "new", records=tmp_path / "old.jsonl") == 3
    assert "asked under another gsd_m" in capsys.readouterr().out
    assert merge_into(chain, tmp_path / "none", records=tmp_path / "missing.jsonl") == 2
    assert "LedgerError" in capsys.readouterr().err


def test_equal_results_in_any_order_give_equal_bytes(chain: Path, tmp_path: Path) -> None:
    rows = records(chain / "generated.jsonl")
    random.Random(1).shuffle(rows)
    write_jsonl(tmp_path / "shuffled.jsonl", rows)
    filtering.filter_file(tmp_path / "shuffled.jsonl", tmp_path / "filtered.jsonl")
    assert merge_into(chain, tmp_path / "one" / "new") == 0
    assert merge_into(chain, tmp_path / "two" / "new", records=tmp_path / "filtered.jsonl") == 0
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) > 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_unreadable_images_are_left_out_and_fatal_past_a_share(chain: Path, tmp_path: Path) -> None:
    corpus = make_labelled_corpus(tmp_path / "corpus", 6, gsds_m=(0.3, 3.0), size=(128, 128), n_val=2)
    index = ShardIndex.load(corpus)
    row = index.text["image_id"].index("train-00000")
    with open(corpus / index.shards[int(index.shard_of_row[row])].file, "r+b") as stream:
        stream.seek(int(index.number["image_offset"][row]) + 50)
        stream.write(b"\0\1\2\3")
    config = merge.MergeConfig(corpus=corpus, records=chain / "filtered.jsonl", max_bad_share=0.5)
    report = merge.merge(config, tmp_path / "new")
    assert len(report.unreadable) == 1
    assert "train-00000" not in read_corpus(tmp_path / "new")
    assert merge_into(chain, tmp_path / "strict") == 0
    strict = merge.MergeConfig(corpus=corpus, records=chain / "filtered.jsonl")
    with pytest.raises(QuarantineLimitError, match="1 of 8"):
        merge.merge(strict, tmp_path / "never")
    assert not (tmp_path / "never" / "index.json").exists()


def test_area_average_of_a_checkerboard_is_grey_and_odd_edges_are_cropped() -> None:
    board = (np.indices((67, 130)).sum(axis=0) % 2 * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(board).save(stream, format="PNG")
    image = coarse_image(stream.getvalue(), "png", size=(130, 67), factor=2, where="")
    pixels = np.asarray(decode_rgb(image.data, image.ext, size=(65, 33), where=""))
    assert set(np.unique(pixels)) <= {127, 128}
