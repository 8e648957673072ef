"""Tensors that all processes hold: their mean, or those of the first process (method §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by its mean over all processes, the same to the bit in all of them."""

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat)
        flat.div_(dist.get_world_size())

    _as_vectors_(tensors, mean)


def of_first_(tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by what the first process holds."""
    _as_vectors_(tensors, lambda flat: dist.broadcast(flat, src=0))


def _as_vectors_(tensors: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """One vector for each dtype and device, so that there are few messages."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        flat = torch.cat([t.detach().reshape(-1) for t in group])
        exchange(flat)
        with torch.no_grad():
            for tensor, piece in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(piece.view(tensor.shape))
