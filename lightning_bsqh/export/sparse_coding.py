"""Two codings of where a tensor is not zero: one bit per element, or one byte per step to the next value."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A code of this value means so many zeros and no value after them.
_LONG = 255


def is_nonzero(tensor: Tensor) -> Tensor:
    """Which elements are not zero, flat, boolean; NaN is not zero, a negative zero is."""
    return (tensor.detach() != 0).flatten().cpu()


def to_mask(nonzero: Tensor) -> Tensor:
    """One bit per element, the first element in the lowest bit of the first byte.

    Args:
        nonzero: Boolean, shape ``[n]``.

    Returns:
        uint8, shape ``[ceil(n / 8)]``.
    """
    return torch.from_numpy(np.packbits(nonzero.numpy(), bitorder="little"))


def from_mask(mask: Tensor, size: int) -> Tensor:
    """Positions of the values, int64, increasing.

    Args:
        mask: What :func:`to_mask` gives.
        size: Number of elements.

    Raises:
        ValueError: If the mask has another length, or bits behind the last element.
    """
    if mask.numel() != (size + 7) // 8:
        raise ValueError(f"a mask of {mask.numel():,} bytes does not fit {size:,} elements")
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    if bits[size:].any():
        raise ValueError("the mask has bits behind the last element")
    return torch.from_numpy(np.flatnonzero(bits[:size]))


def to_gaps(nonzero: Tensor) -> Tensor:
    """One byte per value: the number of zeros before it, up to 254; 255 stands for 255 zeros without a value.

    Args:
        nonzero: Boolean, shape ``[n]``.

    Returns:
        uint8. Zeros after the last value are coded, too, as far as they fill a 255: the length of the code bounds
        the size of the tensor, so that a short file cannot ask for a huge one.
    """
    positions = nonzero.nonzero().flatten()
    before = torch.cat([torch.tensor([-1]), positions])
    gaps = positions - before[:-1] - 1
    ends = (gaps // _LONG + 1).cumsum(0)
    trailing = (nonzero.numel() - 1 - int(before[-1])) // _LONG
    length = (int(ends[-1]) if len(ends) else 0) + trailing
    codes = torch.full((length,), _LONG, dtype=torch.uint8)
    codes[ends - 1] = (gaps % _LONG).to(torch.uint8)
    return codes


def from_gaps(codes: Tensor, size: int) -> Tensor:
    """Positions of the values, int64, increasing.

    Args:
        codes: What :func:`to_gaps` gives.
        size: Number of elements.

    Raises:
        ValueError: If the codes are of a tensor with another number of elements.
    """
    has_value = codes != _LONG
    ends = (codes.to(torch.int64) + has_value).cumsum(0)
    reached = int(ends[-1]) if len(ends) else 0
    if not reached <= size < reached + _LONG:
        raise ValueError(f"steps over {reached:,} elements do not fit {size:,} elements")
    return ends[has_value] - 1


def gaps_length(nonzero: Tensor) -> int:
    """Number of bytes that :func:`to_gaps` gives."""
    positions = nonzero.nonzero().flatten()
    before = torch.cat([torch.tensor([-1]), positions])
    gaps = positions - before[:-1] - 1
    return len(positions) + int((gaps // _LONG).sum()) + (nonzero.numel() - 1 - int(before[-1])) // _LONG
