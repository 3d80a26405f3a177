"""The configuration as it was in effect, beside the run: never overwritten, never with a secret in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from scaleearth_pl.training.security import redacted


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml`, and `config.1.yaml`, `config.2.yaml`, ... where a run is resumed.

    Lightning's own refuses an existing file (a requeued job dies at its start), or overwrites the first run's record,
    and writes resolved environment values.

    Args:
        parser: of the subcommand.
        config: as parsed.
        arguments: the command line; tells which values came from the environment.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, *, arguments: Sequence[str] = (), **settings: Any
    ) -> None:
        super().__init__(parser, config, **settings, save_to_log_dir=False)
        self.arguments = tuple(arguments)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Called on rank 0, once a process."""
        plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        text = yaml.safe_dump(redacted(plain, self.arguments), sort_keys=False)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        next_free(folder).write_text(text, encoding="utf-8")


def next_free(folder: Path) -> Path:
    """`config.yaml`, or the first of `config.<n>.yaml` that does not exist."""
    path, number = folder / "config.yaml", 0
    while path.exists():
        number += 1
        path = folder / f"config.{number}.yaml"
    return path
