"""Weights of linear and convolutional layers in one form, and layers with other weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def by_output(module: Any) -> Tensor:
    """The weight as ``[outputs, inputs, taps]`` in its own dtype on the CPU; inputs per group."""
    weight = module.weight.detach().cpu()
    if isinstance(module, TRANSPOSED):
        # Stored as [inputs, outputs per group, ...].
        parts = [part.transpose(0, 1) for part in weight.chunk(module.groups)]
        weight = torch.cat(parts)
    return weight.flatten(2) if weight.dim() > 2 else weight[..., None]


def bias_of(module: Any, outputs: int) -> Tensor:
    """The bias, float64 on the CPU, zeros where there is none."""
    return torch.zeros(outputs, dtype=torch.float64) if module.bias is None else module.bias.detach().cpu().double()


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether a constant channel is not constant any more for this layer, because zeros surround it."""
    if isinstance(module, TRANSPOSED):
        # At the borders fewer taps meet.
        return True
    if isinstance(module, CONVOLUTIONS) and module.padding_mode == "zeros":
        if module.padding == "same":
            return any(size != 1 for size in module.kernel_size)
        return module.padding != "valid" and any(width != 0 for width in module.padding)
    return False


def with_parameters(module: Any, tensors: dict[str, Tensor | None], sizes: dict[str, int]) -> Any:
    """A copy of a module with other parameters or buffers, and the attributes that tell their sizes.

    Args:
        module: The module; stays as it is.
        tensors: New values by name, cast to the old dtype (a new bias: to that of the weight); None leaves the old.
        sizes: Attributes to set.
    """
    new = copy.deepcopy(module)
    for name, tensor in tensors.items():
        old = getattr(module, name)
        if tensor is None:
            continue
        like = module.weight if old is None else old
        tensor = tensor.to(like.device, like.dtype).contiguous()
        if name in module._buffers:
            setattr(new, name, tensor)
        else:
            setattr(new, name, nn.Parameter(tensor, requires_grad=like.requires_grad))
    for name, size in sizes.items():
        setattr(new, name, size)
    return new


def brought(weight: Tensor, inputs: Tensor, values: Tensor) -> Tensor:
    """What constant inputs bring to every output where no border is near, float64, shape ``[outputs]``.

    Args:
        weight: What :func:`by_output` gives.
        inputs: Which inputs, boolean.
        values: The values of all inputs, float64.
    """
    return weight[:, inputs].double().sum(2) @ values[inputs]
