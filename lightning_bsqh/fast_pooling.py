"""Max pooling for trial sweeps on the CPU, where no graph is needed.

torch's max_pool2d on the CPU also finds the position of every maximum, for a backward that a trial never runs;
in a LeNet-5 that is most of a forward. Windows that tile the image need only elementwise maxima of slices, with
the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override


def tiled_max_pool2d(images: Tensor, height: int, width: int) -> Tensor:
    """Maxima over windows that do not overlap.

    Args:
        images: Shape ``[*, H, W]``, any dtype; rows and columns that fill no window are left out.
        height: Height of a window, which is also the step.
        width: Its width.

    Returns:
        Shape ``[*, H // height, W // width]``.
    """
    bottom = images.shape[-2] // height * height
    right = images.shape[-1] // width * width
    # Rows first: their slices are contiguous, and they leave less for the columns, whose are not.
    rows = reduce(torch.maximum, [images[..., i:bottom:height, :right] for i in range(height)])
    return reduce(torch.maximum, [rows[..., j::width] for j in range(width)])


class FastPooling(TorchFunctionMode):
    """While active, max_pool2d on the CPU without a graph uses :func:`tiled_max_pool2d` where that is the same."""

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAX_POOL2D and args and not torch.is_grad_enabled():
            window = _window(*args, **kwargs)
            if window is not None:
                return tiled_max_pool2d(args[0], *window)
        return func(*args, **kwargs)


_MAX_POOL2D = frozenset({functional.max_pool2d, torch.max_pool2d})


def _window(
    images: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[int, int] | None:
    """The window (height, width) if the slices give the same, None if not."""
    window = _pair(kernel_size)
    tiles = not stride or _pair(stride) == window
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    small = window[0] * window[1] <= 9
    fits = images.dim() in (3, 4) and images.shape[-2] >= window[0] and images.shape[-1] >= window[1]
    return window if tiles and plain and small and fits and images.device.type == "cpu" else None


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
