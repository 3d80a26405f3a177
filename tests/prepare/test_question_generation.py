"""Generation against a real server: what is asked, resumed after kill -9, quarantined, and when it stops."""

import json
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.chat_server import ChatServer
from fakes.corpus import fake_sample, random_image
from fakes.labelled import QUICK, make_labelled_corpus

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.prepare import generate
from scaleearth_pl.prepare.chat import ChatConfig
from scaleearth_pl.prepare.generate import GenerateConfig, plan, plan_size
from scaleearth_pl.prepare.ledger import read_records
from scaleearth_pl.prepare.write import ShardWriter


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("labelled") / "corpus", 6)


def arguments(corpus: Path, out: Path, server: ChatServer, *more: str) -> list[str]:
    return ["--corpus", str(corpus), "--out", str(out), "--base-url", server.base_url, *QUICK, *more]


def run(corpus: Path, out: Path, server: ChatServer, *more: str) -> int:
    return generate.main(arguments(corpus, out, server, *more))


def records(path: Path) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in read_records(path)}


def failures(out: Path) -> list[dict[str, Any]]:
    return list(read_records(out.with_name(f"{out.stem}.failed.jsonl")))


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"] + body["messages"][1]["content"][0]["text"]


def test_every_image_is_asked_for_three_families_of_its_tier(corpus: Path, tmp_path: Path) -> None:
    with ChatServer() as server:
        assert run(corpus, tmp_path / "g.jsonl", server) == 0
    found = records(tmp_path / "g.jsonl").values()
    counts = Counter((record["tier"], record["family"]) for record in found)
    assert counts == {
        (tier, family): 2
        for tier in ("high", "mid", "low")
        for family in ("identification", "scale_specific", "discriminative")
    }
    for body in server.bodies:
        text = text_of(body)
        tier = {"0.3": "HIGH", "3": "MEDIUM", "20": "LOW"}[text.split("Metres per pixel: ")[1].split(". ")[0]]
        assert f"{tier} resolution" in text
        seen, unseen = text.split("Finest things that are resolved in this image: ")[1].split("Not resolved")
        assert ("car," in seen) == (tier == "HIGH")
        assert ("car," in unseen) == (tier == "MEDIUM")
        assert "train-0000" not in text
    assert all(record["qas"] and record["prompt_tokens"] > 0 for record in found)


def test_a_second_run_asks_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.jsonl"
    with ChatServer() as server:
        assert run(corpus, out, server, "--limit", "2") == 0
        assert server.arrivals.total() == 6
        before = out.read_bytes()
        assert run(corpus, out, server, "--limit", "2") == 0
        assert server.arrivals.total() == 6
        assert out.read_bytes() == before
        assert run(corpus, out, server) == 0
        assert server.arrivals.total() == 18
        assert max(server.arrivals.values()) == 1


@pytest.mark.slow
def test_kill_at_random_points_loses_nothing_and_repeats_no_result(corpus: Path, tmp_path: Path) -> None:
    whole, out, concurrency, rng = tmp_path / "whole.jsonl", tmp_path / "g.jsonl", 3, random.Random(4)
    with ChatServer() as server:
        assert run(corpus, whole, server, "--coarsen", "2") == 0
    kills = 0
    with ChatServer(latency_s=0.02) as server:
        more = ["--coarsen", "2", "--concurrency", str(concurrency)]
        command = [sys.executable, "-m", "scaleearth_pl.prepare.generate", *arguments(corpus, out, server, *more)]
        while kills < 3:
            before = set(records(out)) if out.exists() else set()
            recorded = {record["qas"][0]["evidence"] for record in read_records(out)} if out.exists() else set()
            arrivals = server.arrivals.copy()
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            goal, deadline = arrivals.total() + rng.randint(1, 9), time.monotonic() + 20
            while server.arrivals.total() < goal and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            assert process.wait() == -9, "it ended before it was killed"
            kills += 1
            assert before <= set(records(out))
            assert not recorded & set(server.arrivals - arrivals), "a recorded result was asked for again"
        assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert records(out) == records(whole)
    assert len(list(read_records(out))) == len(records(out)) == 36
    assert server.arrivals.total() - 36 <= kills * concurrency


