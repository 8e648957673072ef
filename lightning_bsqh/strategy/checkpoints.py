"""Checkpoint files that are whole or not there, and what is in them beside the optimizer's own state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_bsqh.namespace import (
    _PATH,
    BaseFinetuning,
    CheckpointIO,
    TorchCheckpointIO,
    pl,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.configured import parameters_of

#: Number of the form of what is saved. Without one, it was written before there were numbers.
FORMAT = 1


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it then, so that no broken file ever has its name.

    The file beside it is hidden, ends with ``.part`` and is replaced by the next attempt. Paths of other file systems
    (``s3://…``) are written as Lightning writes them.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.part")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                # Else the name might be there after a power cut, and the content not.
                os.fsync(file.fileno())
            beside.replace(place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def with_whole_files(io: CheckpointIO) -> CheckpointIO:
    """The same, or :class:`WholeFileCheckpointIO` in the place of Lightning's default.

    One that wraps another, as AsyncCheckpointIO, keeps Lightning's, which a strategy gives to it at every access.
    """
    return WholeFileCheckpointIO() if type(io) is TorchCheckpointIO else io


def extra_state(device: torch.device, optimizer: BSQHOptimizer, within_batch: bool) -> dict[str, Any]:
    """What a resumed run needs beside the optimizer's state.

    Args:
        device: Whose generator is kept, too.
        optimizer: What trains; the names of its parameters are kept that are not frozen.
        within_batch: Whether a batch has been begun that a resumed run will do again.
    """
    offered = {id(p) for p in parameters_of(optimizer) if p.requires_grad}
    trained = [n for layer in optimizer.layers for n, p in layer.parameters.items() if id(p) in offered]
    random = RandomState.capture([device]).state_dict()
    return {"format": FORMAT, "random": random, "trained": trained, "within_batch": within_batch}


class Resumption:
    """What a checkpoint brings that is needed only once the training goes on."""

    def __init__(self) -> None:
        self._random: RandomState | None = None
        self._trained: list[str] = []
        self._within_batch = self._was_within_batch = False

    def take(self, checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Keeps what :func:`extra_state` has added, and gives the states of the optimizers without it.

        Raises:
            ValueError: If the checkpoint is of a newer version.
        """
        states = [dict(state) for state in checkpoint["optimizer_states"]]
        first = states[0] if states else {}
        check_format(first)
        first.pop("format", None)
        random = first.pop("random", None)
        # Those of several processes: each has taken its own before.
        first.pop("random_of_processes", None)
        self._trained = first.pop("trained", [])
        self._within_batch = self._was_within_batch = first.pop("within_batch", False)
        self._random = None if random is None else random_state(random)
        return states

    def loaded(self) -> None:
        """Called when the optimizer has taken its state."""
        if self._random is not None:
            self._random.restore()

    def at_start(self, module: pl.LightningModule, optimizer: BSQHOptimizer, callbacks: Iterable[pl.Callback]) -> None:
        """Continues a fine-tuning: Lightning's callback restores the groups and leaves frozen what it had unfrozen."""
        trained, self._trained = self._trained, []
        if any(isinstance(callback, BaseFinetuning) for callback in callbacks):
            names = unfreeze_again(module, trained, parameters_of(optimizer))
            if names:
                rank_zero_info(f"Trained again, as when the checkpoint was written: {', '.join(names)}.")

    def has_done_batch(self, iterations: int, global_step: int) -> bool:
        """Whether the step of the batch that a resumed run begins with is in the checkpoint already; asked once.

        So if the run ended between the step and the moment in which the Trainer counts it.
        """
        within, self._was_within_batch = self._was_within_batch, False
        return within and iterations == global_step + 1

    def before_batch(self, batch_idx: int) -> None:
        """Called before the forward sweep of a batch."""
        if self._random is not None and (batch_idx > 0 or self._within_batch):
            # Resumed within an epoch: starting the data loader again has drawn numbers that the uninterrupted run
            # did not draw.
            self._random.restore()
        self._random = None


def check_format(state: Mapping[str, Any]) -> None:
    """Raises ValueError for the state of a version that is newer than this one."""
    found = state.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(
            f"The checkpoint has the format {found!r} of a newer lightning-bsqh; this version knows up to {FORMAT}."
            " Install the newer one, or load the model's weights only and start the optimizer anew."
        )


def random_state(state: Mapping[str, Any]) -> RandomState:
    """The generators of a checkpoint, as far as they are here; says which are not."""
    here = {name: value for name, value in state["devices"].items() if _is_here(name)}
    missing = sorted(state["devices"].keys() - here.keys())
    if missing:
        rank_zero_warn(
            f"The checkpoint holds the state of a random number generator of {', '.join(missing)}, which is not here:"
            " what is drawn on this machine's device (dropout masks, say) differs from what it would have been."
        )
    return RandomState.from_state_dict({**state, "devices": here})


def _is_here(name: str) -> bool:
    device = torch.device(name)
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "mps" and torch.backends.mps.is_available()


def unfreeze_again(network: nn.Module, names: Iterable[str], offered: Iterable[Tensor]) -> list[str]:
    """Unfreezes what was trained when the checkpoint was written and is among what the optimizer is offered.

    Args:
        network: The network.
        names: Names of the parameters that were trained.
        offered: The optimizer's parameters.

    Returns:
        The names of those that were frozen.
    """
    known, wanted = {id(p) for p in offered}, set(names)
    changed = []
    for path, module in network.named_modules():
        for short, parameter in module.named_parameters(path, recurse=False):
            if short in wanted and id(parameter) in known and not parameter.requires_grad:
                parameter.requires_grad_(True)
                changed.append(short)
                if isinstance(module, _BatchNorm):
                    # As Lightning's own make_trainable does.
                    module.track_running_stats = True
    return changed
