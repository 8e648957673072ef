"""Gives the configuration of a run on the command line to W&B."""

from __future__ import annotations

import json
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, Namespace, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override


class LogConfigCallback(SaveConfigCallback):
    """Saves ``config.yaml`` as LightningCLI does, and puts the same into the config of a W&B run.

    Only of W&B's: other loggers have the file in their folder.
    """

    @override
    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(plain_config(self.parser, self.config))


def plain_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A parsed configuration as nested dicts and lists of plain values.

    Args:
        parser: Which has parsed it.
        config: What it has parsed.
    """
    plain: dict[str, Any] = json.loads(parser.dump(config, format="json", skip_none=False))
    # The paths of the files that it came from; their contents are in it.
    plain.pop("config", None)
    return plain
