"""A smooth function of one variable on equally spaced points: no file at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.namespace import pl


class SineDataModule(pl.LightningDataModule):
    """The function sin(πx) on [−1, 1], in double precision, always in the same order.

    The test points are the midpoints between the training points.

    Args:
        points: Number of training points, at least 2.
        batch_size: Points per batch, at least 1; None takes all of them at once.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.
    """

    def __init__(self, points: int = 1001, batch_size: int | None = None) -> None:
        super().__init__()
        self.points = integer("points", points, low=2)
        self.batch_size = self.points if batch_size is None else integer("batch_size", batch_size, low=1)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Points ``[N]`` and values ``[N]``, float64; a smaller last batch is kept."""
        return self._loader(self._grid())

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The same at the midpoints."""
        grid = self._grid()
        return self._loader((grid[1:] + grid[:-1]) / 2.0)

    def _grid(self) -> Tensor:
        return torch.linspace(-1.0, 1.0, self.points, dtype=torch.float64)

    def _loader(self, x: Tensor) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(x, torch.sin(math.pi * x)), batch_size=self.batch_size, shuffle=False)
