"""A network of the sizes that a file has: how the weights of a shrunk network come back into the model's own class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def resized(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model whose layers have the sizes of a state_dict, with its weights.

    For what ``shrink`` and ``save_sparse`` have written: ``resized(LeNet5(), load_sparse("lenet5.safetensors"))`` is a
    LeNet5 of fewer channels. Its forward must not write out numbers of channels (``x.view(-1, 400)``).

    Args:
        model: A model of the class that was trained; stays as it is.
        state: The tensors by name.

    Raises:
        ValueError: If the names are not those of the model, or a layer has sizes that do not fit its kind.
    """
    new = copy.deepcopy(model)
    for name, module in new.named_modules():
        own = {key.rpartition(".")[2]: tensor for key, tensor in state.items() if key.rpartition(".")[0] == name}
        for key in own.keys() & {*module._parameters, *module._buffers}:
            _make_room(module, key, own[key])
        if "weight" in own and own["weight"].dim():
            _tell_sizes(module, own["weight"].shape)
    try:
        new.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The tensors are not those of a {type(model).__name__}: {error}") from error
    return new


def _make_room(module: Any, key: str, tensor: Tensor) -> None:
    old = getattr(module, key)
    if old is not None and old.shape == tensor.shape:
        return
    like = module.weight if old is None else old
    room = torch.empty(tensor.shape, dtype=like.dtype, device=like.device)
    if key in module._buffers:
        setattr(module, key, room)
    else:
        setattr(module, key, nn.Parameter(room, requires_grad=like.requires_grad))


def _tell_sizes(module: Any, shape: torch.Size) -> None:
    """Sets what a layer of a known kind says of its sizes; a group keeps its numbers of channels."""
    if isinstance(module, nn.Linear) and len(shape) == 2:
        module.out_features, module.in_features = shape
    elif isinstance(module, _CONVOLUTIONS) and len(shape) > 2:
        module.groups = shape[0] // (module.out_channels // module.groups) if module.groups > 1 else 1
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, _TRANSPOSED) and len(shape) > 2:
        module.groups = shape[0] // (module.in_channels // module.groups) if module.groups > 1 else 1
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, _NORMS + _INSTANCE_NORMS):
        module.num_features = shape[0]
    elif isinstance(module, nn.Embedding) and len(shape) == 2:
        module.embedding_dim = shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
