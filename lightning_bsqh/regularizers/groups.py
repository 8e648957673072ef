"""The groups of a weight tensor that are kept or set to zero as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_bsqh._validation import choice
from lightning_bsqh.foreach import drop_, unflat


class Groups:
    """Cuts tensors into groups of equally many weights.

    Args:
        groups: ``"output"`` for the slices along dim 0 (filters of a convolution, rows of a linear layer: the weights
            that lead into one output), ``"input"`` for those along dim 1 (input channels, columns), None for
            every weight alone.

    Raises:
        ValueError: If it is none of these; when used, if a tensor has no such dim.
    """

    def __init__(self, groups: str | None) -> None:
        self._kind = None if groups is None else choice("groups", groups, ("output", "input"))
        self._dim = {None: -1, "output": 0, "input": 1}[self._kind]

    def count(self, tensor: Tensor) -> int:
        """Number of groups."""
        if self._kind is None:
            return tensor.numel()
        if tensor.dim() <= self._dim:
            raise ValueError(
                f"groups={self._kind!r} needs tensors with more than {self._dim} dimensions, but a regularized one has"
                f" the shape {tuple(tensor.shape)}: choose what R acts on with regularize=[...]."
            )
        return tensor.shape[self._dim]

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each group, shape ``[count]``."""
        return values.flatten() if self._kind is None else self._rows(values).sum(1)

    def count_nonzero(self, tensor: Tensor) -> Tensor:
        """Number of groups with at least one weight that is not zero, an integer scalar."""
        return torch.count_nonzero(tensor if self._kind is None else self._rows(tensor != 0).any(1))

    def drop_(self, tensor: Tensor, dropped: Tensor) -> None:
        """Sets groups to zero.

        Args:
            tensor: Any shape; overwritten.
            dropped: Which groups, boolean, shape ``[count]``.
        """
        shape = [-1 if dim == self._dim else 1 for dim in range(tensor.dim())]
        tensor.masked_fill_(dropped.view(tensor.shape if self._kind is None else shape), 0.0)

    def drop_all_(self, tensors: Sequence[Tensor], dropped: Tensor) -> None:
        """Sets groups of several tensors to zero.

        Args:
            tensors: Any shapes; overwritten.
            dropped: Which of all their groups, boolean, shape ``[sum of the counts]``.
        """
        if self._kind is None:
            drop_(tensors, unflat(dropped, tensors))
            return
        for tensor, own in zip(tensors, dropped.split([self.count(t) for t in tensors]), strict=True):
            self.drop_(tensor, own)

    def _rows(self, tensor: Tensor) -> Tensor:
        """The tensor with one row per group."""
        count = self.count(tensor)
        return tensor.movedim(self._dim, 0).reshape(count, tensor.numel() // max(count, 1))


def rows(tensor: Tensor) -> Tensor:
    """The weights that lead into one output in one row, shape ``[outputs, fan-in]``."""
    return tensor.reshape(tensor.shape[0], fan_in(tensor))


def fan_in(tensor: Tensor) -> int:
    """Number of weights that lead into one output.

    Raises:
        ValueError: If the tensor has no dimension, and so no outputs.
    """
    if tensor.dim() == 0:
        raise ValueError(
            "scope='row' needs tensors with at least one dimension, but a regularized one is a scalar: choose what R"
            " acts on with regularize=[...]."
        )
    return tensor.numel() // max(tensor.shape[0], 1)
