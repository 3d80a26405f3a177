"""S1: everything hostile is refused or redacted, and no code of a stranger runs."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
from corpora import fresh_folder, members_of, prepared_run, write_tar
from fault import Fault
from harness import Bench, case


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@case("S1", "pickle member, pipe: URL, ../ key, gzip bomb, hostile checkpoint, foreign class_path, secret")
def s1(bench: Bench) -> str:
    """One folder holds the marks that hostile code would leave; in the end it is empty."""
    marks = fresh_folder(bench, "s1-marks")
    checks = (_data, _index, _checkpoint, _class_path, _remote_code, _secret)
    for check in checks if bench.full else (_data, _index, _class_path, _secret):
        check(bench, marks)
        assert not [*marks.iterdir()], f"{check.__name__}: hostile code ran"
    return "all refused or redacted, no code ran"


def _data(bench: Bench, marks: Path) -> None:
    """Members of a foreign tar: pickles, keys that climb, a compressed bomb."""
    from scaleearth_pl.core.errors import ShardError
    from scaleearth_pl.prepare.index import index_foreign

    root = fresh_folder(bench, "s1-data")
    bad = [(f"9.{ext}", pickle.dumps(Payload(marks / ext))) for ext in ("pkl", "pyd", "pickle", "pth")]
    bad += [("../../x/8.json", b"{}"), ("/etc/8.png", b"x")]
    write_tar(root / "a.tar", [m for n in range(20) for m in members_of(n)] + bad)
    scan = index_foreign(root, max_bad_share=0.5)
    assert scan.n_samples == 20 and len(scan.rejected) == len(bad), scan.rejected
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = 300 * 2**20
        tar.addfile(info, _Zeros(info.size))
    (root / "a.tar").write_bytes(bomb.getvalue())
    with pytest.raises(ShardError, match="uncompressed"):
        index_foreign(root)


class _Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self.left = size

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = min(len(buffer), self.left)
        buffer[:n] = bytes(n)
        self.left -= n
        return n

    def read(self, size: int = -1) -> bytes:
        n = min(size, self.left)
        self.left -= n
        return bytes(n)


def _index(bench: Bench, marks: Path) -> None:
    """An index that names a pipe, a path outside, a huge member: a real run refuses to start."""
    for number, (key, value) in enumerate(
        [("file", f"pipe:touch {marks}/pipe; cat x.tar"), ("file", "../corpus/train/high/00000.tar"), ("size", 2**40)]
    ):
        run, root = prepared_run(bench, f"s1-index-{number}")
        document = json.loads((root / "index.json").read_text())
        if key == "file":
            document["shards"][0]["file"] = value
        else:
            document["shards"][0]["samples"]["image_size"][0] = value
        (root / "index.json").write_text(json.dumps(document))
        (process,) = run.start()
        assert process.wait() == 2 and "IndexSchemaError" in process.text, run.tail()


def _checkpoint(bench: Bench, marks: Path) -> None:
    """A checkpoint that would run code when unpickled: without a seal, and with a correct one."""
    import torch

    from scaleearth_pl.training.checkpoint_io import write_sealed

    for sealed in (False, True):
        run = bench.run(f"s1-checkpoint-{sealed}")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.folder.parent / "latest").symlink_to("v0")
        file = run.checkpoints / "step=00000001.ckpt"
        content = {"global_step": 1, "state_dict": Payload(marks / "checkpoint")}
        if sealed:
            write_sealed(file, content, step=1)
        else:
            torch.save(content, file)
        (process,) = run.start()
        assert process.wait() == 2 and "CheckpointError" in process.text, run.tail()


def _class_path(bench: Bench, marks: Path) -> None:
    """A module that leaves a mark when it is imported, named in a file, an override, an interpolation, a sub-file."""
    run = bench.run("s1-class")
    module = run.out / "evil_module.py"
    module.write_text(f"open({str(marks / 'imported')!r}, 'w')\nclass Evil: pass\n")
    files = {"direct.yaml": "model: {class_path: evil_module.Evil}", "sub.yaml": "class_path: evil_module.Evil"}
    files |= {"below.yaml": "trainer: {callbacks: [{class_path: evil_module.Evil}]}", "outer.yaml": "model: ./sub.yaml"}
    for name, text in files.items():
        (run.out / name).write_text(text)
    attacks = [("-c", str(run.out / name)) for name in ("direct.yaml", "below.yaml", "outer.yaml")]
    attacks += [("--model", "evil_module.Evil"), ("--trainer.callbacks+=evil_module.Evil",)]
    attacks += [("--trainer.logger", "evil_module.Evil"), ("--trainer.strategy.class_path", "evil_module.Evil")]
    attacks += [("--experiment", "evil_module.Evil", "--trainer.profiler", "${experiment}")]
    for attack in attacks if bench.full else attacks[:4]:
        (process,) = run.start(extra=attack, PYTHONPATH=str(run.out), TORTURE_PATH=str(run.out))
        assert process.wait() == 2 and "may not import" in process.text, (attack, process.text[-600:])


def _remote_code(bench: Bench, marks: Path) -> None:
    run = bench.run("s1-remote")
    (process,) = run.start(extra=("--model.init_args.backbone.trust_remote_code", "true"))
    assert process.wait() == 2 and "trust_remote_code" in process.text, run.tail()


def _secret(bench: Bench, marks: Path) -> None:
    """A value from the environment is in effect, but in no file of the run."""
    run, secret = bench.run("s1-secret", steps=1), "hunter2-very-secret"
    run.folder = run.out / secret / run.stage / "v0"
    (process,) = run.start(
        Fault(out=str(run.out)), extra=("--runs_dir", f"{run.out}/${{oc.env:SECRET}}"), SECRET=secret
    )
    assert process.wait() == 0, run.tail()
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert (run.folder / "config.yaml").exists(), "the run is elsewhere"
    assert "${oc.env:SECRET}" in (run.folder / "config.yaml").read_text()
    leaks = [path.name for path in files if secret.encode() in path.read_bytes()]
    assert not leaks, f"the secret is in {leaks}"
    shutil.rmtree(run.folder)
