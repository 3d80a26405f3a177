"""`scaleearth`: fit, validate, test, predict are LightningCLI; prepare, index and the rest are commands of our own.

    scaleearth fit -c experiments/stage2.yaml -c experiments/size/tiny.yaml --model.init_args.lambda_gsd 0.2

Later files and options win, also inside values that are interpolated from them (`${...}`). A run lives in
`runs/<experiment>/<version>/`, and `runs/<experiment>/latest` points to the newest.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    "predict": "answers without scores",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status: 2 and no traceback for an error made on purpose.

    75 instead of 2 asks to be resumed; SIGTERM ends in 143.
    """
    from scaleearth_pl.training.process import as_process

    return as_process(lambda: run(sys.argv[1:])) if argv is None else run(argv)


def run(arguments: Sequence[str]) -> int:
    """One command; returns its exit status."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            sys.stdout.write(overview())
            return 0
        if arguments[0] in OWN_COMMANDS:
            return int(importlib.import_module(OWN_COMMANDS[arguments[0]][0]).main(arguments[1:]))
        check_command(arguments[0])
        from scaleearth_pl.training.security import check_arguments

        check_arguments(arguments)
        run_lightning(arguments)
    except Exception as error:
        typed = typed_error(error)
        if typed is None:
            raise
        sys.stderr.write(f"\n{type(typed).__name__}: {typed}\n")
        return typed.exit_status
    return 0


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
        return ConfigError(str(error).strip(), remedy="`scaleearth COMMAND --help` lists every key")
    return cause or as_typed(error)


def listed(setting: Any) -> list[Any]:
    """A Trainer's setting that may be absent (None, or True for the default), one object, or a list of them."""
    if setting is None or setting is True:
        return []
    return list(setting) if isinstance(setting, (list, tuple)) else [setting]


def run_lightning(arguments: Sequence[str]) -> Any:
    """Builds and runs the LightningCLI on `arguments`; returns it, for tests."""
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import TensorBoardLogger

    from scaleearth_pl.data.datamodule import GeoScaleDataModule
    from scaleearth_pl.training.callbacks.run_record import RunRecord
    from scaleearth_pl.training.callbacks.save_config import SaveConfig
    from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO
    from scaleearth_pl.training.quiet import silence_known_noise
    from scaleearth_pl.training.run_folder import choose_run, point_latest

    silence_known_noise()
    # Without this, omegaconf+ under a subcommand resolves ${...} against the wrong root (jsonargparse 4.53).
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

    class ScaleEarthCLI(LightningCLI):
        """One experiment name, one run folder, and a test right after a fit where asked for."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--experiment", type=str, default="experiment", help="folder under runs_dir")
            parser.add_argument("--size", type=str, default="custom", help="label of the model size, for the summary")
            parser.add_argument("--runs_dir", type=str, default="runs", help="where runs are written")
            parser.add_argument("--resume", type=bool, default=False, help="continue runs/<experiment>/latest")
            parser.add_argument("--test_after_fit", type=bool, default=False, help="evaluate the test split at the end")

        def _parse_ckpt_path(self) -> None:
            """Nothing: Lightning would take hyper-parameters, and a class to import, out of a file not yet verified."""

        def before_instantiate_classes(self) -> None:
            """Names the run folder; with `resume`, the newest one and its checkpoints."""
            config = self.config[self.subcommand]
            root = Path(config.runs_dir) / config.experiment
            version, checkpoints = choose_run(root, resume=config.resume, fit=self.subcommand == "fit")
            config.ckpt_path = checkpoints or config.ckpt_path
            self.run_folder = root / version
            self.trainer_defaults["callbacks"] = [RunRecord(size=config.size)]

        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            """Adds the run folder's TensorBoard logger to those asked for, unless switched off, and durable checkpoints."""
            folder, configured = self.run_folder, self._get(self.config_init, "trainer")
            kwargs["plugins"] = [*listed(configured.get("plugins")), DurableCheckpointIO()]
            if configured.get("logger") is not False:
                board = TensorBoardLogger(folder.parent.parent, name=folder.parent.name, version=folder.name)
                kwargs["logger"] = [board, *listed(configured.get("logger"))]
            trainer = super().instantiate_trainer(default_root_dir=str(folder), **kwargs)
            if trainer.is_global_zero and self.subcommand == "fit":
                point_latest(folder)
            return trainer

        def after_fit(self) -> None:
            """Tests the weights in memory, which are the ones just written."""
            if self.config.fit.test_after_fit:
                self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    return ScaleEarthCLI(
        pl.LightningModule,
        GeoScaleDataModule,
        subclass_mode_model=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"arguments": list(arguments)},
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=1,
        args=list(arguments),
    )
