"""What a run folder holds: metrics, settings, and the weights of its checkpoint."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_bsqh.report.names import run_names
from lightning_bsqh.report.plot import Series, read_metrics

# A run without any of these was not made with this package's monitors.
_OWN_PREFIXES = ("bsqh/", "sparsity/", "hamiltonian/", "augmented_hamiltonian/", "pmp_residual/")


class RunFolderError(ValueError):
    """A folder is not the run folder of a training with this package."""


@dataclass(frozen=True)
class Weights:
    """One weight tensor of a checkpoint.

    Attributes:
        name: Its name in the network, such as ``network.conv1.weight``.
        nonzero: Where it is not zero, bool, of the tensor's shape (two or more dimensions).
        counted: Whether it belongs to a layer whose sparsity was logged; True where none was.
    """

    name: str
    nonzero: Tensor
    counted: bool

    @property
    def zeros(self) -> int:
        """Number of exact zeros."""
        return self.nonzero.numel() - int(torch.count_nonzero(self.nonzero))

    @property
    def zero_slices(self) -> int:
        """Number of slices along dim 0 (filters of a convolution, rows of a linear layer) that are all zero."""
        return len(self.nonzero) - int(torch.count_nonzero(self.nonzero.flatten(1).any(1)))


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


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads several run folders, under names that differ.

    Raises:
        RunFolderError: If a folder is given twice, or is not a run folder.
        ValueError: If ``folders`` is empty.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("folders must name at least one run folder, got none.")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise RunFolderError(f"The run folder {path} is given twice: name each folder once.")
        seen.add(path.resolve())
    return [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Reads one run folder.

    Settings and checkpoint may be missing, or be unreadable, which the run's notes say; the metrics may not.

    Args:
        folder: What a training left: ``metrics.csv``, and perhaps ``config.yaml`` or ``hparams.yaml`` and ``*.ckpt``.
        name: What to call the run; None takes the folder's name.

    Raises:
        RunFolderError: If the folder, or a metrics.csv with values of this package's monitors, is missing.
    """
    folder = Path(folder)
    metrics = _read_metrics(folder)
    notes: list[str] = []
    settings, settings_file = _read_settings(folder, notes)
    checkpoint, content = _read_checkpoint(folder, notes)
    step = content.get("global_step")
    layers = [key.removeprefix("sparsity/") for key in metrics if key.startswith("sparsity/")]
    return Run(
        name=run_names([folder])[0] if name is None else name,
        folder=folder,
        metrics=metrics,
        settings=settings,
        settings_file=settings_file,
        checkpoint=checkpoint,
        checkpoint_step=step if isinstance(step, int) else None,
        weights=_weights(content.get("state_dict", {}), [layer for layer in layers if layer != "total"]),
        notes=notes,
    )


def _read_metrics(folder: Path) -> dict[str, Series]:
    if not folder.is_dir():
        raise RunFolderError(f"There is no run folder {folder}: give the folder that a training has printed.")
    file = folder / "metrics.csv"
    if not file.is_file():
        # The usual slip: the folder above version_0, version_1, ...
        below = sorted(folder.glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
        hint = f"did you mean {below[-1].parent}?" if below else "train with a CSVLogger, which writes it."
        raise RunFolderError(f"The run folder {folder} has no metrics.csv: {hint}")
    try:
        metrics = read_metrics(file)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RunFolderError(
            f"{file} is not what Lightning's CSVLogger writes (a table of numbers with a column step):"
            f" {type(error).__name__}: {error}"
        ) from error
    if not any(key.startswith(_OWN_PREFIXES) for key in metrics):
        raise RunFolderError(
            f"{file} has no values of bsqh/… or sparsity/…, so another program has written it: train with"
            " lightning_bsqh's callbacks AugmentationMonitor and SparsityMonitor, and with a log_every_n_steps no"
            " longer than the training."
        )
    return metrics


def _read_settings(folder: Path, notes: list[str]) -> tuple[dict[str, Any], Path | None]:
    for name in ("config.yaml", "hparams.yaml"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, OSError) as error:
            notes.append(f"The settings in {name} could not be read: {str(error).splitlines()[0]}")
            continue
        if isinstance(content, Mapping) and content:
            return flatten(content), file
    return {}, None


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a list of mappings by number (``callbacks.0.class_path``)."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner: Any = value
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inner = dict(enumerate(value))
        if isinstance(inner, Mapping) and inner:
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_checkpoint(folder: Path, notes: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """The best checkpoint where the newest one names it, else the newest; and what is in it."""
    files = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    if not files:
        notes.append("There is no checkpoint in the folder, so neither masks nor shapes are shown.")
        return None, {}
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, file.name))
    try:
        content = _load(newest)
        best = newest.parent / _best_name(content)
        if best != newest and best.is_file():
            return best, _load(best)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        sentence = str(error).strip().splitlines() or [type(error).__name__]
        notes.append(f"The checkpoint {newest.name} could not be read: {sentence[0]}")
        return None, {}
    return newest, content


def _load(file: Path) -> dict[str, Any]:
    # weights_only: a run folder may be someone else's, and loading it shall run none of their code.
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError("it holds no state_dict")
    return content


def _best_name(content: Mapping[str, Any]) -> str:
    """The file name of the best checkpoint that a ModelCheckpoint noted; empty if there is none."""
    callbacks = content.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and state.get("best_model_path"):
            return Path(state["best_model_path"]).name
    return ""


def _weights(state: Mapping[str, Any], layers: Sequence[str]) -> list[Weights]:
    weights = []
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            continue
        if tensor.dim() >= 2 and tensor.numel() and tensor.is_floating_point():
            # A layer may be a block that has the tensor further inside.
            counted = not layers or any(name.startswith(f"{layer}.") or name == layer for layer in layers)
            weights.append(Weights(name, tensor != 0, counted))
    return weights
