"""The audit against a real server, agreement on known cases, the sheet for a person, and the way back into shards."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.chat_server import ChatServer
from fakes.labelled import QUICK, make_chain, write_jsonl

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare import audit, audit_sheet
from scaleearth_pl.prepare.agreement import ALL_AXES, cohens_kappa, statistics, verdicts_of
from scaleearth_pl.prepare.audit import in_sample
from scaleearth_pl.prepare.ledger import LedgerError, read_records
from scaleearth_pl.prepare.replies import AXES, parse_verdicts


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"))


def audit_again(chain: Path, out: Path, server: ChatServer, *more: str) -> int:
    where = ["--corpus", str(chain / "corpus"), "--records", str(chain / "filtered.jsonl"), "--out", str(out)]
    return audit.main([*where, "--base-url", server.base_url, *QUICK, *more])


def records(path: Path) -> list[dict[str, Any]]:
    return list(read_records(path))


def test_every_pair_is_judged_on_four_axes_with_reasons(chain: Path) -> None:
    judged = verdicts_of(read_records(chain / "audit.jsonl"))
    asked = {qa["id"] for record in records(chain / "filtered.jsonl") for qa in record["qas"]}
    assert set(judged) == asked
    for record in records(chain / "audit.jsonl"):
        assert all(verdict[axis]["reason"] for verdict in record["verdicts"] for axis in AXES)


def test_the_auditor_is_told_the_scale_and_neither_label_nor_evidence(chain: Path, tmp_path: Path) -> None:
    evidence = {qa["evidence"] for record in records(chain / "filtered.jsonl") for qa in record["qas"]}
    with ChatServer() as server:
        assert audit_again(chain, tmp_path / "a.jsonl", server, "--share", "0.3") == 0
    assert 0 < len(server.bodies) < len(records(chain / "filtered.jsonl"))
    for body in server.bodies:
        text = body["messages"][0]["content"] + body["messages"][1]["content"][0]["text"]
        assert "Metres per pixel" in text
        assert "told to you alone" not in text
        assert not any(piece in text for piece in evidence)


def test_a_share_is_the_same_records_always() -> None:
    ids = [str(k) for k in range(4000)]
    tenth = {i for i in ids if in_sample(i, 0.1)}
    assert 330 < len(tenth) < 470
    assert tenth < {i for i in ids if in_sample(i, 0.2)}
    assert all(in_sample(i, 1.0) for i in ids)


def test_the_audit_resumes_and_quarantines(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with ChatServer(faults={"prose": 0.3, "refuse": 0.2}, fault_attempts=99) as server:
        assert audit_again(chain, out, server, "--max-failed-share", "0.9") == 3
        n_left = len(records(chain / "filtered.jsonl")) - len(records(out))
    with ChatServer() as server:
        assert audit_again(chain, out, server, "--retry-failed") == 0
        assert server.arrivals.total() == n_left
    key = "record_id"
    assert sorted(records(out), key=lambda r: r[key]) == sorted(records(chain / "audit.jsonl"), key=lambda r: r[key])


def test_records_of_equal_texts_are_judged_one_by_one(chain: Path, tmp_path: Path) -> None:
    """Verdicts name questions by id: those of the first record would be missing for the second."""
    row = records(chain / "filtered.jsonl")[0]
    twin = {**row, "id": "twin", "qas": [{**qa, "id": f"twin-{k}"} for k, qa in enumerate(row["qas"])]}
    write_jsonl(tmp_path / "r.jsonl", [row, twin])
    with ChatServer() as server:
        assert audit_again(chain, tmp_path / "a.jsonl", server, "--records", str(tmp_path / "r.jsonl")) == 0
    judged = verdicts_of(read_records(tmp_path / "a.jsonl"))
    assert set(judged) == {qa["id"] for record in (row, twin) for qa in record["qas"]}


def test_records_of_another_corpus_are_refused(chain: Path, tmp_path: Path) -> None:
    row = records(chain / "filtered.jsonl")[0]
    for change, message in (({"image_id": "nobody"}, "does not hold"), ({"image_sha256": "0"}, "not the one")):
        write_jsonl(tmp_path / "r.jsonl", [{**row, **change}])
        with pytest.raises(LedgerError, match=message):
            audit.ViewReader(chain / "corpus").bytes_of({**row, **change})
        with ChatServer() as server:
            where = ["--corpus", str(chain / "corpus"), "--base-url", server.base_url, *QUICK]
            files = ["--records", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "a.jsonl")]
            assert audit.main([*where, *files]) == 2


def test_a_record_of_another_gsd_is_not_paid_for(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = records(chain / "filtered.jsonl")[:3]
    write_jsonl(tmp_path / "r.jsonl", [{**rows[0], "gsd_m": 0.03}, *rows[1:]])
    with ChatServer() as server:
        assert audit_again(chain, tmp_path / "a.jsonl", server, "--records", str(tmp_path / "r.jsonl")) == 0
        assert server.arrivals.total() == 2
    assert {r["record_id"] for r in records(tmp_path / "a.jsonl")} == {row["id"] for row in rows[1:]}
    assert "1 records that were asked under another gsd_m" in capsys.readouterr().err


def verdict(number: int, **changes: Any) -> dict[str, Any]:
    return {"pair": number, **{axis: {"reason": "r", "passes": True} for axis in AXES}, **changes}


@pytest.mark.parametrize(
    "verdicts",
    [
        [verdict(0)],
        [verdict(0), verdict(0)],
        [verdict(0), verdict(2)],
        [verdict(0), verdict(1), verdict(2)],
        [verdict(0), verdict(1, answerable={"reason": "r"})],
        [verdict(0), verdict(1, extra=1)],
        [verdict(0), verdict(1, answerable={"reason": "r", "passes": "yes"})],
    ],
)
def test_verdicts_must_fit_the_pairs(verdicts: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"judged|validation"):
        parse_verdicts(["a", "b"], json.dumps({"verdicts": verdicts}))


def test_verdicts_in_any_order() -> None:
    rows = parse_verdicts(["a", "b"], json.dumps({"verdicts": [verdict(1), verdict(0)]}))["verdicts"]
    assert [row["question_id"] for row in rows] == ["a", "b"]


def test_kappa_of_known_tables() -> None:
    yes, no = True, False
    first = [yes] * 20 + [yes] * 5 + [no] * 10 + [no] * 15
    second = [yes] * 20 + [no] * 5 + [yes] * 10 + [no] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(first, first) == 1
    assert cohens_kappa([yes, no], [no, yes]) == -1
    assert cohens_kappa([yes] * 5, [yes] * 5) is None


def test_independent_auditors_agree_by_chance_only() -> None:
    rng = np.random.default_rng(0)
    first, second = ((rng.random(20_000) < p).tolist() for p in (0.9, 0.8))
    kappa = cohens_kappa(first, second)
    assert kappa is not None
    assert abs(kappa) < 0.03


def test_statistics_compare_what_both_have_judged(chain: Path) -> None:
    first = verdicts_of(read_records(chain / "audit.jsonl"))
    alone = {row.axis: row for row in statistics(first)}
    assert alone[ALL_AXES].pass_rate <= min(alone[axis].pass_rate for axis in AXES)
    assert alone[ALL_AXES].kappa is None
    half = dict(list(first.items())[::2])
    both = {row.axis: row for row in statistics(first, half)}
    assert both[ALL_AXES].n == len(half)
    assert both[ALL_AXES].agreement == 1
    with pytest.raises(ConfigError, match="both"):
        statistics(first, {"other": half.popitem()[1]})


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.questions: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href") and v]
        self.questions += [values["data-question"] or ""] if "data-question" in values else []


def test_the_sheet_is_self_contained_and_escaped(chain: Path, tmp_path: Path) -> None:
    rows = records(chain / "filtered.jsonl")
    rows[0]["qas"][0]["question"] = "<script>alert(1)</script> or $intro?"
    path = tmp_path / "r.jsonl"
    write_jsonl(path, rows)
    where = ["--corpus", str(chain / "corpus"), "--records", str(path), "--audit", str(chain / "audit.jsonl")]
    assert audit_sheet.main([*where, "--out", str(tmp_path / "s.html"), "--images", "999"]) == 0
    text = (tmp_path / "s.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.tags.count("section") == len(rows)
    assert page.tags.count("script") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "$intro?" in text
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    assert set(page.questions) == {qa["id"] for row in rows for qa in row["qas"]}
    assert page.tags.count("input") == 4 * len(page.questions)


def test_the_sheet_shows_failures_and_passes(chain: Path) -> None:
    pairs = audit_sheet.choose(chain / "filtered.jsonl", chain / "audit.jsonl", n_images=10)
    fails = [any(not v[axis]["passes"] for v in judged["verdicts"] for axis in AXES) for _, judged in pairs]
    assert len(pairs) == 10
    assert 3 <= sum(fails) <= 7
    assert pairs == audit_sheet.choose(chain / "filtered.jsonl", chain / "audit.jsonl", n_images=10)


def test_the_page_of_a_person_is_a_second_audit(chain: Path, tmp_path: Path) -> None:
    first = records(chain / "audit.jsonl")
    person = [
        {"id": f"person-{r['record_id']}", "record_id": r["record_id"], "verdicts": r["verdicts"]} for r in first[:8]
    ]
    write_jsonl(tmp_path / "person.jsonl", person)
    where = ["--corpus", str(chain / "corpus"), "--records", str(chain / "filtered.jsonl")]
    files = ["--audit", str(chain / "audit.jsonl"), "--second", str(tmp_path / "person.jsonl")]
    assert audit_sheet.main([*where, *files, "--out", str(tmp_path / "s.html")]) == 0
    assert "1.000" in (tmp_path / "s.html").read_text()
