"""The weights of a run's checkpoint, read without running any code of whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.export.sparse_file import load_sparse

# Steps that a report can print; a pickle may hold integers of any length.
_LARGEST_STEP = 2**53


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
class Checkpoint:
    """What a report shows of a checkpoint.

    Attributes:
        file: The checkpoint.
        step: Number of batches after which it was written, None if it does not say.
        weights: Its floating-point tensors with two or more dimensions.
    """

    file: Path
    step: int | None
    weights: list[Weights]


def read_checkpoint(folder: Path, layers: Sequence[str], notes: list[str]) -> Checkpoint | None:
    """The best checkpoint where the newest one names it, else the newest; None if there is none that can be read.

    Args:
        folder: A run folder.
        layers: The layers whose sparsity was logged.
        notes: Gets a sentence about what could not be read.
    """
    places = [f"{below}*.{kind}" for below in ("", "checkpoints/") for kind in ("ckpt", "safetensors")]
    files = [file for place in places for file in folder.glob(place) if file.is_file()]
    if not files:
        notes.append("There is no checkpoint in the folder, so neither masks nor shapes are shown.")
        return None
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, file.name))
    try:
        content, chosen = _load(newest), newest
        best = newest.parent / _best_name(content)
        if best != newest and best.is_file():
            content, chosen = _load(best), best
        step = content.get("global_step")
        said = step if isinstance(step, int) and 0 <= step < _LARGEST_STEP else None
        return Checkpoint(chosen, said, _weights(content["state_dict"], layers, notes))
    except Exception as error:  # torch.load promises no particular one for a file that is no checkpoint
        sentence = str(error).strip().splitlines() or [type(error).__name__]
        notes.append(f"The checkpoint {newest.name} could not be read: {sentence[0]}")
        return None


def _load(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        return {"state_dict": load_sparse(file)}
    # weights_only: a run folder may be someone else's, and loading it shall run none of their code.
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError("it holds no state_dict")
    return content


def _best_name(content: Mapping[str, Any]) -> str:
    """The file name of the best checkpoint that a ModelCheckpoint noted; empty if there is none."""
    callbacks = content.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        path = state.get("best_model_path") if isinstance(state, Mapping) else None
        if path and isinstance(path, str):
            return Path(path).name
    return ""


def _weights(state: Mapping[Any, Any], layers: Sequence[str], notes: list[str]) -> list[Weights]:
    weights, left_out = [], []
    for key, tensor in state.items():
        if not _is_weight(tensor):
            continue
        name = str(key)
        try:
            nonzero = _nonzero(tensor)
        except (RuntimeError, ValueError):
            left_out.append(name)
            continue
        # A layer may be a block that has the tensor further inside.
        counted = not layers or any(name.startswith(f"{layer}.") or name == layer for layer in layers)
        weights.append(Weights(name, nonzero, counted))
    if left_out:
        notes.append(f"Tensors of the checkpoint that could not be read: {', '.join(left_out[:5])}.")
    return weights


def _is_weight(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.dim() >= 2 and tensor.numel() > 0 and tensor.is_floating_point()


def _nonzero(tensor: Tensor) -> Tensor:
    # A small file can hold a tensor that claims any size by strides of 0.
    if tensor.is_meta or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("it claims more elements than it has")
    # Not every kind of float8 can be compared.
    return (tensor if tensor.element_size() > 1 else tensor.float()) != 0
