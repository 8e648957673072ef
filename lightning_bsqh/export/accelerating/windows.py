"""The windows of a convolution's input."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def output_size(x: Tensor, windows: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a convolution's output.

    Args:
        x: Its input, ``[N, C, H, W]``.
        windows: ``kernel_size``, ``stride``, ``padding`` and ``dilation`` in this order, a pair of integers each.
    """
    places = zip(x.shape[2:], *windows.values(), strict=True)
    height, width = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in places)
    return height, width
