"""Max pooling on the CPU for windows that tile the image, as most do.

In a LeNet-5 torch's own max_pool2d is over a third of a forward on the CPU, because it looks for the position of every
maximum one element at a time, and so even where no adjoint sweep follows. Elementwise maxima of slices give the same:
maxima alone in a trial, maxima and positions in the forward sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual
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


def max_pool2x2_with_positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over windows of two by two that do not overlap, and where they are.

    Args:
        images: Shape ``[*, H, W]``; a last row or column that fills no window is left out.

    Returns:
        Maxima and their positions ``row * W + column``, int64, both of shape ``[*, H // 2, W // 2]``; of several
        equal ones in a window the first, row by row.
    """
    bottom, right = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    left_half, right_half = images[..., :bottom, 0:right:2], images[..., :bottom, 1:right:2]
    is_right = right_half > left_half
    maxima = torch.maximum(left_half, right_half)
    upper, lower = maxima[..., 0::2, :], maxima[..., 1::2, :]
    is_lower = lower > upper
    # The column from the row that was chosen; torch.where takes three times as long.
    above, below = is_right[..., 0::2, :], is_right[..., 1::2, :]
    column = above ^ (is_lower & (above ^ below))
    corners = torch.arange(0, bottom, 2)[:, None] * images.shape[-1] + torch.arange(0, right, 2)
    return torch.maximum(upper, lower), (corners + column).add_(is_lower, alpha=images.shape[-1])


class _MaxPool2x2(Function):
    @staticmethod
    @override
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return max_pool2x2_with_positions(images)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        (positions,) = ctx.saved_tensors
        *outer, height, width = ctx.shape
        flat = gradient.new_zeros(*outer, height * width)
        flat.scatter_(-1, positions.flatten(-2), gradient.flatten(-2))
        return flat.view(ctx.shape)


class FastPooling(TorchFunctionMode):
    """While active, max_pool2d on the CPU uses slices where that gives the same, gradient included.

    Attributes:
        matched: Whether it has been of use so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matched = False

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAX_POOL2D and args:
            window = _window(*args, **kwargs)
            if window is not None:
                self.matched = True
                if not (torch.is_grad_enabled() and args[0].requires_grad):
                    return tiled_max_pool2d(args[0], *window)
                if window == (2, 2):
                    return _MaxPool2x2.apply(args[0])[0]
        return func(*args, **kwargs)


class PoolingChoice:
    """Activates the quick pooling only where there is some.

    While it is active every function of torch takes a detour, which costs a network of small layers a third of its
    forward; so it has to be of use in one of the first forwards.

    Args:
        patience: Number of forwards.
    """

    def __init__(self, patience: int = 3) -> None:
        self._left = patience
        self._matched = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """What a forward runs in."""
        if not self._matched and self._left <= 0:
            yield
            return
        self._left -= 1
        with FastPooling() as pooling:
            yield
        self._matched = self._matched or pooling.matched


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
    if torch.compiler.is_compiling() or images.device.type != "cpu" or images.dim() not in (3, 4):
        return None
    if _is_transformed(images):
        return None
    window = _pair(kernel_size)
    tiles = not stride or _pair(stride) == window
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    small = window[0] * window[1] <= 9
    fits = images.shape[-2] >= window[0] and images.shape[-1] >= window[1]
    return window if tiles and plain and small and fits else None


def _is_transformed(images: Tensor) -> bool:
    """Whether it is inside a transform of torch.func, or has a tangent: those know torch's own pooling only."""
    try:
        images.data_ptr()
    except RuntimeError:
        return True
    return unpack_dual(images).tangent is not None


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
