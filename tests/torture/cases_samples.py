"""D3, D5, D6, D7, D10: what can be wrong with a sample is named, counted, and fatal past a share."""

import json
import subprocess
import sys

import numpy as np
from corpora import flip_in_image, forge_json, fresh_folder, one_bad, prepared_run, sample_bytes, write_tar
from harness import HERE, Bench, case

TYPED = 2


@case("D3", "JPEG truncated; bytes changed mid-file")
def d3(bench: Bench) -> str:
    """Caught by the decoder and by the checksum; the run goes on with counted holes and says which."""
    from fakes.corpus import make_fake_corpus

    run, root = prepared_run(bench, "d3", lambda r: make_fake_corpus(r, n_images=12, ext="jpg"))
    flip_in_image(root, row=3)
    (process,) = run.start(extra=("--data.max_bad_share", "0.2"))
    assert process.wait() == 0, run.tail()
    assert "quarantined" in process.text and "image member is cut or altered" in process.text, run.tail()
    cut = fresh_folder(bench, "d3-cut")
    sample, image = sample_bytes(0, ext="jpg")
    write_tar(cut / "a.tar", [("0.json", sample), ("0.jpg", image[: len(image) // 2])])
    reason = one_bad(cut)
    assert "decode" in reason or "truncated" in reason, reason
    return "quarantined by checksum, and by the decoder where the index was made of a cut file"


@case("D5", "GSD missing, NaN, not positive, or outside its tier")
def d5(bench: Bench) -> str:
    """Refused when a sample is read, in the index and in a batch; a training run never sees it."""
    from scaleearth_pl.core.errors import GsdError, SampleError
    from scaleearth_pl.core.sample import Sample

    good, _ = sample_bytes(0)
    for forged in ("null", "NaN", "0.0", "-0.3", "Infinity", '"0.3"', "true"):
        text = good.replace(b'"gsd_m_native":0.3', b'"gsd_m_native":' + forged.encode())
        assert text != good
        try:
            Sample.from_json(text)
        except (SampleError, GsdError):
            continue
        raise AssertionError(f"gsd_m_native = {forged} was accepted")
    run, root = prepared_run(bench, "d5")
    forge_json(root, row=0, old=b'"gsd_m_native":0.3', new=b'"gsd_m_native":-.3')
    (process,) = run.start()
    assert process.wait() == TYPED and "QuarantineLimitError" in process.text, run.tail()
    (process,) = run.start(extra=("--data.max_bad_share", "0.2"))
    assert process.wait() == 0, run.tail()
    read = {tree[0] for row in run.rows("stream-0") for micro in row["read"] for tree in micro["trees"]}
    assert len(read) == 11, read
    return "seven forgeries refused; in a run the image is not planned, and too many stop it"


@case("D6", "images of 100 MP, 200 MP, 1 x N")
def d6(bench: Bench) -> str:
    """Refused from the header, with the remedy (tile when preparing); memory stays bounded; 49 MP still decode."""
    program = HERE / "big_images.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert all("tile" in found[name]["error"] for name in ("100 MP", "200 MP", "1 x N")), found
    refused = max(found[name]["grown_mb"] for name in ("100 MP", "200 MP", "1 x N"))
    assert refused < 20, found
    assert found["49 MP"]["error"] == "" and found["49 MP"]["grown_mb"] < 450, found
    return f"refused with {refused:.0f} MB more at most; 49 MP take {found['49 MP']['grown_mb']:.0f} MB"


@case("D7", "over 1 % bad samples, or 100 in a row")
def d7(bench: Bench) -> str:
    """A typed stop of a real run, in the worker too; and the row of failures alone."""
    from scaleearth_pl.core.errors import QuarantineLimitError, SampleError
    from scaleearth_pl.data.quarantine import Quarantine

    for workers in (0, 1):
        run, root = prepared_run(bench, f"d7-{workers}")
        run.workers = workers
        flip_in_image(root, row=0)
        (process,) = run.start()
        assert process.wait() == TYPED and "QuarantineLimitError" in process.text, run.tail()
    books = Quarantine(n_rows=10**5, n_images=10**5, max_bad_share=1.0)
    for row in range(99):
        books.bad(row, "x", SampleError("bad"))
    try:
        books.bad(99, "x", SampleError("bad"))
    except QuarantineLimitError:
        return "status 2 with and without workers; the hundredth failure in a row is fatal"
    raise AssertionError("100 failures in a row were tolerated")


@case("D10", "answer out of the token window; nothing supervised")
def d10(bench: Bench) -> str:
    """Training drops long questions whole and counts them, and no evaluation does; a step without any is finite; nothing
    left at all is an error."""
    from fakes.runs import make_data

    short = make_data(bench.corpus, max_branch_tokens=30, val_splits=())
    report = short.plan_report()
    assert report["dropped_questions"] > 0, report
    steps = [short.step_batch(step) for step in range(short.steps_per_epoch)]
    assert all(int(m.supervised_T.sum()) > 0 for s in steps for m in s.micro if not m.is_filler)
    cut = ("--data.max_branch_tokens", "30")
    (process,) = bench.run("d10-val", extra=cut).start()
    assert process.wait() == TYPED, process.text[-800:]
    assert "questions of an evaluation would be left out" in process.text, process.text[-800:]
    run = bench.run("d10", extra=(*cut, "--data.val_splits", "[]"))
    run.finish()
    assert all(np.isfinite(float.fromhex(loss)) for loss in run.losses().values())
    none = ("--data.max_branch_tokens", "1", "--data.val_splits", "[]")
    (process,) = bench.run("d10-none", extra=none).start()
    assert process.wait() == TYPED and "ConfigError" in process.text, process.text[-800:]
    idle = make_data(bench.corpus, rank=7, world_size=8, global_batch_tokens=200, micro_token_budget=280)
    empty = [s for s in map(idle.step_batch, range(idle.steps_per_epoch)) if s.n_supervised == 0]
    assert empty, "the case needs a rank without work"
    dropped = report["dropped_questions"]
    return f"{dropped} dropped and counted, none in an evaluation; losses finite; {len(empty)} idle steps planned"
