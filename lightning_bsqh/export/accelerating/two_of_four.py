"""Weights of which two of every four are zero, on the sparse tensor cores of a CUDA device."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from lightning_bsqh.export.accelerating.windows import output_size


class TwoOfFour(nn.Module):
    """A linear layer by torch's semi-structured tensors.

    Args:
        layer: The layer; of every four neighboring weights of a row at most two are not zero. They are copied.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", semi_structured(layer.weight.detach()))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """From ``[*, in_features]`` to ``[*, out_features]``."""
        return F.linear(x, self.weight, self.bias)


class TwoOfFourFilters(nn.Module):
    """A convolution as such a matrix times the windows of its input; a 1x1 convolution needs no windows.

    Args:
        layer: An ungrouped Conv2d that pads with zeros; at each place of its filters at most two of every four
            neighboring input channels are not zero. The weights are copied.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.windows = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation")}
        # The input channels of a place lie side by side, as NM groups them.
        self.register_buffer("weight", semi_structured(channels_last_rows(layer.weight.detach())))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``."""
        height, width = output_size(x, self.windows)
        product = F.linear(self._rows(x), self.weight, self.bias)
        return product.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        """The window of each place of the output as a row: ``[N * H' * W', kernel places * in_channels]``."""
        if self.windows["kernel_size"] == (1, 1) and self.windows["padding"] == (0, 0):
            down, right = self.windows["stride"]
            return x[:, :, ::down, ::right].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        columns = F.unfold(x, **self.windows)
        places = columns.view(len(x), x.shape[1], -1, columns.shape[-1])
        return places.permute(0, 3, 2, 1).reshape(len(x) * columns.shape[-1], -1)


def channels_last_rows(weight: Tensor) -> Tensor:
    """Filters as the rows of a matrix, the input channels of one place side by side."""
    return weight.movedim(1, -1).flatten(1)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether at most two of every four neighboring input channels are not zero, as ``NM(2, 4)`` leaves them."""
    if weight.shape[1] % 4:
        return False
    rows = channels_last_rows(weight)
    return bool(((rows != 0).view(len(rows), -1, 4).sum(2) <= 2).all())


def semi_structured(weight: Tensor) -> Tensor:
    """Torch's semi-structured tensor of a matrix; the shapes and dtypes that it takes are the device's.

    Raises:
        RuntimeError: If the device has no kernel for the matrix.
        ValueError: If a kernel does not take its shape or dtype.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in a prototype stage")
        return to_sparse_semi_structured(weight.contiguous())
