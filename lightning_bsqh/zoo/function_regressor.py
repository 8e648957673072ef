"""A plain LightningModule around any network that approximates a function."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.namespace import pl


class FunctionRegressor(pl.LightningModule):
    """Trains a network by the mean squared error; has no optimizer of its own, the strategy brings it.

    Args:
        network: From points to values of the same shape as the targets.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, points: Tensor) -> Tensor:
        """Values ``[N]`` at the points ``[N]``."""
        return self.network(points)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error of a batch (points ``[N]``, values ``[N]``)."""
        loss = self._error(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs ``test_loss``, the mean squared error over the test points."""
        self.log("test_loss", self._error(batch), batch_size=len(batch[0]))

    def _error(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, values = batch
        return F.mse_loss(self(points), values)
