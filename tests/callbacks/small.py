"""A network, data and a recorder that the tests of the callbacks share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import StepReport


class SmallModule(L.LightningModule):
    """56 weights in two layers."""

    def __init__(self, own_optimizer: bool = False, skip_batches: tuple[int, ...] = ()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.own_optimizer = own_optimizer
        self.skip_batches = skip_batches

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        if batch_idx in self.skip_batches:
            return None
        return F.cross_entropy(self.second(F.relu(self.first(batch[0]))), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # The later the better, whatever the network does.
        self.log("score", float(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        return torch.optim.SGD(self.parameters(), lr=0.1) if self.own_optimizer else None


def loader(batches: int = 4) -> DataLoader:
    """``batches`` batches of 10."""
    inputs = torch.randn(10 * batches, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=10)


class Recorder(L.Callback):
    """Keeps every step's report."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.reports.append(trainer.optimizers[0].last_step)
