"""fit, validate, test, predict: LightningCLI, with one folder to a run.

A run lives in `runs/<experiment>/<version>/`; `runs/<experiment>/latest` points to the newest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from scaleearth_pl.data.datamodule import GeoScaleDataModule
from scaleearth_pl.training.callbacks.run_record import RunRecord
from scaleearth_pl.training.callbacks.save_config import SaveConfig
from scaleearth_pl.training.checkpoint_io import DurableCheckpointIO
from scaleearth_pl.training.quiet import silence_known_noise
from scaleearth_pl.training.run_folder import choose_run, point_latest


class ScaleEarthCLI(LightningCLI):
    """One experiment name, one run folder, and a test right after a fit where asked for."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of model, data and trainer."""
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
        if self.subcommand == "predict" and config.return_predictions is None:
            config.return_predictions = False  # they are in the run's folder, and may be many

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the run folder's TensorBoard logger to those asked for, unless switched off, and durable checkpoints."""
        folder, configured = self.run_folder, self._get(self.config_init, "trainer")
        kwargs["plugins"] = [*listed(configured.get("plugins")), DurableCheckpointIO()]
        if configured.get("logger") is not False:
            board = TensorBoardLogger(folder.parent.parent, name=folder.parent.name, version=folder.name)
            kwargs["logger"] = [board, *listed(configured.get("logger"))]
        trainer = super().instantiate_trainer(default_root_dir=str(folder), **kwargs)
        rehearsal = getattr(trainer, "fast_dev_run", False)
        if trainer.is_global_zero and self.subcommand == "fit" and not rehearsal:
            point_latest(folder)
        return trainer

    def before_fit(self) -> None:
        """What will be tested at the end is looked at before training, too."""
        self.datamodule.tests_after_fit = self.config.fit.test_after_fit

    def after_fit(self) -> None:
        """Tests the weights in memory, which are the ones just written."""
        if self.config.fit.test_after_fit:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def run_lightning(arguments: Sequence[str]) -> ScaleEarthCLI:
    """Builds and runs the LightningCLI on `arguments`; returns it, for tests."""
    silence_known_noise()
    # Without this, omegaconf+ under a subcommand resolves ${...} against the wrong root (jsonargparse 4.53).
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    return cli_for(arguments)(
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


def cli_for(arguments: Sequence[str]) -> type[ScaleEarthCLI]:
    """The class that parses `arguments`: with the options of their one command, where the first word is one.

    Lightning describes all four commands to the parser: 0.2 s of a processor for the three that nobody asked for.
    """
    known: dict[str, set[str]] = ScaleEarthCLI.subcommands()
    asked = {name: skip for name, skip in known.items() if name in arguments[:1]} or known

    class OneCommandCLI(ScaleEarthCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return asked

    return OneCommandCLI


def listed(setting: Any) -> list[Any]:
    """A Trainer's setting that may be absent (None, or True for the default), one object, or a list of them."""
    if setting is None or setting is True:
        return []
    return list(setting) if isinstance(setting, (list, tuple)) else [setting]
