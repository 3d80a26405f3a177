"""The sheets as one HTML file: images and styles inside, no script, nothing fetched; reads on a phone and prints."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

from scaleearth_pl.core.run_files import Prediction, SseuReading
from scaleearth_pl.evaluation.sheets.answers import Picture, Said, Shown
from scaleearth_pl.evaluation.sheets.choose import Drawn
from scaleearth_pl.evaluation.sheets.paper import AXIS_M, Z90, gsd_text, metres, nice_bar_m, reading_text
from scaleearth_pl.evaluation.sheets.words import TypeCount, Words
from scaleearth_pl.evaluation.tables import percent

STYLE = """
:root{color-scheme:light}
body{font:16px/1.45 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1.2rem;color:#1a1a1a;background:#fff}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.3rem;margin:2.6rem 0 .3rem}h3{font-size:1.02rem;margin:1.8rem 0 .6rem}
p{max-width:56rem;margin:.35rem 0}.small,small{color:#555;font-size:.86rem}
.place{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:1.2rem 1.6rem}
figure{margin:0;position:relative}figure img{width:100%;display:block;image-rendering:pixelated}
.bar{position:absolute;left:.7rem;bottom:.7rem;height:.25rem;background:#000;box-shadow:0 0 0 .16rem #ffffffd9}
.len{position:absolute;left:.54rem;bottom:1.05rem;background:#ffffffd9;padding:0 .3rem;font-size:.8rem;line-height:1.4}
svg{width:100%;height:2.1rem;display:block}
.qa{border-top:1px solid #ddd;padding:.5rem 0}.qa p{margin:0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(4.4rem,1fr));gap:.1rem .6rem;margin:.25rem 0 0}
dl>div{min-width:0}dt{color:#666;font-size:.78rem}dd{margin:0;overflow-wrap:anywhere}
.right{color:#0072B2;font-weight:600}.wrong{color:#B84E00}
table{border-collapse:collapse;width:100%;margin-top:.6rem}
th,td{border-bottom:1px solid #ddd;padding:.6rem .7rem;text-align:left;vertical-align:top}
th{position:sticky;top:0;background:#fff}td:first-child{width:9.5rem}td.q{white-space:pre-line}
@media(max-width:44rem){td:first-child{width:6rem}th,td{padding:.4rem .3rem;font-size:.85rem}}
@media print{.place,tr{break-inside:avoid}}
"""


def places_section(
    places: Sequence[Sequence[Drawn]], shown: Shown, *, readings: Mapping[str, SseuReading], words: Words
) -> str:
    """Places, a grid of images each."""
    parts = [_head(words)]
    for place in places:
        cards = "".join(_card(drawn, shown, readings.get(drawn.image_id)) for drawn in place)
        parts.append(f'<h3>Place {_text(place[0].place_id)}</h3><div class="place">{cards}</div>')
    return "".join(parts)


def types_section(drawn: Sequence[Drawn], shown: Shown, *, types: Mapping[str, TypeCount], words: Words) -> str:
    """Types of question, a row each; below every answer the variant's accuracy on all of that type."""
    head = "".join(f"<th>{_text(name)}</th>" for name in shown.said)
    rows = "".join(_type_row(some, shown, types[some.rows[0].type]) for some in drawn)
    return f"{_head(words)}<table><tr><th></th><th>question</th>{head}</tr>{rows}</table>"


def as_page(title: str, sections: Sequence[str]) -> str:
    """The whole file."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    body = f"<h1>{_text(title)}</h1>{''.join(sections)}"
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'


def _head(words: Words) -> str:
    return f'<h2>{_text(words.title)}</h2><p class="small">{_text(words.rule)}</p><p>{_text(words.counts)}</p>'


def _card(drawn: Drawn, shown: Shown, reading: SseuReading | None) -> str:
    parts = [f"<p>{_text(gsd_text(drawn.gsd_m))}</p>", _figure(shown.pictures[drawn.image_id], gsd_text(drawn.gsd_m))]
    if reading is not None:
        parts.append(f"<small>{_text(reading_text(reading))}</small>{_strip(drawn.gsd_m, reading)}")
    parts += [_qa(row, shown) for row in drawn.rows]
    return f"<article>{''.join(parts)}</article>"


def _qa(row: Prediction, shown: Shown) -> str:
    cells = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_mark(said[row.key])}</dd></div>" for name, said in shown.said.items()
    )
    question = f"<p>{_text(row.question)}</p><p>truth: <b>{_text(row.answer)}</b></p>"
    return f'<div class="qa">{question}<dl>{cells}</dl></div>'


def _type_row(some: Drawn, shown: Shown, count: TypeCount) -> str:
    row = some.rows[0]
    cells = "".join(
        f"<td>{_mark(said[row.key])}<br><small>{percent(count.accuracy[name])} %</small></td>"
        for name, said in shown.said.items()
    )
    kind = f"{row.type.replace('_', ' ')} \N{MIDDLE DOT} {row.family.replace('_', '-')} \N{MIDDLE DOT} {gsd_text(some.gsd_m)}"
    question = f"<small>{_text(kind)}</small><br>{_text(row.question)}<br>truth: <b>{_text(row.answer)}</b>"
    picture = _figure(shown.pictures[some.image_id], row.type)
    return f'<tr><td>{picture}</td><td class="q">{question}<br><small>{_text(count.text)}</small></td>{cells}</tr>'


def _mark(said: Said) -> str:
    symbol, word = ("\N{CHECK MARK}", "right") if said.right else ("\N{BALLOT X}", "wrong")
    return f'<span class="{word}" title="{word}">{symbol} {_text(said.text or "(nothing)")}</span>'


def _figure(picture: Picture, alt: str) -> str:
    stream = io.BytesIO()
    picture.image.save(stream, format="JPEG", quality=92, subsampling=0)
    data = base64.b64encode(stream.getvalue()).decode()
    bar = ""
    if picture.extent_m is not None:
        bar_m = nice_bar_m(picture.extent_m)
        bar = f'<span class="len">{metres(bar_m)}</span><i class="bar" style="width:{100 * bar_m / picture.extent_m:.2f}%"></i>'
    return f'<figure><img alt="{_text(alt)}" src="data:image/jpeg;base64,{data}">{bar}</figure>'


def _strip(gsd_m: float | None, reading: SseuReading) -> str:
    """SSE-U's 90 % interval on a log axis of metres, 1000 units wide; the black stroke is the truth."""

    def x(log10_m: float) -> float:
        low, high = (math.log10(end) for end in AXIS_M)
        return min(1000.0, max(0.0, 1000 * (log10_m - low) / (high - low)))

    left, right = (x(reading.mu + k * Z90 * reading.sigma) for k in (-1, 1))
    parts = [
        f'<rect x="{left:.0f}" y="12" width="{max(right - left, 4):.0f}" height="12" fill="#0072B2" opacity=".4"/>'
    ]
    parts.append(f'<circle cx="{x(reading.mu):.0f}" cy="18" r="9" fill="#0072B2"/>')
    if gsd_m is not None:
        parts.append(f'<rect x="{x(math.log10(gsd_m)) - 3:.0f}" y="2" width="6" height="34" fill="#000"/>')
    parts.append('<path d="M0 37H1000" stroke="#666" stroke-width="2"/>')
    for tick_m in (0.1, 1, 10, 100):
        at = f"{x(math.log10(tick_m)):.0f}"
        parts.append(f'<path d="M{at} 37v8" stroke="#666" stroke-width="2"/>')
        parts.append(f'<text x="{at}" y="76" font-size="32" text-anchor="middle" fill="#555">{tick_m:g} m</text>')
    label = _text(reading_text(reading))
    return f'<svg viewBox="0 0 1000 84" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(text: str) -> str:
    return html.escape(text)