def test_faults_are_retried_and_lasting_ones_quarantined_with_reason(corpus: Path, tmp_path: Path) -> None:
    clean, out = tmp_path / "clean.jsonl", tmp_path / "g.jsonl"
    passing = {"429": 0.2, "500": 0.2, "cut": 0.2, "prose": 0.2, "hang": 0.05}
    with ChatServer() as server:
        run(corpus, clean, server)
    with ChatServer(faults=passing) as server:
        assert run(corpus, out, server, "--timeout", "0.5") == 0
        assert server.faults_given.total() > 5
    assert records(out) == records(clean), "faults that pass leave no trace in the results"

    lasting = {"refuse": 0.15, "prose": 0.15, "400": 0.15}
    broken = tmp_path / "broken.jsonl"
    with ChatServer(faults=lasting, fault_attempts=99) as server:
        assert run(corpus, broken, server, "--max-failed-share", "0.9") == 3
        kinds = Counter(failure["kind"] for failure in failures(broken))
        n_failed = kinds.total()
        assert set(kinds) <= {"refused", "reply", "rejected"}
        assert 0 < n_failed == 18 - len(records(broken))
        assert all(failure["reason"] and failure["image_id"] for failure in failures(broken))
        asked = server.arrivals.total()
        assert run(corpus, broken, server, "--max-failed-share", "0.9") == 3
        assert server.arrivals.total() == asked, "what was quarantined for good is not paid for again"
    with ChatServer() as server:
        assert run(corpus, broken, server, "--retry-failed") == 0
        assert server.arrivals.total() == n_failed
    assert set(records(broken)) == set(records(clean))


