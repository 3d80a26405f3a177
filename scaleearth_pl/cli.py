"""`scaleearth`: fit, validate, test, predict are LightningCLI; prepare, index and the rest are commands of our own.

    scaleearth fit -c experiments/stage2.yaml -c experiments/size/tiny.yaml --model.init_args.lambda_gsd 0.2

Later files and options win, also inside values that are interpolated from them (`${...}`). A run lives in
`runs/<experiment>/<version>/`, and `runs/<experiment>/latest` points to the newest.
"""

import difflib
import gc
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jsonargparse

from scaleearth_pl.core.errors import ConfigError, ScaleEarthError

OWN_COMMANDS = {
    "prepare": ("scaleearth_pl.prepare.corpus", "raw archives, or the procedural world, to shards"),
    "index": ("scaleearth_pl.prepare.index", "an index for WebDataset shards made elsewhere"),
    "geotag": ("scaleearth_pl.prepare.geotag", "the GSD of image files, in metres on the ground"),
    "report": ("scaleearth_pl.prepare.report.command", "figures, tables and a data card of a corpus"),
    "leakage": ("scaleearth_pl.prepare.leakage", "near-duplicates between training and evaluation"),
    "summary": ("scaleearth_pl.evaluation.summary", "the table of a finished run"),
    "compare": ("scaleearth_pl.evaluation.compare", "a run against its twins"),
    "evaluate": ("scaleearth_pl.evaluation.evaluator.command", "checkpoints x benchmarks x GSD policies"),
    "falsify": ("scaleearth_pl.evaluation.falsify.main", "the registered hypotheses, and a verdict for each"),
    "ablations": ("scaleearth_pl.evaluation.falsify.ablations", "ours without one component at a time"),
    "sheets": ("scaleearth_pl.evaluation.sheets.main", "images, questions and every variant's answers"),
    "ask": ("scaleearth_pl.serving.ask", "questions about images, from the command line"),
    "export": ("scaleearth_pl.serving.export", "adapters folded at a GSD, for PEFT and vLLM"),
    "export-base": ("scaleearth_pl.serving.export_base", "the dequantised base that they stand on"),
    "serve": ("scaleearth_pl.serving.server", "an OpenAI-compatible endpoint"),
    "viewer": ("scaleearth_pl.serving.viewer", "a page with a GSD slider"),
}
"""Module and purpose by name; a module is imported when its command is called."""

LIGHTNING_COMMANDS = {
    "fit": "trains an experiment: -c experiments/stage2.yaml -c experiments/size/tiny.yaml",
    "validate": "the validation splits, with a checkpoint",
    "test": "the test splits, with a checkpoint",
    "predict": "generated answers to the predict splits, in the run's predictions.jsonl",
}

_CLASS_PROBLEM = re.compile(
    r"Problem with given class_path '[\w.]*?(?P<name>\w+)':\s+(?P<problem>(?:(?!Problem with given).)+?)\s+(?:- |Given value)",
    re.DOTALL,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status: 2 and no traceback for an error made on purpose.

    75 instead of 2 asks to be resumed; SIGTERM ends in 143.
    """
    if argv is None:
        from scaleearth_pl.training.process import as_process

        as_process(lambda: run(sys.argv[1:]))
    return run(argv)


def run(arguments: Sequence[str]) -> int:
    """One command; returns its exit status."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            sys.stdout.write(overview())
            return 0
        if arguments[0] in OWN_COMMANDS:
            with collector_at_rest():
                command = importlib.import_module(OWN_COMMANDS[arguments[0]][0])
            return int(command.main(arguments[1:]))
        check_command(arguments[0])
        from scaleearth_pl.training.security import check_arguments

        check_arguments(arguments)
        with collector_at_rest():
            from scaleearth_pl.training.command import run_lightning

        run_lightning(arguments)
    except Exception as error:
        typed = typed_error(error)
        if typed is None:
            raise
        if not typed.said:
            sys.stderr.write(f"\n{type(typed).__name__}: {typed}\n")
        return typed.exit_status
    return 0


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """For imports: what they make stays, and need not be walked again and again, now or later.

    Later is `gc.freeze`, once a process: of 4.8 s of CPU until a configuration is printed, 0.7 s (medians of four pairs).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not gc.get_freeze_count():
                gc.freeze()
            gc.enable()


def overview() -> str:
    """What `scaleearth --help` says of every command; nothing is imported for it."""
    rows = {**LIGHTNING_COMMANDS, **{name: purpose for name, (_, purpose) in OWN_COMMANDS.items()}}
    lines = [f"  {name:<12} {purpose}" for name, purpose in rows.items()]
    return "\n".join(["usage: scaleearth COMMAND ... (scaleearth COMMAND --help tells more)", "", *lines, ""])


def check_command(word: str) -> None:
    """Raises `ConfigError` for a first word that is no command; options before the command are LightningCLI's."""
    known = [*LIGHTNING_COMMANDS, *OWN_COMMANDS]
    if word in known or word.startswith("-"):
        return
    near = difflib.get_close_matches(word, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`scaleearth --help` lists them"
    raise ConfigError("no such command", field="command", value=word, remedy=remedy)


def typed_error(error: BaseException) -> ScaleEarthError | None:
    """The error to show for `error`: our own that caused it, or what the parser refused, or a known fault of machine
    and libraries; None for an unforeseen one.

    jsonargparse wraps what a configuration class raises in a `ValueError` with the whole configuration in its text.
    """
    from scaleearth_pl.training.faults import as_typed

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ScaleEarthError):
        cause = cause.__cause__
    if cause is None and isinstance(error, jsonargparse.ArgumentError):
        return ConfigError(in_short(str(error).strip()), remedy="`scaleearth COMMAND --help` lists every key")
    return cause or as_typed(error)


def in_short(message: str) -> str:
    """What is wrong with a class's settings, without the parser's account of the types that it tried before."""
    found = next(reversed([*_CLASS_PROBLEM.finditer(message)]), None)  # the innermost comes last
    return f"{found['name']}: {' '.join(found['problem'].split())}" if found else message
