"""Keeps the configuration of a run on the command line: in its folder, and in W&B."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_bsqh.namespace import WandbLogger, get_filesystem, pl, rank_zero_info
from lightning_bsqh.namespace.cli import LightningArgumentParser, Namespace, SaveConfigCallback


class LogConfigCallback(SaveConfigCallback):
    """Saves ``config.yaml`` beside what the run leaves, and puts the same into the config of a W&B run.

    A file that is there already stays: the configuration then goes into ``config_2.yaml``, and so on.
    Of the loggers only W&B's get it: others have the file in their folder.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, config, **{**options, "save_to_log_dir": False})
        #: What has been written, None if nothing, or if it was there already.
        self.written: Path | None = None
        #: Whether a batch has been trained, validated, tested or predicted with.
        self.began = False
        self._folder: str | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Asked on every rank, since it is sent from one to the others.
        self._folder = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._folder is not None:
            self._save(self._folder, self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(plain_config(self.parser, self.config))

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        self.began = True

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.began = self.began or not trainer.sanity_checking

    @override
    def on_test_batch_end(self, *args: Any) -> None:
        self.began = True

    @override
    def on_predict_batch_end(self, *args: Any) -> None:
        self.began = True

    def _save(self, folder: str, text: str) -> None:
        if "://" in folder:
            files = get_filesystem(folder)
            files.makedirs(folder, exist_ok=True)
            names = (f"{folder.rstrip('/')}/{name}" for name in _numbered(self.config_filename))
            with files.open(next(name for name in names if not files.exists(name)), "w") as file:
                file.write(text)
            return
        self.written = save_beside(Path(folder) / self.config_filename, text)
        if self.written is not None and self.written.name != self.config_filename:
            rank_zero_info(f"{self.config_filename} in {folder} stays as it is; this run's is {self.written.name}.")


def save_beside(path: Path, text: str) -> Path | None:
    """Writes a new file under the name, or the name with a number where that is taken.

    Returns:
        What has been written; None if a file of the name has that text already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in _numbered(path.name):
        try:
            # Neither a file nor what a link leads to is ever replaced.
            with path.with_name(name).open("x", encoding="utf-8") as file:
                file.write(text)
            return path.with_name(name)
        except FileExistsError:
            if _holds(path.with_name(name), text):
                return None
    raise AssertionError("there is always another number")


def _numbered(name: str) -> itertools.chain[str]:
    start, end = Path(name).stem, Path(name).suffix
    return itertools.chain([name], (f"{start}_{number}{end}" for number in itertools.count(2)))


def _holds(path: Path, text: str) -> bool:
    try:
        return path.is_file() and path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


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
