r"""A sample of audited pairs on one HTML page, for a person to look at, mark, and compare with the auditor.

    python -m scaleearth_pl.prepare.audit_sheet --corpus data_shards/patternnet --records work/filtered.jsonl \
        --audit work/audit.jsonl [--second work/audit2.jsonl] --out work/sheet.html [--images 40]

The page holds its images as data URIs and loads nothing: it can be mailed, and shows the same in ten years. Half of
the sample are records where some axis failed (as far as there are so many), because with 95 % passing a plain sample
shows a person twenty good pairs and teaches nothing. So the sheet's own share of failures is no estimate; the table on
top is. The boxes start ticked, not at the auditor's verdict; the page saves them as a second audit for `--second`.

Everything that a model wrote is escaped: a page must not run what a reply says.
"""

import argparse
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.prepare.agreement import (
    AxisStatistics,
    cells,
    statistics,
    statistics_table,
    verdicts_of,
)
from scaleearth_pl.prepare.audit import ViewReader
from scaleearth_pl.prepare.chat_providers import data_uri
from scaleearth_pl.prepare.ledger import read_records
from scaleearth_pl.prepare.replies import AXES
from scaleearth_pl.prepare.views import MIMES

Pair = tuple[dict[str, Any], dict[str, Any]]
"""A generated record and its audit."""


def choose(records: Path, audit: Path, *, n_images: int) -> list[Pair]:
    """Audited records for the sheet: half of them with a failure where there are so many, by hash, then by id.

    Raises:
        ConfigError: no record of the file was audited.
    """
    audits = {a["record_id"]: a for a in read_records(audit)}
    bad, good = list[tuple[str, str]](), list[tuple[str, str]]()
    for identity, a in audits.items():
        fails = any(not verdict[axis]["passes"] for verdict in a["verdicts"] for axis in AXES)
        (bad if fails else good).append((hashlib.sha256(f"sheet{identity}".encode()).hexdigest(), identity))
    bad, good = sorted(bad), sorted(good)
    n_bad = max(min(len(bad), n_images // 2), n_images - len(good))
    chosen = {identity for _, identity in (*bad[:n_bad], *good[: n_images - len(bad[:n_bad])])}
    pairs = [(record, audits[record["id"]]) for record in read_records(records) if record["id"] in chosen]
    if not pairs:
        raise ConfigError("none of these records was audited", file=audit, remedy="name the records that were audited")
    return sorted(pairs, key=lambda pair: (pair[0]["image_id"], pair[0]["factor"], pair[0]["family"]))


def sheet(pairs: Sequence[Pair], rows: Sequence[AxisStatistics], reader: ViewReader, *, title: str) -> str:
    """The page.

    Args:
        pairs: of `choose`.
        rows: of `statistics`, over everything audited.
        reader: of the corpus that the records were generated from.
        title: heading.

    Raises:
        LedgerError: a record's image is not in the corpus.
        SampleError: an image does not decode.
    """
    template = Template(files("scaleearth_pl.prepare").joinpath("audit_sheet.html").read_text(encoding="utf-8"))
    head = "".join(f"<th>{name}</th>" for name in ("axis", "pass rate", "second auditor", "agreement", "kappa"))
    body = "".join(
        f"<tr><td>{row.axis}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in cells(row)) + "</tr>"
        for row in rows
    )
    return template.substitute(
        title=escape(title),
        intro=f"{len(pairs)} records of an audit of {rows[0].n:,} pairs; failures are shown oftener than they occur.",
        statistics=f"<table><tr>{head}</tr>{body}</table>",
        sections="\n".join(_section(record, audit, reader) for record, audit in pairs),
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    description = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m scaleearth_pl.prepare.audit_sheet", description=description)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of index.json")
    parser.add_argument("--records", type=Path, required=True, help="what was audited")
    parser.add_argument("--audit", type=Path, required=True, help="ledger of `audit`")
    parser.add_argument("--second", type=Path, help="ledger of a second auditor, or the page's own file")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--images", type=int, default=40, help="records on the page")
    args = parser.parse_args(argv)
    second = verdicts_of(read_records(args.second)) if args.second else None
    rows = statistics(verdicts_of(read_records(args.audit)), second)
    pairs = choose(args.records, args.audit, n_images=args.images)
    title = f"Audit of {args.records.name}"
    args.out.write_text(sheet(pairs, rows, ViewReader(args.corpus), title=title), encoding="utf-8")
    console().print(statistics_table(rows))
    return 0


def _section(record: dict[str, Any], audit: dict[str, Any], reader: ViewReader) -> str:
    row, data = reader.bytes_of(record)
    image = reader.encode(row, data, record["factor"])
    gsd = "unknown" if record["gsd_m"] is None else f"{record['gsd_m']:.4g} m per pixel, {record['gsd_provenance']}"
    caption = (
        f"{record['image_id']}, averaged by {record['factor']}; {gsd}; class {record['class']}; {record['family']}"
    )
    verdict_of = {verdict["question_id"]: verdict for verdict in audit["verdicts"]}
    rows = "".join(_row(qa, verdict_of[qa["id"]]) for qa in record["qas"] if qa["id"] in verdict_of)
    head = "".join(f"<th>{axis.replace('_', ' ')}</th>" for axis in AXES)
    return (
        f'<section data-record="{escape(record["id"])}"><figure><img alt="" src="'
        f'{data_uri(image.data, MIMES[image.ext])}"><figcaption>{escape(caption)}</figcaption></figure>'
        f"<table><tr><th>pair</th>{head}</tr>{rows}</table></section>"
    )


def _row(qa: dict[str, Any], verdict: dict[str, Any]) -> str:
    options = f"<br>Options: {escape('; '.join(qa['options']))}" if qa["options"] else ""
    axes = "".join(
        f'<td class="{"passes" if verdict[axis]["passes"] else "fails"}">'
        f'<input type="checkbox" name="{axis}" aria-label="{axis}" checked>'
        f'<div class="reason">{escape(verdict[axis]["reason"])}</div></td>'
        for axis in AXES
    )
    text = f"{escape(qa['question'])}<br><b>{escape(qa['answer'])}</b>{options}"
    return f'<tr data-question="{escape(qa["id"])}"><td>{text}</td>{axes}</tr>'


if __name__ == "__main__":
    raise SystemExit(main())
