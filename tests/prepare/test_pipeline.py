"""Corpora by tasks: the same bytes with any number of workers, resumed after a kill, duplicates and failures counted."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.archives import edit_json, make_patternnet
from fakes.corpus import fake_sample
from scale.archive import make_archive

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Question
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare import corpus, parts, pipeline
from scaleearth_pl.prepare.engine import TasksPendingError
from scaleearth_pl.prepare.importers.tally import DROPPED
from scaleearth_pl.prepare.join import add_counts

N_IMAGES, PER_IMAGE = 24, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("pipeline") / "archive", N_IMAGES, PER_IMAGE)


def config(archive: Path, **more: Any) -> dict[str, Any]:
    sources = {"rsvqa_hr": {}, "rsvqa_lr": {}}
    return {"root": str(archive), "corpus": "c", "sources": sources, "samples_per_shard": 5, "tasks": 3, **more}


def content(root: Path) -> dict[str, bytes]:
    """Every file of a corpus by its path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def samples(root: Path) -> dict[str, Any]:
    index = ShardIndex.load(root)
    index.verify()
    reader = ShardReader(index)
    return {index.text["image_id"][row]: reader.read(row) for row in range(len(index))}


@pytest.fixture(scope="module")
def built(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.build(config(archive), tmp_path_factory.mktemp("built") / "corpus")


def test_parts_make_one_verified_corpus(built: Path, archive: Path, tmp_path: Path) -> None:
    found = samples(built)
    assert len(found) == N_IMAGES and sum(len(s.qas) for s, _ in found.values()) == N_IMAGES * PER_IMAGE
    assert {s.source for s, _ in found.values()} == {"rsvqa_hr", "rsvqa_lr"}
    assert not list(built.parent.glob("*.parts"))
    whole = samples(pipeline.build(config(archive, tasks=1), tmp_path / "whole"))
    assert whole == found
    counts = json.loads((built / "import.json").read_text())
    assert counts["sources"]["rsvqa_hr"]["images"] == {"train": N_IMAGES - 1}


def test_what_was_done_to_single_images_is_noted(built: Path, archive: Path, tmp_path: Path) -> None:
    assert (built / "notes.jsonl").read_text() == ""
    smaller = pipeline.build(config(archive, max_pixels=4096), tmp_path / "smaller")
    rows = [json.loads(line) for line in (smaller / "notes.jsonl").read_text().splitlines()]
    assert {row["image_id"] for row in rows} == set(samples(smaller)) and len(rows) == N_IMAGES
    assert all("stored as 8-bit PNG" in row["notes"] for row in rows)


@pytest.mark.slow
def test_workers_change_no_byte(built: Path, archive: Path, tmp_path: Path) -> None:
    two = pipeline.build(config(archive, workers=2), tmp_path / "two")
    assert content(two) == content(built)


def test_finished_tasks_are_not_repeated_after_a_kill(
    built: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    import_part = parts.import_part

    def dies_in_the_second(*args: Any, rank: int, tasks: int) -> Path:
        ran.append(rank)
        out = import_part(*args, rank=rank, tasks=tasks)
        if ran == [0, 1]:
            (out / "index.json").write_text("torn")
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(parts, "import_part", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        pipeline.build(config(archive), tmp_path / "c.partial")
    assert pipeline.build(config(archive), tmp_path / "c.partial") == tmp_path / "c.partial"
    assert ran == [0, 1, 1, 2]
    assert content(tmp_path / "c.partial") == content(built)
    pipeline.build(config(archive, tasks=2), tmp_path / "d")
    assert ran[4:] == [0, 1]


def test_a_source_that_came_after_a_kill_is_imported_whole(
    built: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Path(shutil.copytree(archive, tmp_path / "archive"))
    optional = config(raw, sources={"rsvqa_hr": {"optional": True}, "rsvqa_lr": {}})
    import_part = parts.import_part

    def dies_in_the_second(*args: Any, rank: int, tasks: int) -> Path:
        if rank == 1 and not (raw / "rsvqa_hr").exists():
            raise KeyboardInterrupt
        return import_part(*args, rank=rank, tasks=tasks)

    (raw / "rsvqa_hr").rename(raw / "later")
    monkeypatch.setattr(parts, "import_part", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        pipeline.build(optional, tmp_path / "c")
    (raw / "later").rename(raw / "rsvqa_hr")
    assert content(pipeline.build(optional, tmp_path / "c")) == content(built)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_leaves_no_process(archive: Path, tmp_path: Path, workers: int) -> None:
    """kill -9 of the build alone: manager and workers go with it, or they would write on."""
    code = (
        "import json, sys; from pathlib import Path; from scaleearth_pl.prepare import parts, pipeline; "
        "pipeline.build(json.loads(sys.argv[1]), Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", code, json.dumps(config(archive, workers=workers)), str(tmp_path / "c")]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(tmp_path.glob("c.parts/*/0*/train")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    while (left := members(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def members(group: int) -> list[psutil.Process]:
    """Living processes of a process group."""
    return [p for p in psutil.process_iter(["status"]) if p.info["status"] != "zombie" and group_of(p.pid) == group]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_yaml_describes_it(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corpus.BUILDERS, "pipeline", corpus.Builder("scaleearth_pl.prepare.pipeline"))
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"kind": "pipeline", "out": str(tmp_path / "c"), **config(archive, workers=1)}))
    assert corpus.main([str(file)]) == 0
    assert len(ShardIndex.load(tmp_path / "c")) == N_IMAGES


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tasks": 0}, "tasks"),
        ({"workers": 0}, "workers"),
        ({"executor": "ray"}, "executor"),
        ({"executor": "slurm"}, "slurm"),
        ({"executor": "slurm", "slurm": {"partition": "cpu", "hours": 1}}, "slurm.hours"),
        ({"executor": "slurm", "slurm": {"partition": "cpu"}}, "time"),
        ({"rules": ["spelling"]}, "spelling"),
        ({"drop": "nowhere.txt"}, "nowhere.txt"),
        ({"worker": 2}, "worker"),
        ({"max_bad_share": 1.5}, "max_bad_share"),
        ({"max_bad_share": "few"}, "max_bad_share"),
    ],
)
def test_wrong_settings_name_the_key(archive: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        pipeline.read_config(config(archive, **change))


def test_images_on_the_drop_list_stay_out_and_are_counted(archive: Path, tmp_path: Path) -> None:
    drop = tmp_path / "drop.txt"
    drop.write_text("rsvqa_hr-3\nrsvqa_lr-0\n")
    sources = {"rsvqa_hr": {}, "rsvqa_lr": {}}
    found = pipeline.build(config(archive, drop=str(drop), sources=sources), tmp_path / "c")
    assert set(samples(found)) == {f"rsvqa_hr-{k}" for k in range(N_IMAGES - 1) if k != 3}
    kinds = Counter(json.loads(line)["kind"] for line in (found / "quarantine.jsonl").read_text().splitlines())
    assert kinds == {DROPPED: 2}


def described(folder: Path, archive: Path, **more: Any) -> Path:
    """A YAML of these settings, whose corpus is `folder/c`."""
    file = folder / "c.yaml"
    file.write_text(json.dumps({"kind": "pipeline", "out": str(folder / "c"), **config(archive, **more)}))
    return file


@pytest.mark.parametrize("kind", ["pipeline", "archives"])
def test_a_corpus_of_an_older_drop_list_or_of_other_sources_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    raw, drop = Path(shutil.copytree(archive, tmp_path / "archive")), tmp_path / "drop.txt"
    table = raw / "gsd.csv"
    table.write_text("class,gsd_m\nairplane,0.5\n")
    make_patternnet(raw)
    drop.write_text("rsvqa_hr-3\n")
    patternnet = {"root": "patternnet", "optional": True, "gsd_table": "gsd.csv"}
    settings = {"drop": str(drop), "sources": {"rsvqa_hr": {}, "patternnet": patternnet}, "tasks": 1}
    file = described(tmp_path, raw, **settings)
    changes = ["--set", f"kind={kind}"]
    if kind == "archives":
        mapping = {key: value for key, value in json.loads(file.read_text()).items() if key != "tasks"}
        file.write_text(json.dumps(mapping))
    assert corpus.main([str(file), *changes]) == 3, "one image is left out"
    assert "rsvqa_hr-3" not in samples(tmp_path / "c")
    assert corpus.main([str(file), *changes]) == 3
    assert "nothing to do" in " ".join(capsys.readouterr().err.split())
    drop.write_text("rsvqa_hr-3\nrsvqa_hr-5\n")
    table.write_text("class,gsd_m\nairplane,0.6\n")
    changed = "changed since: drop changed, sources.patternnet.gsd_table changed "
    with pytest.raises(ConfigError, match=rf"{changed}.*rebuild with: rm -r {tmp_path / 'c'} && scaleearth prepare"):
        corpus.prepare(file, changes[1:])
    (raw / "patternnet").rename(raw / "elsewhere")
    with pytest.raises(ConfigError, match=r"drop changed, sources\.patternnet is gone"):
        corpus.prepare(file, changes[1:])
    shutil.rmtree(tmp_path / "c")
    assert corpus.main([str(file), *changes]) == 3
    assert not {"rsvqa_hr-3", "rsvqa_hr-5"} & set(samples(tmp_path / "c"))
    record = tmp_path / "c" / "corpus.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "inputs"}))
    with pytest.raises(ConfigError, match="were not recorded"):
        corpus.prepare(file, changes[1:])


def test_parts_of_a_broken_archive_are_made_again_once_it_is_mended(
    archive: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Path(shutil.copytree(archive, tmp_path / "archive"))
    image = raw / "rsvqa_hr" / "Data" / "7.tif"
    sound, ran, import_part = image.read_bytes(), list[int](), parts.import_part

    def noted(*args: Any, rank: int, tasks: int) -> Path:
        ran.append(rank)
        return import_part(*args, rank=rank, tasks=tasks)

    monkeypatch.setattr(parts, "import_part", noted)
    image.write_bytes(b"no picture")
    with pytest.raises(QuarantineLimitError, match=rf"mend the archive.*run the same command.*{tmp_path / 'c.parts'}"):
        pipeline.build(config(raw), tmp_path / "c")
    image.write_bytes(sound)
    assert content(pipeline.build(config(raw), tmp_path / "c")) == content(built)
    assert ran == [0, 1, 2, parts.task_of("rsvqa_hr-7", 3)]


@pytest.mark.parametrize(
    ("images", "rejected", "spoilt"),
    [
        ({"train": 3}, {}, False),
        ({"train": 3}, {DROPPED: 1}, False),
        ({"train": 3}, {DROPPED: 1, "bad_image": 1}, True),
        ({}, {}, True),
        ({}, {DROPPED: 1}, True),
    ],
)
def test_parts_that_mended_archives_would_change(
    tmp_path: Path, images: dict[str, int], rejected: dict[str, int], spoilt: bool
) -> None:
    (tmp_path / "import.json").write_text(json.dumps({"sources": {"s": {"images": images, "rejected": rejected}}}))
    assert parts.is_spoilt(tmp_path) is spoilt


def test_the_share_that_may_fail_is_no_setting_of_the_parts(archive: Path, tmp_path: Path) -> None:
    given = [config(archive, max_bad_share=share) for share in (0.01, 0.2)]
    part = pipeline.read_config(given[0])[2]
    assert len({pipeline.work_folder(one, tmp_path / "c", part, {}) for one in given}) == 1
    assert len({pipeline.work_folder(given[0], tmp_path / "c", part, {"drop": digest}) for digest in "ab"}) == 2


def test_failures_are_judged_over_all_parts(archive: Path, tmp_path: Path) -> None:
    broken = tmp_path / "archive"
    make_archive(broken, N_IMAGES, PER_IMAGE)
    (broken / "rsvqa_hr" / "Data" / "7.tif").write_bytes(b"no picture")
    with pytest.raises(QuarantineLimitError, match=r"1 of 23 items of rsvqa_hr .*bad_image"):
        pipeline.build(config(broken), tmp_path / "strict")
    found = pipeline.build(config(broken, max_bad_share=0.05), tmp_path / "c")
    assert len(ShardIndex.load(found)) == N_IMAGES - 1
    (row,) = map(json.loads, (found / "quarantine.jsonl").read_text().splitlines())
    assert (row["item"], row["kind"]) == ("rsvqa_hr-7", "bad_image")


def test_a_rejection_counts_for_all_that_it_stands_for(archive: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(archive, tmp_path / "archive"))
    table = raw / "rsvqa_hr" / "USGS_split_train_answers.json"
    edit_json(table, lambda rows: rows["answers"].extend(rows["answers"][:3]))
    found = pipeline.build(config(raw, max_bad_share=0.2), tmp_path / "c")
    assert json.loads((found / "import.json").read_text())["sources"]["rsvqa_hr"]["rejected"] == {"duplicate_id": 3}
    with pytest.raises(QuarantineLimitError, match="3 of 26 items"):
        pipeline.build(config(raw, max_bad_share=0.1), tmp_path / "strict")


def test_equal_ids_meet_in_one_task() -> None:
    ids = [f"source-{k}" for k in range(4000)]
    sizes = Counter(parts.task_of(i, 8) for i in ids)
    assert set(sizes) == set(range(8)) and max(sizes.values()) < 1.2 * 500
    assert all(parts.task_of(i, 8) == parts.task_of(i, 8) for i in ids[:10])
    assert {parts.task_of(i, 1) for i in ids[:10]} == {0}


def test_rules_drop_questions_and_count_them() -> None:
    def question(number: int, text: str, answer: str = "yes") -> Question:
        return Question(id=f"q{number}", type="presence", family="identification", question=text, answer=answer)

    good = question(0, "Is there a wide road in the north?")
    bad = question(1, "What is the GSD of this image?", "ten")
    sample, boundaries, broken = replace(fake_sample(0), qas=(good, bad)), TierBoundaries(), Counter[str]()
    left = parts.filtered(sample, ("leaked_gsd",), boundaries, broken)
    assert left is not None and left.qas == (good,) and broken == {"leaked_gsd": 1}
    assert parts.filtered(replace(sample, qas=(bad,)), ("leaked_gsd",), boundaries, broken) is None
    assert parts.filtered(sample, (), boundaries, broken) is sample


def test_counts_add_up_in_any_order() -> None:
    a = {"sources": {"s": {"images": {"train": 2}, "rejected": {}}}, "skipped": ["x"], "rules": {"length": 1}}
    b = {"sources": {"s": {"images": {"train": 3, "val": 1}}, "t": {"images": {"val": 9}}}, "skipped": ["x", "a"]}
    assert add_counts(a, b) == add_counts(b, a)
    assert add_counts(a, b)["sources"]["s"] == {"images": {"train": 5, "val": 1}, "rejected": {}}
    assert add_counts({}, a) == a


FAKE_SLURM = {
    "sbatch": '#!/bin/bash\nlast="${@: -1}"\ngrep -q merge_stats "$last" || for k in 0; do '
    'SLURM_JOB_ID=7 SLURM_NODELIST=n SLURM_ARRAY_TASK_ID=$k bash "$last" >&2 || exit; done\necho Submitted batch job 7\n',
    "srun": '#!/bin/bash\nshift 3\nexec "$@"\n',
    "scontrol": "#!/bin/bash\necho localhost\n",
}
"""Programs of these names that run the array on the spot: what is tested is that our task is what Slurm would run."""


@pytest.mark.slow
def test_slurm_gets_the_tasks_and_the_next_call_joins(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = content(pipeline.build(config(archive, tasks=1), tmp_path / "local"))
    for name, text in FAKE_SLURM.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    slurm = config(archive, tasks=1, executor="slurm", slurm={"partition": "cpu", "time": "00:10:00"})
    with pytest.raises(TasksPendingError, match="job 7") as pending:
        pipeline.build(slurm, tmp_path / "c.partial")
    assert pending.value.exit_status == 75
    assert content(pipeline.build(slurm, tmp_path / "c.partial")) == local
