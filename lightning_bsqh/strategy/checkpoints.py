"""Checkpoint files that are whole or not there, and what is in them beside the optimizer's own state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_bsqh.network.random_state import RandomState

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


def extra_state(device: torch.device, trained: Iterable[str]) -> dict[str, Any]:
    """What a resumed run needs beside the optimizer's state.

    Args:
        device: Whose generator is kept, too.
        trained: Names of the parameters that are not frozen.
    """
    return {"format": FORMAT, "random": RandomState.capture([device]).state_dict(), "trained": sorted(trained)}


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
