"""What a run folder holds: metrics, settings, and the weights of its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_bsqh.report.checkpoints import Weights, read_checkpoint
from lightning_bsqh.report.metrics import MetricsFile, Series, read_metrics_file
from lightning_bsqh.report.names import run_names
from lightning_bsqh.report.settings import read_settings

# A run without any of these was not made with this package's monitors.
_OWN_PREFIXES = ("bsqh/", "sparsity/", "hamiltonian/", "augmented_hamiltonian/", "pmp_residual/")
_TARGET = re.compile(r"trainer\.(strategy|callbacks\.\d+)\.init_args\.(regularizer\.init_args\.)?sparsity")


class RunFolderError(ValueError):
    """A folder is not the run folder of a training with this package."""


@dataclass(frozen=True)
class Run:
    """What the report shows of one run.

    Attributes:
        name: Its folder's name, told apart from those of the other runs.
        folder: Where it lies.
        metrics: Steps and values by key, as a CSVLogger wrote them.
        settings: Settings by dotted key, such as ``trainer.max_epochs``; empty if there is no file with settings.
        settings_file: The file that they are from, None if there is none.
        checkpoint: The checkpoint that ``weights`` are from, None if there is none that can be read.
        checkpoint_step: Number of batches after which it was written.
        weights: Floating-point tensors of the checkpoint with two or more dimensions.
        notes: Sentences about what could not be read.
        epochs: After how many steps each epoch ended, by its number from 1.
    """

    name: str
    folder: Path
    metrics: dict[str, Series]
    settings: dict[str, Any]
    settings_file: Path | None
    checkpoint: Path | None
    checkpoint_step: int | None
    weights: list[Weights]
    notes: list[str]
    epochs: dict[int, int] = field(default_factory=dict)

    @property
    def target(self) -> float | None:
        """The share of zeros that the settings demand, None if they do not say."""
        found = [value for key, value in self.settings.items() if _TARGET.fullmatch(key)]
        return float(found[0]) if len(found) == 1 and isinstance(found[0], float | int) else None


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> list[Run]:
    """Reads several run folders, under names that differ.

    Args:
        folders: Run folders.
        names: What to call the runs; None takes the folders' names, with as much of the path as tells them apart.

    Raises:
        RunFolderError: If a folder is given twice, or is not a run folder.
        ValueError: If ``folders`` is empty, or the names are not as many, or not different.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("folders must name at least one run folder, got none.")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise RunFolderError(f"The run folder {path} is given twice: name each folder once.")
        seen.add(path.resolve())
    called = run_names(paths) if names is None else list(names)
    if len(called) != len(paths) or len(set(called)) != len(called) or "" in called:
        raise ValueError(f"names must be {len(paths)} different names, one for each run folder, got {called}.")
    return [read_run(path, name) for path, name in zip(paths, called, strict=True)]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Reads one run folder.

    Settings and checkpoint may be missing, or be unreadable, which the run's notes say; so may single rows and cells of
    the metrics.

    Args:
        folder: What a training left: ``metrics.csv``, and perhaps ``config.yaml`` or ``hparams.yaml`` and ``*.ckpt``.
        name: What to call the run; None takes the folder's name.

    Raises:
        RunFolderError: If the folder, or a metrics.csv with values of this package's monitors, is missing.
    """
    folder = Path(folder)
    notes: list[str] = []
    file = _read_metrics(folder, notes)
    metrics = file.series
    settings, settings_file = read_settings(folder, notes)
    layers = [key.removeprefix("sparsity/") for key in metrics if key.startswith("sparsity/")]
    checkpoint = read_checkpoint(folder, [layer for layer in layers if layer != "total"], notes)
    return Run(
        name=run_names([folder])[0] if name is None else name,
        folder=folder,
        metrics=metrics,
        settings=settings,
        settings_file=settings_file,
        checkpoint=None if checkpoint is None else checkpoint.file,
        checkpoint_step=None if checkpoint is None else checkpoint.step,
        weights=[] if checkpoint is None else checkpoint.weights,
        notes=notes,
        epochs=file.epochs,
    )


def _read_metrics(folder: Path, notes: list[str]) -> MetricsFile:
    if not folder.is_dir():
        raise RunFolderError(f"There is no run folder {folder}: give the folder that a training has printed.")
    file = folder / "metrics.csv"
    if not file.is_file():
        # The usual slip: the folder above version_0, version_1, ...
        inside = [path for path in folder.glob("*/metrics.csv") if path.is_file()]
        below = sorted(inside, key=lambda path: path.stat().st_mtime_ns)
        hint = f"did you mean {below[-1].parent}?" if below else "train with a CSVLogger, which writes it."
        raise RunFolderError(f"The run folder {folder} has no metrics.csv: {hint}")
    try:
        content = read_metrics_file(file)
    except (ValueError, OSError) as error:
        raise RunFolderError(
            f"{file} is not what Lightning's CSVLogger writes (a table of numbers with a column step): {error}"
        ) from error
    if not any(key.startswith(_OWN_PREFIXES) for key in content.series):
        raise RunFolderError(
            f"{file} has no values of bsqh/… or sparsity/…, so another program has written it: train with"
            " lightning_bsqh's callbacks AugmentationMonitor and SparsityMonitor, and with a log_every_n_steps no"
            " longer than the training."
        )
    if content.faults:
        more = f", and {len(content.faults) - 1:,} more" if len(content.faults) > 1 else ""
        notes.append(f"Left out of metrics.csv: {content.faults[0]}{more}.")
    return content
