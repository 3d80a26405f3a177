"""Options by which a command names a trained model: the same words mean the same in each of them."""

import argparse

from scaleearth_pl.loading.folders import NEWEST_RUN
from scaleearth_pl.loading.model import PRECISIONS, LoadedModel, load_model
from scaleearth_pl.serving.engine import Assistant


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Of commands that answer; `assistant_of` loads what they name."""
    parser.add_argument("--model", metavar="RUN_OR_FOLDER", help=f"default: the newest {NEWEST_RUN}")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--precision", choices=PRECISIONS, default="trained", help="of the backbone")
    _add_place(parser)


def assistant_of(args: argparse.Namespace) -> Assistant:
    """The model that `add_model_options` asked for."""
    return Assistant.from_pretrained(
        args.model, base=args.base, precision=args.precision, device=args.device, max_new_tokens=args.max_new_tokens
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Of commands that make something else of a run; `run_of` loads what they name."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run or adapter folder; default: newest stage-2 run")
    _add_place(parser)


def run_of(args: argparse.Namespace) -> LoadedModel:
    """The model that `add_run_options` asked for."""
    return load_model(args.run, base=args.base, device=args.device)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="folder or hub name of the backbone, if it is not where training had it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
