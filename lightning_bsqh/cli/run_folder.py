"""The folder of a run: its name, that it is a new one, and that nothing is left of a run that never began."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_bsqh.namespace import NAME, CSVLogger, Logger, TensorBoardLogger

# What names a run, by the names of loggers and of those derived from them; in the first two a folder.
_NAMED_BY = {
    "CSVLogger": "version",
    "TensorBoardLogger": "version",
    "WandbLogger": "name",
    "MLFlowLogger": "run_name",
    "CometLogger": "name",
    "NeptuneLogger": "name",
}
# What loggers write before a training has begun.
_BEFORE_THE_START = ("config.yaml", "hparams.yaml", "events.out.tfevents.*", "metrics.csv")


def name_run(trainer: Namespace, name: str) -> None:
    """Gives a run its name: changes the configuration of the Trainer's loggers.

    Args:
        trainer: The configuration ``trainer`` as it was parsed.
        name: What the run is to be called.

    Raises:
        ValueError: If the name is no plain name, or a logger cannot name its runs.
    """
    if not name.strip() or name in (".", "..") or {"/", "\\"} & set(name):
        raise ValueError(f"name must be a plain name without a slash, got {name!r}.")
    loggers = trainer.get("logger")
    if loggers is False:
        raise ValueError(f"name={name!r} needs a logger, but trainer.logger is false: leave one of the two out.")
    if loggers in (None, True, [], ()):
        folder = str(trainer.get("default_root_dir") or ".")
        options = Namespace(save_dir=folder, name="lightning_logs", version=name)
        trainer["logger"] = Namespace(class_path=f"{NAME}.loggers.CSVLogger", init_args=options)
        return
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        argument = _naming_argument(str(logger.class_path))
        if logger.get("init_args") is None:
            logger["init_args"] = Namespace()
        logger.init_args[argument] = name


def _naming_argument(class_path: str) -> str:
    from jsonargparse.typing import import_object

    for kind in import_object(class_path).__mro__:
        if kind.__name__ in _NAMED_BY:
            return _NAMED_BY[kind.__name__]
    raise ValueError(
        f"name is not known to the logger {class_path}: name the run by one of its own arguments,"
        " --trainer.logger.init_args.…"
    )


class RunFolders:
    """The folders that the loggers of a run write into.

    Args:
        loggers: The Trainer's loggers.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        kept = [logger for logger in loggers if isinstance(logger, CSVLogger | TensorBoardLogger)]
        self._folders = {Path(logger.log_dir): isinstance(logger, CSVLogger) for logger in kept if _is_local(logger)}
        self._new = [folder for folder in self._folders if not folder.exists()]

    def check(self, named: bool) -> None:
        """Refuses a folder in which a logger would replace what an earlier run has left.

        Args:
            named: Whether the user has named the run, which makes a folder that is there a mistake.

        Raises:
            ValueError: If there is such a folder.
        """
        for folder, replaces in self._folders.items():
            if (replaces and (folder / "metrics.csv").exists()) or (
                named and folder.exists() and any(folder.iterdir())
            ):
                raise ValueError(
                    f"There is a run in {folder} already, and its files would be replaced: give another --name, or"
                    " leave the logger's version out."
                )

    def forget(self) -> None:
        """Removes the folders that this run has made, where they hold nothing but what is written before a training."""
        for folder in self._new:
            if folder.is_dir() and not folder.is_symlink() and _is_untouched(folder):
                shutil.rmtree(folder)


def _is_local(logger: Any) -> bool:
    return "://" not in str(logger.log_dir)


def _is_untouched(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return all(path.parent == folder and any(path.match(name) for name in _BEFORE_THE_START) for path in files)