def test_too_many_failures_stop_the_run(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(faults={"refuse": 1.0}, fault_attempts=99) as server:
        assert run(corpus, tmp_path / "g.jsonl", server) == 2
    said = capsys.readouterr().err
    assert "QuarantineLimitError" in said and "--retry-failed" in said


def test_a_server_that_rejects_all_of_the_first_is_to_blame_and_not_the_items(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an account without credit, or a parameter that the model does not know: HTTP 400 for everything."""
    out = tmp_path / "g.jsonl"
    with ChatServer(faults={"400": 1.0}, fault_attempts=99) as server:
        assert run(corpus, out, server, "--concurrency", "2") == 2
        assert "ConfigError: the server rejected each of the first 16 requests" in capsys.readouterr().err
        assert not failures(out) and not records(out)
        assert run(corpus, out, server, "--limit", "5") == 2, "fewer than that are the items' own"
    assert Counter(failure["kind"] for failure in failures(out)) == {"rejected": 15}
    with ChatServer() as server:
        assert run(corpus, out, server, "--retry-failed") == 0
    assert len(records(out)) == 18


def test_a_key_that_is_not_set_is_an_error(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer() as server:
        for name, value in (("NO_SUCH_KEY", None), ("EMPTY_KEY", "")):
            if value is not None:
                monkeypatch.setenv(name, value)
            assert run(corpus, tmp_path / "g.jsonl", server, "--api-key-env", name) == 2
            assert f"value '{name}'" in capsys.readouterr().err
        assert not server.arrivals.total()
        monkeypatch.setenv("SOME_KEY", "k")
        assert run(corpus, tmp_path / "g.jsonl", server, "--api-key-env", "SOME_KEY", "--limit", "1") == 0


def test_a_server_that_dies_half_way_is_no_fault_of_the_items(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.jsonl"
    with ChatServer(die_after=7) as server:
        assert run(corpus, out, server, "--attempts", "2", "--max-failed-share", "0.9", "--concurrency", "2") in (2, 3)
        n_done = len(records(out))
        assert 7 <= n_done <= 8
    assert {failure["kind"] for failure in failures(out)} == {"server"}
    with ChatServer() as server:
        assert run(corpus, out, server) == 0
        assert server.arrivals.total() == 18 - n_done
    assert len(records(out)) == 18


def test_coarse_views_are_asked_what_fits_them(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.jsonl"
    with ChatServer() as server:
        assert run(corpus, out, server, "--coarsen", "2", "4") == 0
    found = list(records(out).values())
    assert {record["factor"] for record in found} == {1, 2}, "16 pixels are too few"
    for record in found:
        assert record["width"] == 64 // record["factor"]
    gsds = {(r["image_id"], r["factor"]): (r["gsd_m"], r["tier"]) for r in found}
    assert gsds["train-00000", 2] == (0.6, "high")
    assert gsds["train-00002", 2] == (40.0, "low")


def test_unknown_scale_is_asked_for_no_scale(tmp_path: Path) -> None:
    corpus = make_labelled_corpus(tmp_path / "c", 2, gsds_m=(None,))
    out = tmp_path / "g.jsonl"
    with ChatServer() as server:
        assert run(corpus, out, server, "--coarsen", "2") == 0
    assert Counter(r["family"] for r in records(out).values()) == {"identification": 2, "discriminative": 2}
    assert all("UNKNOWN" in text_of(body) and "Metres per pixel: unknown" in text_of(body) for body in server.bodies)


def test_only_the_named_sources_are_asked_about(tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    with ShardWriter(corpus, corpus="two") as writer:
        for number, source in enumerate(("mtsccd", "rsvqa_lr", "patternnet")):
            sample = replace(fake_sample(number), source=source)
            writer.write(sample, random_image(np.random.default_rng(number), 64, 64), "png")
    with ChatServer() as server:
        assert run(corpus, tmp_path / "g.jsonl", server, "--sources", "patternnet", "mtsccd") == 0
        assert server.arrivals.total() == 6
        assert run(corpus, tmp_path / "n.jsonl", server, "--sources", "patternet") == 2
    assert {r["source"] for r in records(tmp_path / "g.jsonl").values()} == {"patternnet", "mtsccd"}


def test_uncertain_scale_is_told_as_such(tmp_path: Path) -> None:
    corpus = make_labelled_corpus(tmp_path / "c", 1, provenance=Provenance.IMPRECISE)
    with ChatServer() as server:
        assert run(corpus, tmp_path / "g.jsonl", server, "--families", "scale_specific") == 0
    text = text_of(server.bodies[0])
    assert "roughly 0.3, uncertain" in text
    assert "ask for no measured length" in text


def test_a_broken_image_is_quarantined_and_the_rest_is_asked(tmp_path: Path) -> None:
    corpus, out = make_labelled_corpus(tmp_path / "c", 6), tmp_path / "g.jsonl"
    shard = corpus / "train" / "high" / "00000.tar"
    with tarfile.open(shard) as tar:
        offset = next(member.offset_data for member in tar if member.name.endswith("png"))
    with open(shard, "r+b") as stream:
        stream.seek(offset + 40)
        stream.write(b"\0\1\2")
    with ChatServer() as server:
        assert run(corpus, out, server, "--max-failed-share", "0.2") == 3
        assert server.arrivals.total() == 15
    assert [(f["kind"], f["image_id"]) for f in failures(out)] == [("image", "train-00000")]
    assert "cut or altered" in failures(out)[0]["reason"]


def test_ids_change_with_prompt_settings_and_nothing_else(corpus: Path) -> None:
    chat = ChatConfig(base_url="http://x/v1", model="m")

    def ids(config: GenerateConfig, chat: ChatConfig = chat) -> list[str]:
        return [job.id for job in plan(config, chat)]

    base = ids(GenerateConfig(corpus=corpus))
    assert len(set(base)) == len(base) == plan_size(GenerateConfig(corpus=corpus)) == 18
    assert ids(GenerateConfig(corpus=corpus), ChatConfig(base_url="http://y/v1", model="m", concurrency=2)) == base
    assert not set(ids(GenerateConfig(corpus=corpus, questions=3))) & set(base)
    assert not set(ids(GenerateConfig(corpus=corpus), ChatConfig(base_url="http://x/v1", model="n"))) & set(base)
    assert ids(GenerateConfig(corpus=corpus, limit=2)) == base[:6]


@pytest.mark.parametrize("bad", [{"coarsen": (1,)}, {"coarsen": (2, 2)}, {"questions": 0}, {"families": ("x",)}])
def test_settings_are_checked(corpus: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GenerateConfig(corpus=corpus, **bad)


def test_missing_server_and_missing_corpus_end_in_status_2(corpus: Path, tmp_path: Path) -> None:
    with ChatServer() as server:
        assert run(tmp_path / "none", tmp_path / "g.jsonl", server) == 2
    assert generate.main(["--corpus", str(corpus), "--out", str(tmp_path / "g"), "--model", "m"]) == 2


def test_every_prompt_file_is_used_and_versioned() -> None:
    folder = Path(generate.__file__).parent / "prompts"
    names = {path.stem for path in folder.glob("*.txt")}
    tiers = {f"tier_{tier}" for tier in ("high", "mid", "low", "unknown")}
    families = {"family_identification", "family_scale_specific", "family_discriminative"}
    assert names == {"system", "audit"} | tiers | families
    for path in folder.glob("*.txt"):
        assert path.read_text().startswith("version ")
    for name in tiers:
        text = (folder / f"{name}.txt").read_text()
        assert "Visible" in text
        assert "Not visible" in text or "Not answerable" in text


def test_records_hold_what_the_steps_after_need(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.jsonl"
    with ChatServer() as server:
        run(corpus, out, server, "--limit", "1", "--families", "identification")
    record = json.loads(out.read_text().splitlines()[0])
    assert record["schema"] == "scaleearth-generated/1"
    assert record["class"] == "parking_lot"
    assert record["qas"][0]["id"] == f"{record['id'][:16]}-0"
    assert record["prompt_version"].startswith("generate-")
