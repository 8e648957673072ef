"""Checkpoints of sharded parameters: a folder with every process's own rows, or one file as any training writes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from lightning_bsqh.network.sharding import is_sharded
from lightning_bsqh.optimizer_rows import with_tensors

#: All that is no tensor of the parameters' shapes; Lightning's own folders have it under the same name.
_REST = "meta.pt"


def is_folder(path: Path) -> bool:
    """Whether a checkpoint was written by :func:`save_folder`, or as such by Lightning."""
    return path.is_dir() and (path / _REST).is_file()


def save_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint, every process its own rows.

    Args:
        checkpoint: With sharded tensors in ``state_dict`` and ``optimizer_states``.
        path: The folder.
    """
    states = checkpoint.get("optimizer_states", [])
    tensors = {"state_dict": checkpoint["state_dict"], **_tensors(states)}
    beside = path.with_name(f".{path.name}.part")
    if dist.get_rank() == 0:
        # Of a training that was ended while it wrote.
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    dcp.save(tensors, checkpoint_id=beside)
    if dist.get_rank() == 0:
        rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        torch.save({**rest, "optimizer_states": [with_tensors(state, _nothing) for state in states]}, beside / _REST)
        put_in_place(beside, path)
    dist.barrier()


def put_in_place(beside: Path, path: Path) -> None:
    """Gives a finished folder its name; what had it before is there until then.

    Args:
        beside: The folder.
        path: Its name, which a file or another folder may have.
    """
    before = path.with_name(f".{path.name}.before")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(before, ignore_errors=True)
        path.rename(before)
    else:
        path.unlink(missing_ok=True)
    beside.rename(path)
    shutil.rmtree(before, ignore_errors=True)


def load_folder(path: Path, module: nn.Module, parameters: Sequence[Sequence[Tensor]], weights_only: Any) -> Any:
    """Reads a checkpoint, however many processes have written it.

    Args:
        path: The folder.
        module: The network; its parameters and buffers are overwritten.
        parameters: Those of each optimizer, in the order of their numbers in its state.
        weights_only: As for ``torch.load``.

    Returns:
        The checkpoint with sharded tensors.
    """
    checkpoint = torch.load(path / _REST, map_location="cpu", weights_only=weights_only)
    states = checkpoint.get("optimizer_states", [])
    for state, own in zip(states, parameters, strict=False):
        for i, entry in state["state"].items():
            entry.update({name: torch.zeros_like(own[i]) for name, value in entry.items() if value is None})
    tensors = {"state_dict": get_model_state_dict(module), **_tensors(states[: len(parameters)])}
    dcp.load(tensors, checkpoint_id=path)
    return {**checkpoint, "state_dict": tensors["state_dict"]}


def load_weights(module: nn.Module, state: dict[str, Any], strict: bool) -> None:
    """Puts weights that are sharded alike, or whole in every process, into a sharded module."""
    whole = not any(isinstance(v, Tensor) and is_sharded(v) for v in state.values())
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=whole, strict=strict))


def with_whole_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with whole tensors on the CPU in the first process, one after the other; None elsewhere.

    Args:
        state: With sharded tensors; all processes have to call.
    """

    def whole(_: int, __: str, sharded: Any) -> Tensor | None:
        full = sharded.full_tensor()
        return full.cpu() if dist.get_rank() == 0 else None

    return with_tensors(state, whole)


def _tensors(states: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors in the states, by keys of their own."""
    return {
        f"optimizer_{k}.{i}.{name}": value
        for k, state in enumerate(states)
        for i, entry in state["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def _nothing(*_: Any) -> None:
    """Marks the place of a tensor."""
