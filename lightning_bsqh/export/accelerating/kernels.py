"""Other ways to compute what a linear layer or a convolution with many zeros gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_bsqh.export.accelerating.two_of_four import TwoOfFour, TwoOfFourFilters, is_two_of_four
from lightning_bsqh.export.accelerating.windows import output_size


class CompressedRows(nn.Module):
    """A linear layer as a product with a matrix of compressed sparse rows (CSR): torch's, on the CPU that of MKL.

    Args:
        layer: The layer; its weights are copied.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", _compressed(layer.weight))
        self.register_buffer("bias", _column(layer.bias, layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[*, in_features]`` to ``[*, out_features]``."""
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, self.weight, flat.t()).t().reshape(*x.shape[:-1], -1)


class NonzeroPart(nn.Module):
    """A layer without its zero rows and columns, whose output is put among the biases of the zero rows.

    Args:
        layer: A Linear or an ungrouped Conv2d; its weights are copied.
    """

    weight: Tensor
    part_bias: Tensor
    bias: Tensor
    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = layer.weight.detach()
        uses = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
        rows, columns = uses.any(1).nonzero().flatten(), uses.any(0).nonzero().flatten()
        bias = layer.bias.detach() if layer.bias is not None else weight.new_zeros(len(weight))
        self.is_linear = isinstance(layer, nn.Linear)
        self.options = {} if self.is_linear else {n: getattr(layer, n) for n in ("stride", "padding", "dilation")}
        self.register_buffer("weight", weight[rows][:, columns].clone())
        self.register_buffer("part_bias", bias[rows].clone())
        self.register_buffer("bias", bias.clone())
        self.register_buffer("rows", rows if len(rows) < len(weight) else None)
        self.register_buffer("columns", columns if len(columns) < uses.shape[1] else None)

    def forward(self, x: Tensor) -> Tensor:
        """From and to the shapes of the layer."""
        axis = x.dim() - 1 if self.is_linear else x.dim() - 3
        x = x if self.columns is None else x.index_select(axis, self.columns)
        part = (F.linear if self.is_linear else F.conv2d)(x, self.weight, self.part_bias, **self.options)
        if self.rows is None:
            return part
        shape = list(part.shape)
        shape[axis] = len(self.bias)
        bias = self.bias if self.is_linear else self.bias[:, None, None]
        return bias.expand(shape).clone().index_copy_(axis, self.rows, part)


class CompressedFilters(nn.Module):
    """A convolution as a CSR matrix times the windows of its input.

    Args:
        layer: An ungrouped Conv2d that pads with zeros; its weights are copied.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.windows = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation")}
        self.register_buffer("weight", _compressed(layer.weight.flatten(1)))
        self.register_buffer("bias", _column(layer.bias, layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``."""
        height, width = output_size(x, self.windows)
        columns = F.unfold(x, **self.windows).transpose(0, 1).flatten(1)
        product = torch.addmm(self.bias, self.weight, columns)
        return product.view(-1, len(x), height, width).transpose(0, 1)


Kernel = Callable[[Any], nn.Module]


def candidates(layer: nn.Module) -> dict[str, Kernel]:
    """The ways by name that could compute what a layer gives; none for a layer of another kind or without zeros."""
    found = _of_kind(layer)
    if not found:
        return {}
    weight: Any = layer.weight
    weight = weight.detach()
    uses = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    if not bool(uses.any()) or (bool(uses.any(0).all()) and bool(uses.any(1).all())):
        del found["nonzero part"]
    if not (weight.is_cuda and is_two_of_four(weight)):
        found.pop("two of four", None)
    return found if bool((weight == 0).any()) else {}


def _of_kind(layer: nn.Module) -> dict[str, Kernel]:
    """Those for a kind of layer, whatever its weights are."""
    if type(layer) is nn.Linear:
        return {"compressed rows": CompressedRows, "nonzero part": NonzeroPart, "two of four": TwoOfFour}
    if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.padding_mode != "zeros":
        return {}
    if isinstance(layer.padding, str):
        return {"nonzero part": NonzeroPart}
    return {"nonzero part": NonzeroPart, "compressed filters": CompressedFilters, "two of four": TwoOfFourFilters}


def _compressed(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return weight.detach().to_sparse_csr()


def _column(bias: Tensor | None, weight: Tensor) -> Tensor:
    return (weight.new_zeros(len(weight)) if bias is None else bias).detach().clone()[:, None]
