"""`scaleearth`: fit, validate, test, predict are LightningCLI; prepare, index and the rest are commands of our own.

    scaleearth fit -c experiments/stage2.yaml -c experiments/size/tiny.yaml --model.init_args.lambda_gsd 0.2

Later files and options win, also inside values that are interpolated from them (`${...}`). A run lives in
`runs/<experiment>/<version>/`, and `runs/<experiment>/latest` points to the newest.
"""

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse

OWN_COMMANDS = {
    "prepare": "scaleearth_pl.prepare.corpus",
    "index": "scaleearth_pl.prepare.index",
    "geotag": "scaleearth_pl.prepare.geotag",
    "summary": "scaleearth_pl.evaluation.summary",
    "compare": "scaleearth_pl.evaluation.compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status. Typed errors print without a traceback."""
    from scaleearth_pl.core.errors import ScaleEarthError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in OWN_COMMANDS:
            return int(importlib.import_module(OWN_COMMANDS[arguments[0]]).main(arguments[1:]))
        run_lightning(arguments)
    except ScaleEarthError as error:
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        return 2
    return 0


def run_lightning(arguments: Sequence[str]) -> Any:
    """Builds and runs the LightningCLI on `arguments`; returns it, for tests."""
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
    from lightning.pytorch.loggers import TensorBoardLogger

    from scaleearth_pl.data.datamodule import GeoScaleDataModule
    from scaleearth_pl.training.callbacks.run_record import RunRecord
    from scaleearth_pl.training.quiet import silence_known_noise

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

        def before_instantiate_classes(self) -> None:
            """Names the run folder; with `resume`, the newest one and its last checkpoint."""
            config = self.config[self.subcommand]
            root = Path(config.runs_dir) / config.experiment
            if config.resume:
                version, config.ckpt_path = find_last(root)
            else:
                version = os.environ.setdefault(
                    "SCALEEARTH_VERSION", time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid())
                )
            self.run_folder = root / version
            self.trainer_defaults["callbacks"] = [RunRecord(size=config.size)]

        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            """Adds the TensorBoard logger of the run folder, unless the configuration switches logging off."""
            folder = self.run_folder
            if self._get(self.config_init, "trainer").get("logger") is not False:
                kwargs["logger"] = TensorBoardLogger(folder.parent.parent, name=folder.parent.name, version=folder.name)
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
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+"},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=1,
        args=list(arguments),
    )


def find_last(root: Path) -> tuple[str, str]:
    """Version name and checkpoint of the newest run below `root`, for `--resume`."""
    from scaleearth_pl.core.errors import CheckpointError

    latest = root / "latest"
    checkpoint = latest / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        raise CheckpointError(
            "nothing to resume", file=checkpoint, field="resume", value=True, remedy="start the run without resume"
        )
    return latest.resolve().name, str(checkpoint)


def point_latest(folder: Path) -> None:
    """Makes `latest` beside `folder` point to it, atomically, so that runs may start at once."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.parent / "latest")
