"""`scaleearth ask IMAGE... -q "How wide is the road?"`: answers about images, and at which scale they were read.

    scaleearth ask tile.tif -q "Is there water?" -q "How wide is the road?"      the file's GSD, fused with SSE-U's
    scaleearth ask photo.jpg --policy predicted -q "..."                         SSE-U alone
    scaleearth ask photo.jpg --gsd-m 0.3 -q "..."                                the user's word (per pixel of the file)
    scaleearth ask tiles/*.tif -q "..." --json > answers.jsonl                   a line for each image and question

All questions about an image share one pass over it, and images share packed passes. A file that cannot be read, or
whose GSD nobody knows under policy `metadata`, costs one line and not the run. Exit status: 0 if every image was
answered, 1 if some were not, 2 if there is no model or the arguments make no sense.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.progress import track

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import GsdError, SampleError
from scaleearth_pl.geo.filegsd import Window
from scaleearth_pl.model.backbone import silence_loading
from scaleearth_pl.serving.engine import Answer, Assistant, Prepared, Query
from scaleearth_pl.serving.images import ImageInput, open_image
from scaleearth_pl.serving.options import add_model_options, assistant_of
from scaleearth_pl.serving.query import USER
from scaleearth_pl.serving.scale import POLICIES, ScaleUsed

IMAGES_AT_ONCE = 64
"""Images prepared before they are answered; bounds memory, and lets results appear while the rest is read."""

Result = tuple[str, list[Answer] | str]
"""An image's name with its answers, or with what is wrong with it."""


@command
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    silence_loading()
    assistant = assistant_of(args)
    if args.model is None:
        console(stderr=True, highlight=False).print(f"model: {assistant.loaded.adapter.path}", soft_wrap=True)
    _check_arguments(assistant, args)
    screen = console(highlight=False)
    failed = 0
    for name, result in _results(assistant, args):
        failed += isinstance(result, str)
        if args.json:
            for row in json_rows(name, result):
                sys.stdout.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            screen.print("\n".join(lines(name, result)), soft_wrap=True, markup=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaleearth ask", description="Asks a trained model about images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="GeoTIFF, JPEG, PNG and other raster files")
    parser.add_argument("-q", "--question", action="append", required=True, dest="questions", metavar="TEXT")
    parser.add_argument(
        "--policy", choices=POLICIES, help="whose GSD counts; default: fused, or metadata without SSE-U"
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--gsd-m", type=float, metavar="M", help="GSD by your word, metres per pixel of the file")
    scale.add_argument("--spoof-gsd-m", type=float, metavar="M", help="pretend this GSD, metres per pixel seen")
    parser.add_argument("--window", type=_window, metavar="COL,ROW,W,H", help="part of the file, at its own resolution")
    parser.add_argument("--crs", help="CRS of files that have a transform and none, such as EPSG:32631")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    add_model_options(parser)
    return parser


def _window(text: str) -> Window:
    try:
        col, row, width, height = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError("four whole numbers: COL,ROW,WIDTH,HEIGHT") from error
    return col, row, width, height


def _check_arguments(assistant: Assistant, args: argparse.Namespace) -> None:
    """Whatever would fail for every image alike fails once, before the first: a grey pixel is asked in their place."""
    blank = Image.new("RGB", (assistant.processor.factor,) * 2)
    stands_in = 1.0 if args.gsd_m is None and args.spoof_gsd_m is None else args.gsd_m
    assistant.prepare(_query(blank, args, stands_in))


def _query(image: ImageInput, args: argparse.Namespace, gsd_m: float | None) -> Query:
    return Query(image=image, questions=args.questions, policy=args.policy, gsd_m=gsd_m, spoof_gsd_m=args.spoof_gsd_m)


def _results(assistant: Assistant, args: argparse.Namespace) -> Iterator[Result]:
    """Every image's result in order, `IMAGES_AT_ONCE` at a time."""
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # its complaints come back as typed errors
    screen = console(stderr=True)
    quiet = len(args.images) < 2 or not screen.is_terminal
    images = iter(track(args.images, description="images", console=screen, disable=quiet, transient=True))
    while chunk := list(islice(images, IMAGES_AT_ONCE)):
        prepared = [_prepare(assistant, path, args) for path in chunk]
        answers = iter(assistant.run([p for p in prepared if isinstance(p, Prepared)]))
        for path, ready in zip(chunk, prepared, strict=True):
            yield path, ready if isinstance(ready, str) else next(answers)


def _prepare(assistant: Assistant, path: str, args: argparse.Namespace) -> Prepared | str:
    """The prepared query of one image, or what is wrong with that image."""
    try:
        image = open_image(
            Path(path), window=args.window, assumed_crs=args.crs, max_read_pixels=assistant.max_read_pixels
        )
        return assistant.prepare(_query(image, args, args.gsd_m))
    except (SampleError, GsdError) as error:
        return str(error)


def json_rows(name: str, result: list[Answer] | str) -> list[dict[str, Any]]:
    """JSON lines of one image: one for each question, or one with `error`."""
    if isinstance(result, str):
        return [{"image": name, "error": result}]
    return [{"image": name, **answer.as_dict()} for answer in result]


def lines(name: str, result: list[Answer] | str) -> list[str]:
    """What a person reads of one image, as rich markup."""
    if isinstance(result, str):
        return [f"[bold]{escape(name)}[/bold]", f"  [red]not answered[/red]: {escape(result)}"]
    scale = result[0].scale
    rows = [f"[bold]{escape(name)}[/bold]", f"  {escape(scale_line(scale))}"]
    rows += [f"  [cyan]{escape(a.question)}[/cyan]  {escape(a.text)}{'' if a.complete else ' ...'}" for a in result]
    return rows + [f"  [dim]note: {escape(note)}[/dim]" for note in scale.notes]


def scale_line(scale: ScaleUsed) -> str:
    """Which GSD the gate was told, on whose word, how sure, and what the other witness says."""
    seen = f"seen at {scale.seen_size[0]}x{scale.seen_size[1]} of {scale.native_size[0]}x{scale.native_size[1]}"
    if scale.gsd_m is None or scale.gsd_m_file is None:
        return f"gate off; {seen}"
    used = f"GSD {scale.gsd_m_file:.4g} m ({scale.source}, {spread(scale.sigma_log10)})"
    read = f"{seen}: {scale.gsd_m:.4g} m, tier {scale.tier}"
    who = "you say" if scale.metadata_source == USER else "file says"
    told = f"{scale.metadata_gsd_m:.4g} m, {scale.provenance}" if scale.metadata_gsd_m else "nothing"
    parts = [used, read, f"{who} {told}"]
    if scale.sse_u_gsd_m is not None and scale.sse_u_sigma_log10 is not None:
        per_file = scale.sse_u_gsd_m * scale.gsd_m_file / scale.gsd_m
        parts.append(f"SSE-U reads {per_file:.4g} m ({spread(scale.sse_u_sigma_log10)})")
    return "; ".join(parts)


def spread(sigma_log10: float) -> str:
    """One sigma as people say it: a percentage where small, a factor where not."""
    factor = 10 ** min(sigma_log10, 9.0)
    if math.isclose(factor, 1.0):
        return "taken as given"
    return f"give or take {factor - 1:.0%}" if factor < 1.5 else f"within a factor {factor:.1f}"
